"""The image of an answer: the whole raster with numbered boxes, and beside it what the boxes show from near."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patheffects import withStroke

from evcap.gigapixel.ask.evidence import Evidence, numbered
from evcap.plots.contact_sheet import wrapped
from evcap.plots.names import FAINT, INK
from evcap.plots.sheet import BADGE, Sheet, colour_of, draw_badge, draw_box, draw_numbered, visible
from evcap.raster.geo import cell_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from evcap.raster.raster import Raster

MOST_THUMBNAILS = 9
OVERVIEW, NEAR = 1400, 360  # pixels read for the longer side of the overview and of a thumbnail
# in inches
LARGEST = (9.0, 7.4)  # overview
NARROWEST = 1.0
THUMBNAIL, TEXT = (1.8, 3.0), 0.8  # a thumbnail's side, and the lines below it
MARGIN, GAP, LINE = 0.25, 0.25, 0.27
LETTERS = 16  # of a caption, in an inch
THIN_HALO = [withStroke(linewidth=2.2, foreground="#333333")]
BLANK = 235  # grey of pixels that are not valid


def draw_overlay(path: str | Path, raster: Raster, evidence: Sequence[Evidence], question: str, answer: str) -> None:
    """Write the PNG `path`: the overview with the boxes of `evidence`, and thumbnails of the first nine, which are numbered.

    Thumbnails are read at native resolution where a box is small enough for that. Evidence that is the overview itself
    gives the line below it. Numbers are those of the GeoJSON. Raises EvcapError if the file cannot be written, RasterError
    if the raster cannot be read.
    """
    boxes = [(number, item) for number, item in numbered(evidence) if number]
    near, others = boxes[:MOST_THUMBNAILS], boxes[MOST_THUMBNAILS:]
    columns = next(count for count, room in ((1, 3), (2, 6), (3, MOST_THUMBNAILS)) if len(near) <= room)
    rows = max(-(-len(near) // columns), 1)
    scale = min(LARGEST[0] / raster.width, LARGEST[1] / raster.height)
    width, height = max(raster.width * scale, NARROWEST), max(raster.height * scale, NARROWEST)
    side = float(np.clip(height / rows - TEXT, *THUMBNAIL))
    panel = columns * (GAP + side) if near else 0
    heading = _heading(question, answer, max(width + panel, 6))
    top = MARGIN + LINE * len(heading)
    depth = max(height + 0.5, rows * (side + TEXT) if near else 0)
    sheet = Sheet(max(width + panel, 6) + 2 * MARGIN, top + depth + 0.1)
    for line, (text, weight) in enumerate(heading):
        sheet.write(MARGIN, 0.18 + LINE * line, text, 14, INK, weight)
    axes = sheet.axes(MARGIN, top, width, height)
    _draw_overview(axes, raster, near, others, max(raster.width, raster.height) / max(width, height))
    sheet.write(MARGIN, top + height + 0.07, _below(evidence, len(others), width), 10, INK)
    for place, (number, item) in enumerate(near):
        x = MARGIN + width + GAP + place % columns * (side + GAP)
        y = top + place // columns * (side + TEXT)
        _draw_near(sheet, x, y, side, raster, item, number, colour_of(place))
    sheet.save(path)


def _heading(question: str, answer: str, width: float) -> list[tuple[str, str]]:
    """The lines above all: (text, font weight)."""
    lines = []
    for text, weight, letters, most in ((question, "bold", 8, 2), (answer, "normal", 9, 4)):
        lines += [(line, weight) for line in textwrap.wrap(text, int(width * letters), max_lines=most, placeholder=" ...")]
    return lines


def _below(evidence: Sequence[Evidence], others: int, width: float) -> str:
    """The lines below the overview."""
    lines = [f"Whole image: {item.caption}" for item in evidence if item.path == "overview"]
    lines += [f"{others:,} more {'box is' if others == 1 else 'boxes are'} outlined in white."] if others else []
    return "\n".join(part for line in lines for part in textwrap.wrap(line, int(width * 13), max_lines=2, placeholder=" ..."))


def _pixels(raster: Raster, box: Sequence[int], longest: int) -> np.ndarray:
    x1, y1, x2, y2 = box
    scale = min(longest / max(x2 - x1, y2 - y1), 1)
    pixels, valid = raster.read(box, (max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)))
    return np.where(valid[..., None], pixels, np.uint8(BLANK))


def _draw_near(sheet: Sheet, x: float, y: float, side: float, raster: Raster, item: Evidence, number: int, colour: str) -> None:
    """A thumbnail in a square of so many inches, and below it the caption, how the box was found and where it lies."""
    pixels = _pixels(raster, item.box, NEAR)
    height, width = (max(length / max(pixels.shape[:2]), 0.15) * side for length in pixels.shape[:2])
    axes = sheet.axes(x, y, width, height)
    axes.imshow(pixels, aspect="auto")
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3)
    draw_badge(axes, 0.18 / width, 1 - 0.18 / height, number, colour, transform=axes.transAxes)
    caption = wrapped(int(side * LETTERS), item.caption)
    found = f"{item.phrase or item.path} {item.score:.2f}, {cell_words(item.box, raster.width, raster.height)}"
    sheet.write(x, y + height + 0.05, caption, 8.5, INK)
    lines = caption.count("\n") + 1 if caption else 0
    sheet.write(x, y + height + 0.05 + 0.145 * lines, wrapped(int(side * LETTERS), found), 8.5, FAINT)


def _draw_overview(
    axes: Axes, raster: Raster, near: Sequence[tuple[int, Evidence]], others: Sequence[tuple[int, Evidence]], inch: float
) -> None:
    """The raster with all boxes; those of `near` in colours and with their numbers. inch: pixels of the raster in one."""
    extent = (0, raster.width, raster.height, 0)
    axes.imshow(_pixels(raster, (0, 0, raster.width, raster.height), OVERVIEW), extent=extent)
    axes.set_aspect("auto")
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.8)
    for _, item in others:
        draw_box(axes, visible(item.box, raster.width, raster.height, inch), "white", 1.2, THIN_HALO)
    drawn = np.array([visible(item.box, raster.width, raster.height, inch) for _, item in near]).reshape(-1, 4)
    draw_numbered(axes, drawn, [number for number, _ in near], BADGE * inch, raster.width, raster.height)
    axes.set(xlim=(0, raster.width), ylim=(raster.height, 0))
