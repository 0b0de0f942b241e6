"""Tiles of a plan, read ahead of the model: neighbours with one read, in the order of the file, none that is empty."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import rasterio

from evcap.gigapixel.tiles.plans import Plan
from evcap.prefetch import prefetched
from evcap.raster.raster import Raster, RasterError

SPAN = 2304  # pixels, at its level, of the square whose tiles are read at once: eight tiles of 288
WIDEST = 1 << 23  # pixels read at once of a file that is stored in rows: 29,000 in each of 288 rows
SPARSE = 4  # tiles that fill less than one part in so many of their square are read one by one
DECODERS = min(4, os.cpu_count() or 1)  # threads of GDAL, for a moment each time a square is read
AHEAD = 3  # squares that are read or wait to be taken


@dataclass(frozen=True)
class Tiles:
    """What was read at once. numbers (n,) int64: tiles with something valid; pixels: (h,w,3) uint8 of each, views of one
    array; empty (m,) int64: tiles without a valid pixel."""

    numbers: np.ndarray
    pixels: list[np.ndarray]
    empty: np.ndarray


def squares(plan: Plan, numbers: np.ndarray, raster: Raster) -> Iterator[np.ndarray]:
    """Numbers (n,) int64 of tiles that are read at once, all of one level: level by level, then row by row of squares.

    A square begins where a block of the file does. Of a file in rows, its tiles of one row are a square, and boxes of plans
    without a tile size are read one by one.
    """
    numbers = np.sort(numbers)
    for level in plan.levels:
        here = numbers[np.searchsorted(numbers, level.start) : np.searchsorted(numbers, level.stop)]
        if not plan.side:
            yield from here[:, None]
        elif len(here):
            x, y = plan.boxes(here).T[:2]
            scale = max(1.0, level.scale)
            wide, high = (_span(block) * scale for block in raster.block)
            if raster.striped:
                wide, high = max(1, WIDEST // plan.side) * scale, 1
            # the last tiles of a row or column may begin between two pixels of the overview: they are not cut from what
            # the others are cut from
            keys = np.column_stack([y // high, x // wide, y % scale, x % scale])
            order = np.lexsort(keys.T[::-1])
            yield from np.split(here[order], np.flatnonzero(np.diff(keys[order], axis=0).any(1)) + 1)


def _span(block: int) -> int:
    """As many whole blocks as come nearest to SPAN."""
    return max(1, round(SPAN / block)) * block if block <= 2 * SPAN else SPAN


def read_square(raster: Raster, plan: Plan, numbers: np.ndarray, side: int) -> Tiles:
    """Read tiles of one level, at its resolution and never larger than the file has them, with one read if they are neighbours.

    side: pixels to which boxes of plans without a tile size are reduced. Raises RasterError.
    """
    boxes = plan.boxes(numbers)
    (left, top), (right, bottom) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if len(numbers) > 1 and (right - left) * (bottom - top) > SPARSE * areas.sum():
        return _joined([read_square(raster, plan, numbers[[row]], side) for row in range(len(numbers))])
    if not plan.side:
        pixels, valid = raster.read(boxes[0], (min(right - left, side), min(bottom - top, side)))
        return _told(numbers, [pixels], np.array([valid.any()]))
    scale = max(1.0, plan.levels[int(plan.level_of(numbers[:1])[0])].scale)
    size = max(1, round((right - left) / scale)), max(1, round((bottom - top) / scale))
    pixels, valid = raster.read((left, top, right, bottom), size)
    edges = np.rint((boxes - (left, top, left, top)) / scale).astype(int).tolist()
    cuts = [np.s_[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] for x1, y1, x2, y2 in edges]
    whole = bool(valid.all())
    found = np.array([whole or bool(valid[cut].any()) for cut in cuts])
    return _told(numbers, [pixels[cut] for cut in cuts], found)


def _told(numbers: np.ndarray, pixels: list[np.ndarray], found: np.ndarray) -> Tiles:
    return Tiles(numbers[found], [tile for tile, kept in zip(pixels, found, strict=True) if kept], numbers[~found])


def _joined(parts: list[Tiles]) -> Tiles:
    numbers, empty = (np.concatenate([getattr(part, name) for part in parts]) for name in ("numbers", "empty"))
    return Tiles(numbers, [tile for part in parts for tile in part.pixels], empty)


def read_ahead(raster: Raster, plan: Plan, groups: Iterable[np.ndarray], side: int) -> Iterator[Tiles]:
    """Each of `groups`, as `squares` gives them, in their order, read in a thread while the caller is busy with those before.

    raster: which file; the thread has a handle of its own. Raises RasterError, also when the file changed since `raster`
    was opened. Close the iterator to stop.
    """

    def read(numbers: np.ndarray) -> Tiles:
        tiles = read_square(handle, plan, numbers, side)
        handle.check_unchanged()
        return tiles

    # One thread and one handle, so that squares side by side share decoded blocks and rows; GDAL decodes in several threads.
    with _reopened(raster) as handle, closing(prefetched(read, groups, AHEAD, threads=1)) as tiles:
        yield from tiles


def _reopened(raster: Raster) -> Raster:
    with rasterio.Env(GDAL_NUM_THREADS=DECODERS):
        handle = raster.reopened()
    try:
        raster.check_unchanged()
    except RasterError:
        handle.close()
        raise
    return handle
