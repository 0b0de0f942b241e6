"""A page with an image whose boxes are outlined and numbered, which several drawings share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from evcap.errors import EvcapError
from evcap.files import replacing
from evcap.plots.names import COLOURS, INK
from evcap.plots.png import METADATA
from evcap.raster.geo import intersections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110
BADGE, SMALLEST = 0.24, 0.13  # inches of a number, and of the side of the smallest box drawn
HALO = [withStroke(linewidth=4, foreground="white")]  # visible on any ground


class Sheet:
    """A white page on which things are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set(xticks=[], yticks=[])
        return axes

    def write(self, x: float, y: float, text: str, size: float, colour: str, weight: str = "normal") -> None:
        style = {"fontsize": size, "color": colour, "fontweight": weight, "va": "top", "parse_math": False}
        self.figure.text(x / self.width, 1 - y / self.height, text, linespacing=1.25, **style)

    def save(self, path: str | Path) -> None:
        """Write it as a PNG. Raises EvcapError if the file cannot be written."""
        try:
            with replacing(path) as temporary:
                self.figure.savefig(temporary, format="png", metadata=METADATA)
        except OSError as error:
            raise EvcapError(f"cannot write {path}: {error.strerror}") from None


def colour_of(place: int) -> str:
    """The colour of the box in a place from 0 on."""
    return COLOURS[place % len(COLOURS)]


def draw_badge(axes: Axes, x: float, y: float, number: int, colour: str, **place) -> None:
    """A number in a circle."""
    label = {"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "white", "linewidth": 1.2}
    red, green, blue = to_rgb(colour)
    ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.68 else INK
    style = {"fontsize": 9.5, "fontweight": "bold", "color": ink, "ha": "center", "va": "center", "zorder": 5}
    axes.text(x, y, str(number), bbox=label, **style, **place)


def draw_box(axes: Axes, box: Sequence[float], colour: str, width: float, halo: list, style: str = "-") -> None:
    """The outline of x1,y1,x2,y2."""
    x1, y1, x2, y2 = box
    look = {"edgecolor": colour, "linewidth": width, "linestyle": style, "path_effects": halo}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))


def draw_numbered(axes: Axes, boxes: np.ndarray, numbers: Sequence[int], badge: float, width: int, height: int) -> None:
    """Boxes (n,4) of an image in their colours, the first on top, each with its number in a badge that keeps off the others.

    badge: its side, in pixels of the image as are width and height.
    """
    badges = np.empty((0, 4))
    for place, (box, number) in reversed(list(enumerate(zip(boxes, numbers, strict=True)))):
        colour = colour_of(place)
        taken = np.concatenate([badges, np.delete(boxes, place, axis=0)])
        x, y = free_place(box, taken, badge, width, height)
        badges = np.concatenate([badges, [square(x, y, badge)]])
        target = np.clip([x, y], box[:2], box[2:])
        axes.plot(*zip((x, y), target, strict=True), color=colour, linewidth=1.8, path_effects=HALO, zorder=3)
        draw_box(axes, box, colour, 2, HALO)
        draw_badge(axes, x, y, number, colour)


def visible(box: Sequence[float], width: int, height: int, inch: float) -> np.ndarray:
    """A box of at least SMALLEST around the same centre, inside the image where that is larger, (4,) float64.

    inch: pixels in one.
    """
    corner, size = np.array(box[:2], np.float64), np.subtract(box[2:], box[:2])
    grown = np.maximum(size, SMALLEST * inch)
    corner = np.clip(corner - (grown - size) / 2, 0, np.maximum([width, height] - grown, 0))
    return np.concatenate([corner, corner + grown])


def square(x: float, y: float, side: float) -> list[float]:
    """The box around a centre."""
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def free_place(box: np.ndarray, taken: np.ndarray, badge: float, width: int, height: int) -> tuple[float, float]:
    """Where a badge covers the fewest boxes and badges: on the corner of a large box, else around a small one."""
    x1, y1, x2, y2 = box
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    places = []
    if min(x2 - x1, y2 - y1) > 2 * badge:
        inset = 0.6 * badge
        places = [(x, y) for y in (y1 + inset, y2 - inset) for x in (x1 + inset, x2 - inset)]
    for away in (1.1, 2, 3.2):
        reach_x, reach_y = (x2 - x1) / 2 + away * badge, (y2 - y1) / 2 + away * badge
        around = [(1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (1, 0), (-1, 0), (0, 1)]
        places += [(middle_x + dx * reach_x, middle_y + dy * reach_y) for dx, dy in around]
    half = badge / 2
    places = [(float(np.clip(x, half, width - half)), float(np.clip(y, half, height - half))) for x, y in places]
    squares = np.array([square(x, y, badge) for x, y in places])
    covered = intersections(squares, np.concatenate([taken, box[None]]) if len(taken) else box[None])
    if min(x2 - x1, y2 - y1) > 2 * badge:
        covered[:, -1] = 0
    return places[int(covered.sum(1).argmin())]
