"""The image of a retrieval: the photo, its names with similarity bars, where the query behind each name looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from evcap.errors import EvcapError
from evcap.files import replacing
from evcap.plots.png import METADATA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from evcap.memory.ranking import RetrievedName

COLOURS = [  # one a name, Tableau 10 in an order whose neighbours differ
    "#e15759", "#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#ff9da7", "#9c755f", "#8c8c8c",
]  # fmt: skip
COLUMNS = 5
WIDTH = 12.0  # inches
INK, FAINT = "#222222", "#777777"


def draw_names(image: Image.Image, names: Sequence[RetrievedName], attention: np.ndarray, path: str | Path) -> None:
    """Write the PNG `path`.

    image: the photo, RGB. names: as retrieved, best first. attention: (queries,rows,columns) float32, for each query
    how much it looked at each cell of the image, summing to 1. Raises EvcapError if the file cannot be written.
    """
    image = image.copy()
    image.thumbnail((1200, 1200))
    rows = -(-len(names) // COLUMNS)
    tile = WIDTH / COLUMNS * min(max(image.height / image.width, 0.4), 1.4) + 0.3
    heights = [4.6, *[tile] * rows]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=110, facecolor="white", layout="constrained")
    top, *strips = np.atleast_1d(figure.subfigures(1 + rows, 1, height_ratios=heights))
    photo, bars = top.subplots(1, 2, width_ratios=[1.25, 1])
    photo.imshow(image)
    photo.set_axis_off()
    _draw_bars(bars, names)
    for row, strip in enumerate(strips):
        tiles = strip.subplots(1, COLUMNS)
        for column, axes in enumerate(tiles):
            axes.set_axis_off()
            rank = row * COLUMNS + column
            if rank < len(names):
                hit = names[rank]
                axes.set_title(f"{_short(hit.name)}  ·  query {hit.query}", fontsize=9, color=INK, parse_math=False)
                _draw_heat(axes, image, attention[hit.query], COLOURS[rank % len(COLOURS)])
    try:
        with replacing(path) as file:
            figure.savefig(file, format="png", metadata=METADATA)
    except OSError as error:
        raise EvcapError(f"cannot write {path}: {error.strerror}") from None


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _draw_bars(axes: Axes, names: Sequence[RetrievedName]) -> None:
    axes.set_title("names from the memory, best first, and their cosine similarity", fontsize=10, color=FAINT, loc="left")
    similarity = [hit.similarity for hit in names]
    bars = axes.barh(range(len(names)), similarity, color=[COLOURS[i % len(COLOURS)] for i in range(len(names))])
    axes.bar_label(bars, [f"{value:.2f}" for value in similarity], padding=4, fontsize=10, color=INK)
    axes.set_yticks(range(len(names)), [_short(hit.name) for hit in names], fontsize=11, color=INK, parse_math=False)
    axes.set_xlim(min([0.0, *similarity]), max([0.1, *similarity]) * 1.15)
    axes.set_xticks([])
    axes.set_ylim(max(len(names), 6) - 0.4, -0.6)  # best on top
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    if not names:
        axes.text(0.05, 1.5, "the memory gave no names", fontsize=11, color=INK)


def _draw_heat(axes: Axes, image: Image.Image, heat: np.ndarray, colour: str) -> None:
    """The photo in grey under contours of `heat` (rows,columns): 0 is an even look at everything, 1 the peak."""
    grey = np.asarray(image.convert("L"), np.float32) / 255
    axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
    size = (max(image.width // 4, 2), max(image.height // 4, 2))
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    smooth = (smooth - heat.mean()) / max(float(smooth.max() - heat.mean()), 1e-12)
    fade = LinearSegmentedColormap.from_list("fade", [(*to_rgb(colour), 0.0), (*to_rgb(colour), 0.85)])
    x, y = ((np.arange(count) + 0.5) * full / count - 0.5 for count, full in zip(size, image.size, strict=True))
    levels = [0.2, 0.4, 0.6, 0.8, 1.01]
    axes.contourf(x, y, smooth, levels, cmap=fade, vmin=0.1, vmax=1)
    axes.contour(x, y, smooth, levels[:-1], colors=colour, linewidths=[0.6, 0.9, 1.2, 1.5])
