"""The blocks (tiles or strips) a raster is stored in, and which of them hold nothing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

TRAILER = 4  # bytes that follow each block in a Cloud Optimized GeoTIFF


class Blocks:
    """width, height: of a block in pixels; columns, rows: how many there are. Blocks are numbered row by row."""

    def __init__(self, dataset: DatasetReader, bands: Sequence[int]):
        self.height, self.width = dataset.block_shapes[bands[0] - 1]
        self.columns, self.rows = -(-dataset.width // self.width), -(-dataset.height // self.height)
        self._dataset, self._bands = dataset, bands

    @cached_property
    def _sums(self) -> np.ndarray | None:
        """(rows+1,columns+1) int64: how many blocks above and left of each corner were written; None if all were, or nobody
        knows. Only tiled TIFF tells: GDAL cuts large strips in a way that its block numbers do not show."""
        if self._dataset.driver != "GTiff" or not self._dataset.profile.get("tiled"):
            return None
        written = np.array([[self._is_written(x, y) for x in range(self.columns)] for y in range(self.rows)])
        return None if written.all() else np.pad(written.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def _is_written(self, column: int, row: int) -> bool:
        name = f"BLOCK_OFFSET_{column}_{row}"
        return any(self._dataset.get_tag_item(name, "TIFF", bidx=band) is not None for band in self._bands)

    def _end(self, column: int, row: int, band: int) -> int:
        names = (f"BLOCK_{what}_{column}_{row}" for what in ("OFFSET", "SIZE"))
        where = [self._dataset.get_tag_item(name, "TIFF", bidx=band) for name in names]
        return sum(map(int, where)) if all(where) else 0

    def last_byte(self) -> int:
        """The byte at which the last block of a TIFF ends, 0 if it was not written."""
        return self._end(self.columns - 1, self.rows - 1, self._bands[-1])

    def ends(self) -> dict[tuple[int, int], int]:
        """Row and column of each block of a TIFF that was written -> the byte at which it ends, of all bands the last."""
        places = ((row, column) for row in range(self.rows) for column in range(self.columns))
        found = {place: max(self._end(place[1], place[0], band) for band in self._bands) for place in places}
        return {place: end for place, end in found.items() if end}

    def box(self, number: int) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 of a block, inside the image."""
        row, column = divmod(int(number), self.columns)
        x, y = column * self.width, row * self.height
        return x, y, min(x + self.width, self._dataset.width), min(y + self.height, self._dataset.height)

    def written(self) -> np.ndarray:
        """(n,) int64: numbers of the blocks that have content, all if that is not known."""
        everything = np.arange(self.rows * self.columns)
        return everything if self._sums is None else np.flatnonzero(np.diff(np.diff(self._sums, axis=0), axis=1))

    def empty(self, boxes: np.ndarray) -> np.ndarray:
        """(n,) bool for boxes (n,4) of whole numbers: whether no block that the box touches was written."""
        if self._sums is None:
            return np.zeros(len(boxes), bool)
        size = self.width, self.height
        (left, top), (right, bottom) = (boxes[:, :2] // size).T, (-(-boxes[:, 2:] // size)).T
        sums = self._sums
        return sums[bottom, right] - sums[bottom, left] - sums[top, right] + sums[top, left] == 0

    def filled(self, box: Sequence[float], size: tuple[int, int]) -> np.ndarray | None:
        """(h,w) bool for an answer of size (w, h) about a box: whether a block below each pixel was written; None if all."""
        if self._sums is None:
            return None
        left, right = self._span(box[0], box[2], size[0], self.width, self.columns)
        top, bottom = self._span(box[1], box[3], size[1], self.height, self.rows)
        sums = self._sums
        return sums[bottom][:, right] - sums[bottom][:, left] - sums[top][:, right] + sums[top][:, left] > 0

    @staticmethod
    def _span(start: float, stop: float, count: int, block: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
        """First block under each of `count` equal parts of start..stop, and the one behind the last."""
        edges = start + np.arange(count + 1) * (stop - start) / count
        first = (edges[:-1] // block).astype(np.int64)
        return first, np.clip(np.ceil(edges[1:] / block).astype(np.int64), first + 1, blocks)


def is_whole(path: Path, occupied: list[set[tuple[int, int]]] | None = None) -> bool:
    """Whether a Cloud Optimized GeoTIFF goes as far as its blocks, those of all levels, bands and masks.

    GDAL says nothing when the last of what it writes does not fit on the disk. A block that was left out, as blocks without
    content are, is not missed, unless occupied says which there must be: row and column, a set for each level from the
    finest, in a file without masks. Raises rasterio.errors.RasterioIOError for what is no TIFF.
    """
    import rasterio
    from rasterio.enums import MaskFlags
    from rasterio.errors import NotGeoreferencedWarning

    size, found = path.stat().st_size, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # levels and masks have no place of their own
        with rasterio.open(path) as file:
            masked = file.mask_flag_enums[0] == [MaskFlags.per_dataset]
            images = (1 + len(file.overviews(1))) * (2 if masked else 1)
        for number in range(1, images + 1):
            with rasterio.open(f"GTIFF_DIR:{number}:{path.absolute()}") as image:
                ends = Blocks(image, image.indexes).ends()
            if max(ends.values(), default=0) + TRAILER > size:
                return False
            found.append(set(ends))
    return occupied is None or found == occupied
