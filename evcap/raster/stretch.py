"""Values of more than 8 bits as 0..255: between two percentiles of each band, the same ones whoever opens the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evcap.raster.blocks import Blocks

PERCENTILES = (2, 98)  # of the valid values of a band: what is below is black, above white, as GIS programs show such data
MOST_PIXELS = 1 << 25  # that are decoded to find them
STEP = 4  # of a block's pixels every fourth is looked at, of every fourth row
FEWEST_BLOCKS = 4  # even of blocks so large that these are more
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, lie evenly over rows and columns, however many there are


def limits(
    read: Callable, width: int, height: int, overview: int, blocks: Blocks, percentiles: tuple[float, float] = PERCENTILES
) -> np.ndarray:
    """(bands,2) float64: the values that become 0 and 255 in an image of width x height pixels.

    read(box, size): values (bands,h,w) and valid (h,w), by the nearest pixel. overview: factor of the coarsest overview, 1 if
    there is none. The whole image is looked at where its coarsest overview is small enough, else blocks of it, from those on
    that have content.
    """
    if width * height <= MOST_PIXELS * overview**2:
        boxes, factor = [(0, 0, width, height)], max(1.0, max(width, height) / 2048)
    else:
        numbers = _spread(blocks.written(), max(FEWEST_BLOCKS, MOST_PIXELS // (blocks.width * blocks.height)))
        corners = [blocks.box(number)[:2] for number in numbers]
        wide, high = blocks.width * overview, blocks.height * overview
        boxes, factor = [(x, y, min(x + wide, width), min(y + high, height)) for x, y in corners], STEP * overview
    parts = [read(box, (max(1, int((box[2] - box[0]) / factor)), max(1, int((box[3] - box[1]) / factor)))) for box in boxes]
    every = (np.concatenate([v[band][valid] for v, valid in parts]) for band in range(len(parts[0][0])))
    return np.array([_limits(values, percentiles) for values in every])


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these, spread evenly."""
    if len(numbers) <= count:
        return numbers
    return numbers[np.unique(((np.arange(count) + 0.5) * GOLDEN % 1 * len(numbers)).astype(np.int64))]


def _limits(values: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = map(float, np.percentile(values, percentiles))
    if low == high:  # nearly all pixels are alike: the others would all be black or white
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0


def stretched(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(bands,h,w) of any real type -> uint8, limits (bands,2) -> 0 and 255; NaN becomes 0."""
    exact = np.float64 if values.dtype.itemsize > 2 and values.dtype != np.float32 else np.float32
    low, high = limits.astype(exact).T[:, :, None, None]
    scaled = (values.astype(exact) - low) * (255 / (high - low))
    return np.nan_to_num(np.clip(np.rint(scaled), 0, 255), nan=0).astype(np.uint8)
