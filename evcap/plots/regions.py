"""The image of described regions: the photo with numbered boxes and the views that were looked at, beside it what is said."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patheffects import withStroke

from evcap.plots.names import FAINT, INK
from evcap.plots.sheet import BADGE, Sheet, colour_of, draw_badge, draw_box, draw_numbered, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

    from evcap.regions.describe import RegionDescription

MOST = 40  # regions that are drawn
COLUMNS = 3  # of texts, at most
PIXELS = 1400  # of the longer side
# in inches
PHOTO = (8.0, 8.0)
NARROWEST = 1.0
TEXT, MARGIN, GAP, LINE = 4.4, 0.25, 0.3, 0.3  # TEXT: width of what is said
INDENT = 0.38  # of the text behind its number
CAPTION, ABOUT = (10.5, 0.19, 44), (8.5, 0.155, 54)  # points, inches of a line, letters in one
BETWEEN = 0.14
VIEW_HALO = [withStroke(linewidth=2.0, foreground="white")]


def draw_regions(path: str | Path, image: Image.Image, regions: Sequence[tuple[str, RegionDescription]]) -> None:
    """Write the PNG `path`: the first MOST regions numbered in their colours, dashed the views around them, short of the
    whole image; beside the image each caption with its class, tags and names.

    image: RGB. regions: the id of each, told where it is not its number, and what is said of it, its box in pixels of the
    image. Raises EvcapError if the file cannot be written.
    """
    drawn = regions[:MOST]
    texts = [_texts(number, key, said) for number, (key, said) in enumerate(drawn, 1)]
    scale = min(PHOTO[0] / image.width, PHOTO[1] / image.height)
    width, height = (max(side * scale, NARROWEST) for side in image.size)
    places, columns, depth = _flow([_depth(text) for text in texts], height)
    rest = f"{len(regions) - MOST:,} more are not drawn." if len(regions) > MOST else ""
    depth = max(height + (LINE if rest else 0), depth)
    sheet = Sheet(MARGIN + width + columns * (GAP + TEXT) + MARGIN, depth + 2 * MARGIN)
    axes = sheet.axes(MARGIN, MARGIN, width, height)
    _draw_boxes(axes, image, [said for _, said in drawn], max(image.size) / max(width, height))
    sheet.write(MARGIN, MARGIN + height + 0.07, rest, ABOUT[0], FAINT)
    page = sheet.axes(0, 0, sheet.width, sheet.height)  # of the numbers beside the texts, in inches
    page.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    page.set_axis_off()
    for place, (text, (column, down)) in enumerate(zip(texts, places, strict=True)):
        x, y = MARGIN + width + GAP + column * (TEXT + GAP), MARGIN + down
        draw_badge(page, x + BADGE / 2, y + BADGE / 2, place + 1, colour_of(place))
        _write(sheet, x + INDENT, y, text)
    sheet.save(path)


def _flow(depths: Sequence[float], height: float) -> tuple[list[tuple[int, float]], int, float]:
    """Where texts of so many inches stand, one below the other in at most COLUMNS columns as high as the photo, if they fit:
    (column, inches from the top) of each, how many columns, and how high they are."""
    own = [depth + BETWEEN for depth in depths]
    room = max(height, sum(own) / COLUMNS + max(own, default=0))  # so that no column after the last is begun
    places, column, down, lowest = [], 0, 0.0, 0.0
    for depth in own:
        if down and down + depth - BETWEEN > room:
            column, down = column + 1, 0.0
        places.append((column, down))
        down += depth
        lowest = max(lowest, down - BETWEEN)
    return places, column + 1, lowest


def _texts(number: int, key: str, said: RegionDescription) -> tuple[list[str], list[str]]:
    """The lines of the caption, and those in small print."""
    first = [f"class: {said.class_name}" if said.class_name else "", f"id {key}" if key and key != str(number) else ""]
    about = [
        "  ·  ".join(filter(None, first)),
        f"tags: {', '.join(said.tags)}" if said.tags else "",
        f"names: {', '.join(name.name for name in said.names)}" if said.names else "",
    ]
    return _wrapped(said.caption or "(no words)", CAPTION[2], 3), [
        line for text in about for line in _wrapped(text, ABOUT[2], 2)
    ]


def _wrapped(text: str, letters: int, most: int) -> list[str]:
    return textwrap.wrap(text, letters, max_lines=most, placeholder=" ...")


def _depth(text: tuple[list[str], list[str]]) -> float:
    """Inches of what is said of one region."""
    return max(sum(len(lines) * style[1] for lines, style in zip(text, (CAPTION, ABOUT), strict=True)), BADGE)


def _write(sheet: Sheet, x: float, y: float, text: tuple[list[str], list[str]]) -> None:
    for lines, (size, line, _), colour, weight in zip(text, (CAPTION, ABOUT), (INK, FAINT), ("bold", "normal"), strict=True):
        for words in lines:
            sheet.write(x, y, words, size, colour, weight)
            y += line


def _draw_boxes(axes: Axes, image: Image.Image, regions: Sequence[RegionDescription], inch: float) -> None:
    """The image with all boxes, the first on top. inch: pixels of the image in one."""
    small = image.copy()
    small.thumbnail((PIXELS, PIXELS))
    axes.imshow(np.asarray(small), extent=(0, image.width, image.height, 0))
    axes.set_aspect("auto")
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.8)
    for place, said in enumerate(regions):
        for view in _views(said, *image.size):
            draw_box(axes, view, colour_of(place), 1.2, VIEW_HALO, (0, (4, 3)))
    boxes = np.array([visible(said.box, *image.size, inch) for said in regions]).reshape(-1, 4)
    draw_numbered(axes, boxes, range(1, len(boxes) + 1), BADGE * inch, *image.size)
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))


def _views(said: RegionDescription, width: int, height: int) -> np.ndarray:
    """The views (V,4) between the region and the whole image, in pixels."""
    from evcap.regions.views import view_boxes

    between = [t for t in said.views if 0 < t < 1]
    return view_boxes(np.array([said.box], np.float32), np.array(between, np.float32), width, height)[0]
