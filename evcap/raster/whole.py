"""A raster as one image, for whoever looks at it whole."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from evcap.raster.display import Display
from evcap.raster.opening import RasterError
from evcap.raster.raster import Raster, size_of

ORIENTATION = 0x0112  # tag of EXIF and of TIFF, 1 = upright
LARGE = 50_000_000  # pixels from which a raster is captioned by its tiles
MOST_PIXELS = 1 << 38  # of a raster that is looked at as a whole: half an hour without overviews


def read_whole(path: Path, at_least: int | None, display: Display) -> Image.Image:
    """The image in RGB, turned upright by its EXIF orientation; pixels that are not valid are grey.

    at_least: it may be shrunk by a whole factor, by averaging, while both sides stay at least this many pixels; None keeps
    every pixel. Raises RasterError, also for what is too large.
    """
    with Raster(path, display.bands, display.stretch) as raster:
        width, height = raster.width, raster.height
        limit = MOST_PIXELS if at_least else 2 * (Image.MAX_IMAGE_PIXELS or MOST_PIXELS)
        if width * height > limit:
            raise RasterError(
                f"{path}: {width:,} x {height:,} pixels are more than {limit // 10**6:,} megapixels; cut a part out"
            )
        factor = max(1, min(width, height) // at_least) if at_least else 1
        pixels, _ = raster.read((0, 0, width, height), (-(-width // factor), -(-height // factor)))
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = 1 if raster.transform else _orientation(path, raster)
    return ImageOps.exif_transpose(image)


def _orientation(path: Path, raster: Raster) -> int:
    """GDAL tells that of a JPEG, and not that of a TIFF."""
    try:
        with Image.open(path, formats=("TIFF",)) as header:
            return header.tag_v2.get(ORIENTATION, 1)
    except Exception:  # no TIFF, or none that Pillow knows
        return raster.orientation


def is_large(path: Path) -> bool:
    """Whether a raster is captioned by its tiles. False for what cannot be opened."""
    try:
        width, height = size_of(path)
    except RasterError:
        return False
    return width * height >= LARGE
