"""Small windows of rasters that are stored in rows, where GDAL decodes whole rows for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

LARGEST = 1 << 28  # bytes of a strip cache: the rows of 288-pixel tiles of an image 230,000 pixels wide
PIECE = 1 << 22  # pixels that are made at once


class StripCache:
    """The rows below one row of tiles, as wide as the image, so that they are decoded once for all of its tiles.

    read(box, size): pixels (h,w,3) uint8 and valid (h,w) bool, as Raster.read, of a box that may have fractions.
    """

    def __init__(self, read: Callable, width: int):
        self._read, self._width = read, width
        self._key, self._pixels, self._valid = None, None, None

    def window(self, box: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """As Raster.read. Rows are kept at the whole factor below the scale asked for; from there on Pillow
        interpolates: positions are kept, and at most half of the scale is left."""
        x1, y1, x2, y2 = box
        factor = max(1, min((x2 - x1) // size[0], (y2 - y1) // size[1]))
        wide, high = -(-self._width // factor), -(-(y2 - y1) // factor)
        if (x1, x2) == (0, self._width) or wide * high * 4 > LARGEST:
            return self._read(box, size)
        if self._key != (y1, y2, factor):
            self._fill((y1, y2, factor), wide, high)
        left, right = x1 * wide / self._width, x2 * wide / self._width
        if left.is_integer() and (right - left, high) == size:
            cut = np.s_[:, int(left) : int(right)]
            return self._pixels[cut].copy(), self._valid[cut].copy()
        how = {"resample": Image.Resampling.BILINEAR, "box": (left, 0, right, high)}
        pixels = np.asarray(Image.fromarray(self._pixels).resize(size, **how))
        return pixels.copy(), np.asarray(Image.fromarray(self._valid.view(np.uint8) * 255).resize(size, **how)) > 0

    def _fill(self, key: tuple[int, int, int], wide: int, high: int) -> None:
        y1, y2, _ = key
        self._key = None  # while it is neither the old nor the new one
        self._pixels, self._valid = np.empty((high, wide, 3), np.uint8), np.empty((high, wide), bool)
        step = max(1, PIECE // wide)
        for top in range(0, high, step):
            bottom = min(top + step, high)
            rows = y1 + top * (y2 - y1) / high, y1 + bottom * (y2 - y1) / high
            piece = self._read((0, rows[0], self._width, rows[1]), (wide, bottom - top))
            self._pixels[top:bottom], self._valid[top:bottom] = piece
        self._key = key
