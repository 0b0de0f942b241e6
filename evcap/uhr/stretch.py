"""Values of more than 8 bits as 0..255: between two percentiles of each band, the same ones whoever opens the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evcap.uhr.blocks import Blocks

PERCENTILES = (2, 98)  # of the valid values of a band: what is below is black, above white, as GIS programs show such data
MOST_PIXELS = 1 << 24  # that are decoded to find them
FEWEST_BLOCKS = 4  # even of blocks so large that these are more
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, lie evenly over rows and columns, however many there are


def limits(read: Callable, width: int, height: int, overview: int, blocks: Blocks) -> np.ndarray:
    """(bands,2) float64: the values that become 0 and 255 in an image of width x height pixels.

    read(box, size): values (bands,h,w) and valid (h,w), by the nearest pixel. overview: factor of the coarsest overview, 1 if
    there is none. The whole image is looked at where its coarsest overview is small enough, else blocks that have content.
    """
    if width * height <= MOST_PIXELS * overview**2:
        factor = max(1.0, max(width, height) / 2048)
        parts = [read((0, 0, width, height), (max(1, int(width / factor)), max(1, int(height / factor))))]
    else:
        boxes = map(blocks.box, _spread(blocks.written(), max(FEWEST_BLOCKS, MOST_PIXELS // (blocks.width * blocks.height))))
        parts = [read((x1, y1, x2, y2), (-(-(x2 - x1) // 2), -(-(y2 - y1) // 2))) for x1, y1, x2, y2 in boxes]
    return np.array([_limits(np.concatenate([v[band][valid] for v, valid in parts])) for band in range(len(parts[0][0]))])


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these, spread evenly."""
    if len(numbers) <= count:
        return numbers
    return numbers[np.unique((np.arange(count) * GOLDEN % 1 * len(numbers)).astype(np.int64))]


def _limits(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    low, high = map(float, np.percentile(values, PERCENTILES))
    if low == high:  # nearly all pixels are alike: the others would all be black or white
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0


def stretch(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(bands,h,w) of any real type -> uint8, limits (bands,2) -> 0 and 255; NaN becomes 0."""
    exact = np.float64 if values.dtype.itemsize > 2 and values.dtype != np.float32 else np.float32
    low, high = limits.astype(exact).T[:, :, None, None]
    scaled = (values.astype(exact) - low) * (255 / (high - low))
    return np.nan_to_num(np.clip(np.rint(scaled), 0, 255), nan=0).astype(np.uint8)
