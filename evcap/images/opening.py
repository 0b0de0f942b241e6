"""Images in: find the files, open them safely as RGB, make the tensor that the image tower takes."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from errno import ENAMETOOLONG
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from evcap.errors import EvcapError
from evcap.images.kinds import HEIF, OTHERS, RASTERS, head_of, is_heif, is_raster, reads_heif, reads_rasters
from evcap.images.limits import LARGE_BYTES, ONE_AT_A_TIME, TooLarge, TooSlow, check_bytes, check_scans
from evcap.images.orientation import stored_orientation
from evcap.raster.display import DEFAULT, Display
from evcap.raster.opening import driver_named
from evcap.text_files import brief, one_line

# What is opened, whatever the suffix says. Pillow knows more, some of it by starting other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".avif", *RASTERS)


class ImageError(EvcapError):
    """A file that cannot be used as an image, with the reason in one line."""


def find_images(
    paths: Iterable[str | Path], suffixes: Sequence[str] | None = None, report: Callable[[str], None] | None = None
) -> list[Path]:
    """The files that `paths` mean, in the order given, each once.

    A folder stands for all images below it (by suffix, sorted, hidden ones left out), a pattern with * ? [ ] for what
    it matches. A file that is named is kept whatever it is, as is a path among others that leads to nothing:
    `open_image` says what is wrong with it. Folders that are links are not followed: they may lead to where they lie.
    suffixes: in lower case, those of what `open_image` reads unless told. report: takes one line that tells which images
    and links in folders were left out, if there are any. Raises EvcapError if there is no file at all.
    """
    if suffixes is None:
        suffixes = SUFFIXES + (HEIF if reads_heif() else ())
    found: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    for given in paths:
        path, pattern = stored_path(given), str(given)
        if path.is_dir():
            files = _images_below(path, suffixes, left_out)
        elif glob.has_magic(pattern) and not path.exists():
            matches = _matches(pattern)
            folders = [file for match in matches if match.is_dir() for file in _images_below(match, suffixes, left_out)]
            files = [match for match in matches if match.suffix.lower() in suffixes and not match.is_dir()] + folders
        else:
            files = [path]
        for file in files or [path]:
            found.setdefault(os.path.abspath(file), file)
    if report and left_out:
        report(_told(left_out))
    if not any(os.path.isfile(file) for file in found.values()):
        named = ", ".join(str(path) for path in found.values())
        if any(path.is_dir() for path in found.values()):
            raise EvcapError(f"no images in {named}: looked for {' '.join(suffixes)}, in folders below too")
        raise EvcapError(f"there is no file {named}" if named else "no images were named")
    return list(found.values())


def stored_path(given: str | Path) -> Path:
    """The path, with its names as they are on disk, where accents may be characters of their own (macOS) or not."""
    path = Path(given)
    if path.exists() or str(path).isascii():
        return path
    stored = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        stored = next((stored / form for form in forms if (stored / form).exists()), stored / part)
    return stored if stored.exists() else path


def _matches(pattern: str) -> list[Path]:
    forms = dict.fromkeys([pattern, *(unicodedata.normalize(form, pattern) for form in ("NFC", "NFD"))])
    try:
        found = {match for form in forms for match in glob.glob(form, recursive=True)}
    except RecursionError:
        raise EvcapError(f"{pattern}: folders too deep for a pattern; name the folder itself") from None
    return [Path(match) for match in sorted(found)]


def _images_below(folder: Path, suffixes: Sequence[str], left_out: Counter[str]) -> list[Path]:
    """left_out: counts kinds of images that are not among `suffixes`, by suffix, and links to folders, as "/"."""
    files: list[Path] = []
    waiting = [folder]  # no recursion, and so no end to how deep folders may lie
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if entry.name.startswith(".") or entry.name == "__MACOSX":  # what macOS puts into archives
                        continue
                    if entry.is_dir():
                        if entry.is_symlink():
                            left_out["/"] += 1
                        else:
                            waiting.append(parent / entry.name)
                    elif suffix in suffixes:
                        files.append(parent / entry.name)
                    elif suffix in (*HEIF, *OTHERS, *SUFFIXES):
                        left_out[suffix] += 1
        except OSError:
            files.append(parent)  # kept, so that somebody hears of it
    return sorted(files)


def _told(left_out: Counter[str]) -> str:
    links = left_out.pop("/", 0)
    parts = [f"{count} {suffix}" for suffix, count in sorted(left_out.items())]
    told = [f"images of kinds that are not read here ({', '.join(parts)})"] if parts else []
    told += [f"{links} linked folder{'s' * (links > 1)} (name what is to be followed)"] if links else []
    extra = "; HEIC is read with pip install 'evcap[heic]'" if set(HEIF) & set(left_out) and not reads_heif() else ""
    return f"left out: {' and '.join(told)}{extra}"


def open_image(path: str | Path, at_least: int | None = None, display: Display = DEFAULT) -> Image.Image:
    """Open one image, the first frame of an animated one, and return it as `to_rgb` does, decoded.

    at_least: large images may be shrunk by a whole factor while both sides stay at least this many pixels, which
    saves time and memory (JPEG is even decoded small); None keeps every pixel.
    VRT, JPEG 2000, and TIFF that is no photo of 8 bits are read as `evcap.raster.raster.Raster` reads them; with a display of
    its own every file is. So are, shrunk, TIFF, PNG and JPEG of more pixels than Pillow allows (twice
    PIL.Image.MAX_IMAGE_PIXELS, 179 million unless changed), or of more bytes than `image_limits` does.
    Raises ImageError for anything that is not a whole, readable image and, from its header alone, for what is too large.
    """
    path = Path(path)
    try:
        head = _head(path)
        if display != DEFAULT or (is_raster(path, head) and reads_rasters()):
            return _from_raster(path, at_least, display)
        try:
            return _decoded(path, at_least, is_heif(head) and reads_heif())
        except (TooLarge, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            if at_least is None or driver_named(head) is None or not reads_rasters():
                limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
                much = str(error) if isinstance(error, TooLarge) else f"more than {limit} megapixels"
                raise ImageError(f"{path}: {much}, not decoded; save a smaller copy") from None
            return _from_raster(path, at_least, DEFAULT)
    except ImageError:
        raise
    except TooSlow as error:
        raise ImageError(f"{path}: {error}, not decoded; save it anew") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: {_unknown(path, head)}") from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it") from None
    except MemoryError:
        raise ImageError(f"{path}: too large for the free memory; save a smaller copy") from None
    except Exception as error:  # each decoder has its own exceptions for damaged data
        if is_raster(path, head):
            raise ImageError(f"{path}: {NEEDS_UHR}") from None
        raise ImageError(f"{path}: damaged or cut short ({' '.join(str(error).split())}); get a fresh copy") from None


NEEDS_UHR = "a raster, which is read with rasterio: pip install 'evcap[uhr]'"


def _head(path: Path) -> bytes:
    """The first bytes of a file. Raises ImageError for what is none."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == ENAMETOOLONG:  # as a file of boxes may ask for
            raise ImageError(f"{one_line(path)}: no file can have so long a name") from None
    except ValueError:
        raise ImageError(f"{brief(str(path))}: no file can have such a name") from None
    if path.is_dir():
        raise ImageError(f"{path}: a folder, in which no image was found or looked for; name images")
    if not path.exists():
        raise ImageError(f"{path}: there is no such file")
    if not path.is_file():
        raise ImageError(f"{path}: not a regular file; save the image to disk first")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes); get a fresh copy")
    return head_of(path)


