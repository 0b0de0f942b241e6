"""Regions that nobody named: the cells of a grid, and windows of a few sizes and shapes, of which the describer chooses.

There is no detector here: a window has the place and the shape that it was cut with, not those of an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evcap.raster.geo import suppress

if TYPE_CHECKING:
    from PIL import Image

    from evcap.regions.describe import RegionDescriber

SCALES = (1 / 3, 0.6)  # root of a window's share of the image
SHAPES = (0.5, 1.0, 2.0)  # width over height, times that of the image
STEP = 0.5  # of a window's side, from one to the next
OVERLAP = 0.5  # of the smaller one, above which two windows do not both stay


def grid_cells(width: int, height: int, rows: int, columns: int) -> list[tuple[int, int, int, int]]:
    """The image itself, then its cells row by row, (x1,y1,x2,y2) in pixels, none empty: in an image of fewer pixels than
    cells they overlap. A grid of one cell is the image alone."""
    whole = (0, 0, width, height)
    if rows * columns == 1:
        return [whole]
    across, down = _edges(width, columns), _edges(height, rows)
    return [whole, *((x1, y1, x2, y2) for y1, y2 in down for x1, x2 in across)]


def _edges(side: int, count: int) -> list[tuple[int, int]]:
    starts = [place * side // count for place in range(count)]
    return [(start, max((place + 1) * side // count, start + 1)) for place, start in enumerate(starts)]


def windows(width: int, height: int) -> np.ndarray:
    """Windows (N,4) int64 within an image of width x height pixels, x1,y1,x2,y2, none twice: all SCALES in all SHAPES, side
    by side in steps of half a window."""
    boxes = []
    for scale in SCALES:
        for shape in SHAPES:
            sides = [
                max(round(side * min(scale * stretch, 1)), 1) for side, stretch in ((width, shape**0.5), (height, shape**-0.5))
            ]
            across, down = (_starts(side, own) for side, own in zip((width, height), sides, strict=True))
            boxes += [(x, y, x + sides[0], y + sides[1]) for y in down for x in across]
    return np.array(list(dict.fromkeys(boxes)), np.int64)


def _starts(side: int, own: int) -> list[int]:
    """Where windows of one side begin, spread evenly from one end of the image to the other."""
    count = int(np.ceil((side - own) / (own * STEP))) + 1
    return np.linspace(0, side - own, count).round().astype(int).tolist()


def proposed(
    describer: RegionDescriber, image: Image.Image, most: int, batch_size: int = 32
) -> list[tuple[int, int, int, int]]:
    """At most `most` windows of an RGB image, best first: those in which the describer is surest of something, by greedy
    non-maximum suppression. Raises EvcapError for a describer without tags and classes."""
    boxes = windows(*image.size)
    kept = suppress(boxes, describer.certainty(image, boxes, batch_size), OVERLAP, most)
    return [tuple(box) for box in boxes[kept].tolist()]
