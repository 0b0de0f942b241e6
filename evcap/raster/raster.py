"""Rasters of any size: windows of them as RGB pixels, read at the overview level that fits, and which pixels are valid."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# GDAL keeps decoded blocks in 5 % of the machine's memory until the process ends. It looks here when it first needs them.
os.environ.setdefault("GDAL_CACHEMAX", "128")  # megabytes, of all handles together

import rasterio
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from evcap.errors import EvcapError
from evcap.raster.bands import choose_bands
from evcap.raster.blocks import Blocks
from evcap.raster.content import fingerprint_by_content, fingerprint_by_time
from evcap.raster.opening import RasterError, driver_of
from evcap.raster.remarks import remarks
from evcap.raster.stretch import PERCENTILES, limits, stretched
from evcap.raster.strip_cache import StripCache

# `notes` says it. Not around each opening: catch_warnings lets it through when several threads open files.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

NEUTRAL = 128  # grey of the pixels that are not valid
CACHED = 1 << 26  # bytes: images stored in rows up to this size stay decoded in GDAL's cache
LARGEST_BLOCK = 1 << 29  # bytes of a decoded block, of which GDAL cannot read a part
MOST_BLOCKS = 1 << 24  # of which all are looked at: 100,000 x 100,000 pixels in blocks of 25 x 25


class Raster:
    """A raster file, opened for reading: GeoTIFF, COG, BigTIFF, JPEG 2000, VRT (of local files of these formats), PNG, JPEG.

    Holds one GDAL handle: each thread and each process opens its own, and none is carried over a fork.

    bands: which one is grey, or which three are red, green and blue, counted from 1. Without it the bands named red, green
    and blue are taken, else the first three, or the first alone where there are fewer than three beside an alpha band.
    stretch: the percentiles of each band's valid values that become 0 and 255. Without it 8 bits are taken as they are, and
    other types are stretched from the 2nd to the 98th. A palette gives its colours either way.
    A pixel is valid if the file's mask, alpha band or nodata value says so for one of the bands, none of them is NaN or
    infinite there, and its block was written (sparse TIFF).
    Positions are those of the stored pixels: an EXIF orientation is not applied.

    orientation: its EXIF orientation, 1 if it is upright or nobody says.
    path; width, height: in pixels; notes: remarks for the user, one line each.
    crs: rasterio.crs.CRS, or None. transform: affine.Affine from pixels to it, rotated or not, or None if there is none.
    block: width and height of the blocks it is stored in, in pixels.
    striped: it is stored in rows, and too large to be kept decoded. `read` then decodes all rows below a box and keeps them:
    one Raster that is asked row by row, in the order of a plan's numbers, decodes each row once for all boxes above it.

    Raises RasterError, one line, for what cannot be read as a raster.
    """

    def __init__(self, path: str | Path, bands: Sequence[int] | None = None, stretch: tuple[float, float] | None = None):
        self.path = Path(path)
        driver = driver_of(self.path)
        self._states = {self.path.absolute(): _state(self.path)}
        with self._errors("cannot be opened"):
            self._dataset = rasterio.open(self.path.absolute(), driver=driver)
            self.crs, transform = self._dataset.crs, self._dataset.transform
            parts = [Path(name) for name in self._dataset.files]
            self.orientation = _orientation(self._dataset)
        # what GIS programs note about a file in .aux.xml changes no pixel
        self._states |= {part: _state(part) for part in parts[1:] if part.suffix != ".xml" and part.exists()}
        self.transform = None if transform.is_identity else transform
        self.width, self.height = self._dataset.width, self._dataset.height
        try:
            self._bands = choose_bands(self._dataset, bands)
        except EvcapError as error:
            raise RasterError(f"{path}: {error}") from None
        self._blocks = Blocks(self._dataset, self._bands.numbers)
        self.block = self._blocks.width, self._blocks.height
        self._check_blocks()
        self.striped = self._blocks.columns == 1 and self.width * self.height * self._bytes_a_pixel > CACHED
        self._shelf = StripCache(self._window, self.width)
        self.given_bands, self.given_stretch = bands, stretch
        self._limits = self._find_limits(stretch or PERCENTILES)
        self._inverted = self._bands.palette is None and self._dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        self.notes = remarks(self._dataset, self._bands, self._limits, self.striped, self.stretch)

    def _check_blocks(self) -> None:
        """That a block can be held, and that the file goes as far as its last one."""
        if self.block[0] * self.block[1] * self._bytes_a_pixel > LARGEST_BLOCK:
            raise RasterError(
                f"{self.path}: stored as blocks of {self.block[0]} x {self.block[1]} pixels, too large to read a part of; "
                "convert it with gdal_translate -co TILED=YES where there is memory"
            )
        if self._blocks.columns * self._blocks.rows > MOST_BLOCKS and not self._is_plain_vrt:
            raise RasterError(
                f"{self.path}: {self.width:,} x {self.height:,} pixels in blocks of {self.block[0]} x {self.block[1]} are too "
                "many; convert it to larger blocks, or cut a part out (gdal_translate -srcwin)"
            )
        end, size = self._blocks.last_byte(), self.path.stat().st_size
        if end > size:
            raise RasterError(f"{self.path}: cut short ({size:,} bytes, its last block ends at {end:,}); get a fresh copy")

    @property
    def bands(self) -> tuple[int, ...]:
        """The one that is grey, or those that are red, green and blue, counted from 1."""
        return self._bands.numbers

    @property
    def stretch(self) -> tuple[float, float] | None:
        """The percentiles that become 0 and 255, None for what is shown as it is."""
        return None if self._limits is None or self._bits < 8 else self.given_stretch or PERCENTILES

    def reopened(self) -> Raster:
        """Another handle of the same file, shown in the same way. Raises RasterError as opening does."""
        return Raster(self.path, self.bands, self.given_stretch)

    @property
    def _bits(self) -> int:
        """Of a number of 8 bits those that are used; 16 of all others."""
        first = self._bands.numbers[0]
        if self._dataset.dtypes[first - 1] != "uint8":
            return 16
        return int(self._dataset.tags(ns="IMAGE_STRUCTURE", bidx=first).get("NBITS", 8))

    @property
    def _is_plain_vrt(self) -> bool:
        """Whether nobody looks at all its blocks, however many they are."""
        return self._dataset.driver == "VRT" and self._bits == 8

    @property
    def _bytes_a_pixel(self) -> int:
        return self._dataset.count * np.dtype(self._dataset.dtypes[self._bands.numbers[0] - 1]).itemsize

    def _find_limits(self, percentiles: tuple[float, float]) -> np.ndarray | None:
        """(bands,2) float64: the values that become 0 and 255; None for those that are colours already."""
        first = self._bands.numbers[0]
        if self._bands.palette is not None:
            return None
        if self._bits < 8:
            return np.array([[0.0, 2.0**self._bits - 1]] * len(self._bands.numbers))
        if self._bits == 8 and self.given_stretch is None:
            return None
        coarsest = max([1, *self._dataset.overviews(first)])
        with self._errors("damaged or cut short"):
            return limits(self._nearest, self.width, self.height, coarsest, self._blocks, percentiles)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """GDAL's errors as one line; if the file has changed, that is the reason."""
        try:
            yield
        except (RasterioError, MemoryError, UnicodeError) as error:
            self.check_unchanged()
            reason = error
            while reason.__cause__ is not None:  # GDAL's own words
                reason = reason.__cause__
            said = " ".join(str(reason).split()).split(" (this error can")[0]
            raise RasterError(f"{self.path}: {what} ({said}); get a fresh copy") from None

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *caught) -> None:
        self.close()

    def close(self) -> None:
        self._dataset.close()

    def read(self, box: Sequence[int], size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (h,w,3) uint8 and valid (h,w) bool of a box x1, y1, x2, y2 inside the image, half-open.

        size: width and height of the answer, the box's own unless told. A smaller one is read from the overview that fits
        and averaged over valid pixels, a larger one interpolated; bands of indices give the most frequent, or the nearest.
        Pixels that are not valid are grey. Raises RasterError for damaged files, ValueError for a box outside.
        """
        x1, y1, x2, y2 = map(int, box)
        if not (0 <= x1 < x2 <= self.width and 0 <= y1 < y2 <= self.height):
            raise ValueError(f"the box {x1}, {y1}, {x2}, {y2} is not inside {self.width} x {self.height} pixels")
        size = (x2 - x1, y2 - y1) if size is None else (int(size[0]), int(size[1]))
        if min(size) < 1:
            raise ValueError(f"a window of {size[0]} x {size[1]} pixels cannot be read")
        with self._errors(f"damaged or cut short at {x1}, {y1}"):
            return (self._shelf.window if self.striped else self._window)((x1, y1, x2, y2), size)

    def _window(self, box: Sequence[float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        values, valid = self._values(box, size, self._resampling(box, size))
        if self._bands.palette is not None:
            colours = self._bands.palette[values[0]]
            pixels, valid = np.ascontiguousarray(colours[..., :3]), valid & (colours[..., 3] > 0)
        else:
            values = values if self._limits is None else stretched(values, self._limits)
            values = 255 - values if self._inverted else values
            pixels = np.ascontiguousarray(np.moveaxis(values if len(values) == 3 else values.repeat(3, 0), 0, -1))
        if not valid.all():
            pixels[~valid] = NEUTRAL
        return pixels, valid

    def _resampling(self, box: Sequence[float], size: tuple[int, int]) -> Resampling:
        if (box[2] - box[0], box[3] - box[1]) == size:
            return Resampling.nearest
        smaller = size[0] < box[2] - box[0] or size[1] < box[3] - box[1]
        if self._bands.palette is not None:
            return Resampling.mode if smaller else Resampling.nearest
        return Resampling.average if smaller else Resampling.bilinear

    def _nearest(self, box: Sequence[float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return self._values(box, size, Resampling.nearest)

    def _values(self, box: Sequence[float], size: tuple[int, int], how: Resampling) -> tuple[np.ndarray, np.ndarray]:
        """The file's own values (bands,h,w), and valid (h,w) bool."""
        numbers, shape = list(self._bands.numbers), (size[1], size[0])
        place = {"window": Window(box[0], box[1], box[2] - box[0], box[3] - box[1]), "resampling": how}
        # GDAL itself puts the bands of a pixel side by side, which costs less than moving them afterwards
        dtype = np.result_type(*(self._dataset.dtypes[number - 1] for number in numbers))
        values = np.moveaxis(np.empty((*shape, len(numbers)), dtype), -1, 0)
        self._dataset.read(numbers, out=values, **place)
        valid = np.ones(shape, bool)
        if masks := list(self._bands.masks):
            valid = self._dataset.read_masks(masks, out_shape=(len(masks), *shape), **place).any(axis=0)
        if (filled := self._blocks.filled(box, size)) is not None:
            valid &= filled
        if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            if how in (Resampling.average, Resampling.bilinear):  # one NaN would spoil a whole mean
                values = np.where(finite, values, self._values(box, size, Resampling.nearest)[0])
            valid &= np.isfinite(values).all(axis=0)
        return values, valid

    def empty(self, box: Sequence[int]) -> bool:
        """True only if it is certain, without decoding pixels, that nothing in the box is valid: a tiled TIFF in which no
        block below the box was written. The first call looks at all blocks: 0.1 s for 100,000 x 100,000 pixels."""
        return bool(self.empty_boxes(np.array([box]))[0])

    def empty_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(n,) bool: `empty` of each of boxes (n,4) int64."""
        return self._blocks.empty(boxes)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the content: dimensions, types, and bytes of the file, and of those it refers to, at fixed
        places (`content`). Raises RasterError if the file has changed since it was opened."""
        self.check_unchanged()
        path, *parts = self._states
        return fingerprint_by_content(path, parts, (self.width, self.height, self._dataset.dtypes, self._inverted))

    def fingerprint_by_time(self) -> str | None:
        """What `fingerprint` was before: of the time of change, and of the bands chosen, too. None for what no index knew
        then: a stretch that was asked for, and that 0 is white."""
        path, *parts = self._states
        told = self.width, self.height, self._dataset.dtypes, self._bands.numbers
        return None if self.given_stretch or self._inverted else fingerprint_by_time(path, parts, self._states, told)

    def check_unchanged(self) -> None:
        """Raises RasterError if the file, or one that it refers to, is not what it was when it was opened."""
        for path, state in self._states.items():
            if not path.exists() or _state(path) != state:
                raise RasterError(f"{path} has changed since it was opened; start again when nobody writes to it")


def _state(path: Path) -> tuple[int, int, int]:
    """Size in bytes, time of change in nanoseconds, file number."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _orientation(dataset) -> int:
    said = dataset.tags().get("EXIF_Orientation", "1")
    return int(said) if said in tuple("12345678") else 1


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone. Raises RasterError."""
    driver = driver_of(path)
    try:
        with rasterio.open(path.absolute(), driver=driver) as dataset:
            return dataset.width, dataset.height
    except (RasterioError, UnicodeError) as error:
        raise RasterError(f"{path}: cannot be opened ({' '.join(str(error).split())})") from None