def _unknown(path: Path, head: bytes) -> str:
    """Why Pillow knows no format for a file."""
    if is_heif(head) or path.suffix.lower() in HEIF:
        return "damaged HEIC; get a fresh copy" if reads_heif() else "HEIC is read with pillow-heif: pip install 'evcap[heic]'"
    if driver_named(head) in ("VRT", "JP2OpenJPEG", "GTiff"):
        return NEEDS_UHR
    if path.suffix.lower() in OTHERS:
        return f"{path.suffix} is not read here ({' '.join(FORMATS)} are); convert it"
    return f"not an image, or its header is damaged (read are {' '.join(FORMATS)})"


def _decoded(path: Path, at_least: int | None, heif: bool) -> Image.Image:
    """By Pillow. Raises TooLarge and TooSlow before anything is decoded, else whatever the decoder raises."""
    formats = FORMATS
    if heif:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats = (*FORMATS, "HEIF")
    with Image.open(path, formats=formats) as image:
        if image.format in ("JPEG", "MPO"):
            check_scans(path, image)
        if at_least:
            image.draft(None, (at_least, at_least))
        # of a PNG Pillow looks for it behind the pixels, which it decodes for that
        turned = "exif" in image.info if image.format == "PNG" else stored_orientation(image) != 1
        needed = check_bytes(image, turned)
        with ONE_AT_A_TIME if needed > LARGE_BYTES else nullcontext():
            image.load()
            image = to_rgb(image)
            factor = min(image.size) // at_least if at_least else 1
            return image.reduce(factor) if factor > 1 else image


def _from_raster(path: Path, at_least: int | None, display: Display) -> Image.Image:
    if not reads_rasters():
        raise ImageError(f"{path}: {NEEDS_UHR}")
    from evcap.raster.whole import read_whole

    try:
        return read_whole(path, at_least, display)
    except EvcapError as error:
        raise ImageError(str(error)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as mode RGB, 8 bits: turned upright by its EXIF orientation, transparency laid on white, grey of 16
    bits scaled (65535 -> 255), CMYK converted. The pixels of an upright RGB image are returned as they are.
    """
    image = _upright(image)
    if image.mode.startswith("I;16"):
        image = _grey(np.asarray(image), 0, 65535)
    elif image.mode in ("I", "F"):
        # These modes have no range of their own: PGM of 16 bits comes as I, the rest is stretched to its extremes.
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        if image.mode == "I" and low >= 0 and high <= 65535:
            low, high = 0, 65535
        image = _grey(values, low, high)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        on_white = Image.new("RGB", image.size, "white")
        on_white.paste(image, mask=image.getchannel("A"))
        return on_white
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if stored_orientation(image) != 1 else image


def _grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    grey = np.empty(values.shape, np.uint8)
    for row, shown in zip(values, grey, strict=True):  # row by row: as float64 the whole would be eight times the file
        shown[:] = np.rint((row.astype(np.float64) - low) * (255 / max(float(high) - float(low), 1e-12)))
    return Image.fromarray(grey)


def to_tensor(images: Sequence[Image.Image], size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """B images -> (B,3,size,size) float32, (value - mean) / std per channel with values in 0..1.

    Squashed to the square by Pillow's bicubic filter, aspect not kept (EVCap release); an image that has this size
    already is not resampled. mean, std: one number for each of R, G, B.
    """
    pixels = torch.empty(len(images), 3, size, size)
    for row, image in zip(pixels, images, strict=True):
        small = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
        row.copy_(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    middle, spread = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))
    return pixels.div_(255).sub_(middle).div_(spread)
