"""Patch plans: the boxes of the tiles of an image, by arithmetic alone, however large the image is.

`vit`, `grid` and `cc` divide as the public ImageRAG release does (arXiv 2411.07688): an axis is thought enlarged to a multiple
of the number of parts, cut there, and the cuts are scaled back and rounded down. `pyramid` is ours: square tiles of one size
in pixels, at every power of two from the whole image down to native detail.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from evcap.errors import EvcapError

MOST_CELLS = 100  # of grid and cc along an axis: 338,350 boxes, which are all made once to find those that coincide
MOST_OVERLAP = 0.9  # a hundred tiles over each pixel
# An overlap of a quarter: what is no longer than a quarter of a tile is whole in one of them, for 1.8 times the tiles.
DEFAULTS = {
    "vit": {"side": 448},
    "grid": {"cells": 10},
    "cc": {"cells": 20},
    "pyramid": {"side": 288, "overlap": 0.25},
}


@dataclass(frozen=True)
class Level:
    """Tiles `start` to `stop` (not included). One pixel of a tile shows `scale` pixels of full resolution, along the longer
    side of the level's boxes; 0 for grid and cc, whose tiles have no size of their own."""

    start: int
    stop: int
    scale: float


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of `size` pixels, measured on the axis enlarged to `grown` pixels: `tile` wide, each `stride`
    behind the one before, the last at the border."""

    size: int
    grown: int
    tile: int
    stride: int

    @property
    def count(self) -> int:
        return -(-(self.grown - self.tile) // self.stride) + 1

    def spans(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First pixel and the one behind the last, of these windows."""
        starts = np.minimum(numbers * self.stride, self.grown - self.tile)
        return starts * self.size // self.grown, (starts + self.tile) * self.size // self.grown

    def _last_from(self, position: np.ndarray) -> np.ndarray:
        """The last window that starts at or before `position`, -1 if none does."""
        inner = np.where(position < 0, -1, position // self.stride)
        return np.where(position >= self.grown - self.tile, self.count - 1, inner)

    def touching(self, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last of the windows whose middle lies in start..stop, or that are needed to cover it. For an axis that
        is not enlarged."""
        covering = self._last_from(start), self._last_from(stop - self.tile - 1) + 1
        inside = self._last_from((2 * start - self.tile - 1) // 2) + 1, self._last_from((2 * stop - self.tile - 1) // 2)
        return np.minimum(covering[0], inside[0]), np.maximum(np.minimum(covering[1], self.count - 1), inside[1])


class Plan:
    """The tiles of one image, numbered level by level, the coarsest first, and row by row within a level.

    Nothing proportional to the image is held. No two tiles have the same box and no box is empty: where an image is so small
    that boxes of grid or cc coincide, the first is kept.

    name: canonical, with all parameters: make_plan(name, width, height) makes the same plan.
    side: pixels of a tile at its level; 0 for grid and cc, whose boxes are stretched to whatever the encoder takes.
    """

    def __init__(self, name: str, width: int, height: int, side: int, axes: list[tuple[Axis, Axis]]):
        """axes: columns and rows of each level."""
        self.name, self.width, self.height, self.side = name, width, height, side
        self._axes = axes
        counts = [columns.count * rows.count for columns, rows in axes]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # of the levels, before any tile is left out
        self._kept = None if side else self._distinct()
        stops = self._starts if self._kept is None else np.searchsorted(self._kept, self._starts)
        self.levels = [
            Level(int(start), int(stop), self._scale(columns, rows))
            for (columns, rows), start, stop in zip(axes, stops, stops[1:], strict=False)
            if stop > start
        ]
        self._stops = np.array([level.stop for level in self.levels])

    def _scale(self, columns: Axis, rows: Axis) -> float:
        first = np.zeros(1, np.int64)
        return float(max(columns.spans(first)[1][0], rows.spans(first)[1][0])) / self.side if self.side else 0.0

    def _distinct(self) -> np.ndarray | None:
        """Of all tiles, those that are not empty and repeat no earlier one; None if that is all."""
        boxes = self._boxes(np.arange(self._starts[-1]))
        _, first = np.unique(boxes, axis=0, return_index=True)
        filled = (boxes[first, 2] > boxes[first, 0]) & (boxes[first, 3] > boxes[first, 1])
        kept = np.sort(first[filled])
        return None if len(kept) == len(boxes) else kept

    def __len__(self) -> int:
        return int(self._stops[-1])

    def _checked(self, numbers: np.ndarray | slice | None) -> np.ndarray:
        if numbers is None or isinstance(numbers, slice):
            return np.arange(*(numbers or slice(None)).indices(len(self)), dtype=np.int64)
        numbers = np.atleast_1d(np.asarray(numbers, np.int64))
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"tiles {numbers.min()} to {numbers.max()} of a plan with {len(self)}")
        return numbers

    def boxes(self, numbers: np.ndarray | slice | None = None) -> np.ndarray:
        """(n,4) int64: x1, y1, x2, y2 in pixels of full resolution, half-open, of these tiles, all unless told.

        Raises IndexError for numbers outside 0..len-1.
        """
        numbers = self._checked(numbers)
        return self._boxes(numbers if self._kept is None else self._kept[numbers])

    def _boxes(self, numbers: np.ndarray) -> np.ndarray:
        boxes = np.empty((len(numbers), 4), np.int64)
        levels = np.searchsorted(self._starts[1:], numbers, side="right")
        for level in np.unique(levels):
            here = np.flatnonzero(levels == level)
            columns, rows = self._axes[level]
            row, column = np.divmod(numbers[here] - self._starts[level], columns.count)
            boxes[here, 0], boxes[here, 2] = columns.spans(column)
            boxes[here, 1], boxes[here, 3] = rows.spans(row)
        return boxes

    def level_of(self, numbers: np.ndarray | slice | None = None) -> np.ndarray:
        """(n,) int64: index into `levels` of these tiles, all unless told. Raises IndexError as `boxes` does."""
        return np.searchsorted(self._stops, self._checked(numbers), side="right")

    def children(self, numbers: np.ndarray | slice | None = None) -> np.ndarray:
        """(m,) int64, sorted, each once: the tiles of the next finer level that show what these tiles show. Those are the
        ones whose middle lies in one of these tiles, and the ones that are needed beside them to cover it.

        Of a pyramid only, ValueError otherwise. Tiles of the finest level have none.
        """
        if not self.name.startswith("pyramid"):
            raise ValueError(f"tiles of {self.name} have no children")
        numbers = self._checked(numbers)
        levels, boxes = self.level_of(numbers), self.boxes(numbers)
        found = [np.empty(0, np.int64)]
        for level in np.unique(levels[levels < len(self.levels) - 1]):
            columns, rows = self._axes[level + 1]
            x1, y1, x2, y2 = boxes[levels == level].T
            row, column = _ranges(*rows.touching(y1, y2)), _ranges(*columns.touching(x1, x2))
            inside = (row >= 0)[:, :, None] & (column >= 0)[:, None, :]
            found.append(self._starts[level + 1] + (row[:, :, None] * columns.count + column[:, None, :])[inside])
        return np.unique(np.concatenate(found))


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(n,longest): first[i]..last[i] in row i, then -1."""
    steps = first[:, None] + np.arange((last - first).max() + 1)
    return np.where(steps <= last[:, None], steps, -1)


def make_plan(name: str, width: int, height: int, **options) -> Plan:
    """The plan of an image of width x height pixels.

    name: "vit" (side=448), "grid" (cells=10), "cc" (cells=20), "pyramid" (side=288, overlap=0.25), or a canonical name, which
    has its options in it: vit-448, grid-10, cc-20, pyramid-288-0.25. overlap: share of a tile's side that it has in common
    with the next one. Raises EvcapError for a name or option that is not one of these.
    """
    kind, chosen = _parse(name, options)
    if min(width, height) < 1:
        raise EvcapError(f"an image of {width} x {height} pixels has no tiles")
    first, *rest = chosen.values()
    if kind == "pyramid":
        return Plan(f"pyramid-{first}-{rest[0]:g}", width, height, first, list(_pyramid(width, height, first, rest[0])))
    if kind == "vit":
        return Plan(
            f"vit-{first}", width, height, first, [(_cells(width, -(-width // first)), _cells(height, -(-height // first)))]
        )
    axes = [(_cells(width, n), _cells(height, n)) for n in range(1, first + 1)] if kind == "grid" else _cc(width, height, first)
    return Plan(f"{kind}-{first}", width, height, 0, axes)


def _parse(name: str, options: dict) -> tuple[str, dict]:
    kind, *values = name.split("-")
    known = DEFAULTS.get(kind)
    if known is None:
        raise EvcapError(f"there is no plan '{name}', but {', '.join(DEFAULTS)}")
    if set(options) - set(known) or (values and (options or len(values) != len(known))):
        example = "-".join([kind, *map(str, known.values())])
        raise EvcapError(f"plan '{name}' takes {' and '.join(known)}, as in {example}; not {values or options}")
    if any(not re.fullmatch(r"\d+(\.\d+)?", value) for value in values):
        raise EvcapError(f"plan '{name}': {' and '.join(known)} must be numbers")
    given = dict(zip(known, values, strict=True)) if values else options
    try:
        chosen = {key: type(default)(given.get(key, default)) for key, default in known.items()}
    except ValueError:
        raise EvcapError(f"plan '{name}': {' and '.join(known)} must be numbers") from None
    if chosen.get("side", 1) < 1:
        raise EvcapError(f"plan '{name}': side must be at least 1 pixel")
    if not 1 <= chosen.get("cells", 1) <= MOST_CELLS:
        raise EvcapError(f"plan '{name}': cells must be 1 to {MOST_CELLS}")
    if not 0 <= chosen.get("overlap", 0) <= MOST_OVERLAP:
        raise EvcapError(f"plan '{name}': overlap must be 0 to {MOST_OVERLAP}")
    return kind, chosen


def _cells(size: int, count: int) -> Axis:
    """An axis cut into equal cells."""
    part = -(-size // count)
    return Axis(size, part * count, part, part)


def _cc(width: int, height: int, cells: int) -> list[tuple[Axis, Axis]]:
    """Windows that shrink from the whole axis by one of `cells` units a level, to one unit, and lie nearly side by side. Of
    levels with equally many windows the last is kept."""

    def axis(size: int, level: int) -> Axis:
        unit = -(-size // cells)
        kernel = unit * (cells - level)
        return Axis(size, unit * cells, kernel, kernel - (cells - level) + 1)

    levels = [(axis(width, level), axis(height, level)) for level in range(cells)]
    return list({columns.count * rows.count: (columns, rows) for columns, rows in levels}.values())


def _pyramid(width: int, height: int, side: int, overlap: float):
    """Columns and rows of each level, the coarsest first.

    A level between the whole image and native detail whose tiles would be longer than the image's shorter side is left
    out: its tiles could not be square.
    """
    stride = max(1, side - round(side * overlap))
    top = max(0, (-(-max(width, height) // side) - 1).bit_length())
    for power in range(top, -1, -1):
        tile = side << power
        if power in (0, top) or tile <= min(width, height):
            yield tuple(Axis(size, size, min(tile, size), stride << power) for size in (width, height))
