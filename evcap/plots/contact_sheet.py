"""An image of a scored run: its best, median and worst captions, or some of them numbered."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evcap.files import replacing
from evcap.images.opening import open_image

BANDS = {"best": "tab:green", "median": "tab:blue", "worst": "tab:red"}
FRAME = (400, 300)  # pixels of one image
COLUMN, CAPTION_LETTERS, SMALL_LETTERS = 4, 35, 44  # width of a column: inches, letters of the caption and of what is below


@dataclass(frozen=True)
class Scored:
    """One captioned image with its score (CIDEr, percent), one reference and the names its memory gave."""

    path: Path
    caption: str
    score: float
    reference: str
    names: list[str]


def choose(rows: Sequence[Scored], columns: int) -> dict[str, list[Scored]]:
    """The best, median and worst `columns` rows by score, each best first; fewer where rows would appear twice."""
    ranked = sorted(rows, key=lambda row: -row.score)
    columns = max(1, min(columns, len(ranked) // 3))
    starts = {"best": 0, "median": (len(ranked) - columns) // 2, "worst": len(ranked) - columns}
    return {band: ranked[start : start + columns] for band, start in starts.items()}


def draw_numbered_sheet(rows: Sequence[Scored], output: str | Path, title: str, columns: int = 6) -> None:
    """Write a PNG of all rows in their order, numbered from 1, six beside each other. Raises as `draw_contact_sheet`."""
    from matplotlib.figure import Figure

    lines = [list(range(start, min(start + columns, len(rows)))) for start in range(0, len(rows), columns)]
    texts = [[_texts(rows[i]) for i in line] for line in lines]
    heights = [_height(line) for line in texts]
    figure = Figure(figsize=(COLUMN * columns, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=17, fontweight="bold", parse_math=False)
    parts = figure.subfigures(len(lines), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, line, line_texts in zip(parts, lines, texts, strict=True):
        axes = part.subplots(1, columns, squeeze=False)[0]
        for axis, i, text in zip(axes, line, line_texts, strict=False):
            _draw(axis, rows[i], text, str(i + 1), "black")
        for axis in axes[len(line) :]:
            axis.axis("off")
    with replacing(output) as file:
        figure.savefig(file, dpi=70, format="png")


def draw_contact_sheet(rows: Sequence[Scored], output: str | Path, title: str, columns: int = 4) -> None:
    """Write a PNG, 400 pixels a column, of the `columns` best, median and worst images by score with their captions.

    Raises evcap.images.opening.ImageError for an image that does not open.
    """
    from matplotlib.figure import Figure

    bands = choose(rows, columns)
    columns = len(bands["best"])
    texts = [[_texts(row) for row in chosen] for chosen in bands.values()]
    heights = [_height(band_texts) for band_texts in texts]
    figure = Figure(figsize=(COLUMN * columns, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=17, fontweight="bold", parse_math=False)
    parts = figure.subfigures(3, 1, height_ratios=heights)
    for part, (band, chosen), band_texts in zip(parts, bands.items(), texts, strict=True):
        part.supylabel(band, fontsize=16, fontweight="bold", color=BANDS[band])
        axes = part.subplots(1, columns, squeeze=False)[0]
        for axis, row, text in zip(axes, chosen, band_texts, strict=True):
            _draw(axis, row, text, f"CIDEr {row.score:.0f}", BANDS[band])
    with replacing(output) as file:
        figure.savefig(file, dpi=100, format="png")


def _draw(axis, row: Scored, text: tuple[str, str], label: str, colour: str) -> None:
    """One image in a frame, its caption above, people's and the names below, a label in its corner."""
    from PIL import ImageOps

    axis.imshow(ImageOps.pad(open_image(row.path, FRAME[0]), FRAME, color="white"))
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)
    box = {"facecolor": colour, "edgecolor": "none"}
    axis.text(10, 14, label, va="top", fontsize=11, color="white", bbox=box)
    axis.set_title(text[0], fontsize=13, fontweight="bold", loc="left", parse_math=False)
    axis.set_xlabel(text[1], fontsize=11, loc="left", parse_math=False)


def _texts(row: Scored) -> tuple[str, str]:
    """What stands above and below an image."""
    below = wrapped(SMALL_LETTERS, f"people: {row.reference}", f"memory: {', '.join(row.names) or 'no names'}")
    return wrapped(CAPTION_LETTERS, row.caption), below


def _height(texts: Sequence[tuple[str, str]]) -> float:
    """Inches of a band: its images, 3.75 wide, and the most lines above and below one."""
    above, below = (max(text.count("\n") + 1 for text in side) for side in zip(*texts, strict=True))
    return 3.75 * FRAME[1] / FRAME[0] + 0.25 * above + 0.2 * below + 0.4


def wrapped(letters: int, *texts: str) -> str:
    """Texts one below the other, each in at most three lines of so many letters."""
    lines = [line for text in texts for line in textwrap.wrap(text, letters, max_lines=3, placeholder=" ...")]
    return "\n".join(lines)
