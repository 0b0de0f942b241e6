"""Which reader a file needs: Pillow for photos, `evcap.raster.raster` for rasters, pillow-heif for HEIC."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from evcap.raster.opening import driver_named

RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".j2k")
HEIF = (".heic", ".heif", ".hif")
# images too, so that somebody hears of those that are not read
OTHERS = (
    ".jxl",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".rw2",
    ".raf",
    ".pef",
    ".srw",
    ".psd",
    ".tga",
    ".exr",
    ".jpx",
)
BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # of HEIF files, behind "ftyp"
PLAIN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB")  # modes of 8 bits or fewer a sample
# tags of a TIFF: bits of a sample, what its numbers are (1: not negative), GDAL's nodata value, what kind of page it is
BITS, FORMAT, NODATA, PAGE = 258, 339, 42113, 254
MASK = 4  # a bit of PAGE: which pixels of the page before are valid


def head_of(path: Path) -> bytes:
    """The first 4096 bytes. May raise OSError."""
    with path.open("rb") as file:
        return file.read(4096)


def is_raster(path: Path, head: bytes) -> bool:
    """Whether Pillow does not read the file, or not as what it is: VRT, JPEG 2000, and TIFF that is no photo of 8 bits."""
    driver = driver_named(head)
    return driver in ("VRT", "JP2OpenJPEG") or (driver == "GTiff" and not is_plain(path))


def is_plain(path: Path) -> bool:
    """Whether a TIFF is a photo or a scan: unsigned samples of at most 8 bits, all of them valid, as Pillow knows them."""
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            tags = image.tag_v2
            bits, numbers = tags.get(BITS, (1,)), tags.get(FORMAT, (1,))
            plain = image.mode in PLAIN and max(_several(bits)) <= 8 and set(_several(numbers)) <= {1, 4}
            return plain and NODATA not in tags and not _is_masked(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # as far as anybody knows
    except Exception:  # damaged, or of a kind that Pillow does not know
        return False


def _several(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _is_masked(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return bool(int(image.tag_v2.get(PAGE, 0)) & MASK)


def pillow_takes(path: Path) -> bool:
    """False for a photo of more pixels than Pillow allows, from its header; what is damaged in another way is no such photo."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False
    except Exception:  # whoever opens it tells what is wrong
        return True


def is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS


def reads_heif() -> bool:
    """Whether the extra is installed."""
    return find_spec("pillow_heif") is not None


def reads_rasters() -> bool:
    """Whether the extra is installed."""
    return find_spec("rasterio") is not None
