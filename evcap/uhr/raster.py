"""Rasters of any size: windows of them as RGB pixels, read at the overview level that fits, and which pixels are valid."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError

os.environ.setdefault("GDAL_CACHEMAX", "128")  # megabytes of decoded blocks; GDAL would take 5 % of the machine's memory

import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

FORMATS = ("GTiff", "VRT", "JP2OpenJPEG", "PNG", "JPEG")
NEUTRAL = 128  # grey of pixels that are not valid


class RasterError(EvcapError):
    """A file that cannot be read as a raster, with the reason in one line."""


class Raster:
    """One GDAL handle. Each thread and each process opens its own."""

    def __init__(self, path: str | Path, bands: Sequence[int] | None = None):
        self.path = Path(path)
        self.notes: list[str] = []
        if not self.path.is_file():
            raise RasterError(f"{path}: there is no such file")
        with self._errors(), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._dataset = rasterio.open(os.path.abspath(path))
            self.width, self.height = self._dataset.width, self._dataset.height
            self.crs = self._dataset.crs
            self.transform = None if self._dataset.transform.is_identity else self._dataset.transform
        self._stat = self._state()
        count = self._dataset.count
        self._bands = list(bands or ([1, 2, 3] if count >= 3 else [1]))
        self._written: np.ndarray | None = None
        self._stretch = None if self._dataset.dtypes[0] == "uint8" else self._measure()

    @contextmanager
    def _errors(self):
        try:
            yield
        except RasterioError as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise RasterError(f"{self.path}: cannot be read ({' '.join(str(cause).split())})") from None

    def _state(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *caught) -> None:
        self.close()

    def close(self) -> None:
        self._dataset.close()

    def _measure(self):
        with self._errors():
            scale = max(self.width, self.height) / 1024
            size = max(1, round(self.width / max(scale, 1))), max(1, round(self.height / max(scale, 1)))
            data, valid = self._values((0, 0, self.width, self.height), size, Resampling.nearest)
        limits = []
        for band in data:
            values = band[valid & np.isfinite(band)]
            limits.append(np.percentile(values, (2, 98)) if values.size else (0, 1))
        return limits

    def _values(self, box, size, resampling):
        window = Window(box[0], box[1], box[2] - box[0], box[3] - box[1])
        shape = size[1], size[0]
        how = dict(window=window, out_shape=(len(self._bands), *shape), resampling=resampling)
        data = self._dataset.read(self._bands, **how)
        if all(MaskFlags.all_valid in self._dataset.mask_flag_enums[band - 1] for band in self._bands):
            valid = np.ones(shape, bool)
        else:
            valid = self._dataset.read_masks(self._bands, **how).any(axis=0)
        if data.dtype.kind == "f":
            valid &= np.isfinite(data).all(axis=0)
        return data, valid

    def read(self, box: Sequence[int], size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (h,w,3) uint8 and valid (h,w) bool of a box x1,y1,x2,y2 inside the image; size = (width, height)."""
        x1, y1, x2, y2 = map(int, box)
        if not (0 <= x1 < x2 <= self.width and 0 <= y1 < y2 <= self.height):
            raise ValueError(f"box {x1},{y1},{x2},{y2} is not inside {self.width} x {self.height} pixels")
        size = size or (x2 - x1, y2 - y1)
        resampling = Resampling.average if size[0] < x2 - x1 or size[1] < y2 - y1 else Resampling.bilinear
        with self._errors():
            data, valid = self._values((x1, y1, x2, y2), size, resampling)
        if self._stretch:
            scaled = [(b.astype(np.float32) - lo) * (255 / max(hi - lo, 1e-12)) for b, (lo, hi) in zip(data, self._stretch, strict=True)]
            data = np.clip(np.nan_to_num(np.rint(scaled)), 0, 255).astype(np.uint8)
        pixels = np.ascontiguousarray(np.broadcast_to(np.moveaxis(data, 0, 2), (size[1], size[0], 3)))
        pixels[~valid] = NEUTRAL
        return pixels, valid

    def empty(self, box: Sequence[int]) -> bool:
        """True only if it is certain, without decoding pixels, that nothing in the box is valid: no block was written."""
        if self._dataset.driver != "GTiff":
            return False
        high, wide = self._dataset.block_shapes[0]
        if self._written is None:
            rows, columns = -(-self.height // high), -(-self.width // wide)
            written = [
                [self._dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=1) is not None for x in range(columns)]
                for y in range(rows)
            ]
            self._written = np.array(written)
        x1, y1, x2, y2 = map(int, box)
        return not self._written[y1 // high : -(-y2 // high), x1 // wide : -(-x2 // wide)].any()

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the file."""
        digest = hashlib.sha256(repr((self._stat, self.width, self.height, self._dataset.dtypes, self._bands)).encode())
        with self.path.open("rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, self._stat[0] - (1 << 16)))
            digest.update(file.read(1 << 16))
        return digest.hexdigest()[:16]

    def check_unchanged(self) -> None:
        """Raises RasterError if the file changed since it was opened."""
        if self._state() != self._stat:
            raise RasterError(f"{self.path} changed while it was being read; start again")
