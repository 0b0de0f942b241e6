"""Pictures in: find the files, open them safely as RGB, make the tensor that the image tower takes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from evcap.errors import EvcapError

# What is opened, whatever the suffix says. Pillow knows more, some of it by starting other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
ORIENTATION = 0x0112  # EXIF tag, 1 = upright


class ImageError(EvcapError):
    """A file that cannot be used as a picture, with the reason in one line."""


def find_images(paths: Iterable[str | Path], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files that `paths` mean, in the order given, each once.

    A folder stands for all pictures below it (by suffix, sorted, hidden ones left out), a pattern with * ? [ ] for what
    it matches. A file that is named is kept whatever it is, as is a path among others that leads to nothing:
    `open_image` says what is wrong with it. suffixes: in lower case. Raises EvcapError if there is no file at all.
    """
    found: dict[str, Path] = {}
    for given in paths:
        path, pattern = Path(given), str(given)
        if path.is_dir():
            files = _images_below(path, suffixes)
        elif glob.has_magic(pattern) and not path.exists():
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
            folders = [file for match in matches if match.is_dir() for file in _images_below(match, suffixes)]
            files = [match for match in matches if match.suffix.lower() in suffixes and not match.is_dir()] + folders
        else:
            files = [path]
        for file in files or [path]:
            found.setdefault(os.path.abspath(file), file)
    if not any(os.path.isfile(file) for file in found.values()):
        named = ", ".join(str(path) for path in found.values())
        if any(path.is_dir() for path in found.values()):
            raise EvcapError(f"no pictures in {named}: looked for {' '.join(suffixes)}, in folders below too")
        raise EvcapError(f"there is no file {named}" if named else "no pictures were named")
    return list(found.values())


def _images_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    unreadable: list[Path] = []  # kept, so that somebody hears of them
    for parent, folders, names in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                files.append(Path(parent, name))
    return sorted(files + unreadable)


def open_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Open one picture, the first frame of an animated one, and return it as `to_rgb` does, decoded.

    at_least: large pictures may be shrunk by a whole factor while both sides stay at least this many pixels, which
    saves time and memory (JPEG is even decoded small); None keeps every pixel.
    Raises ImageError for anything that is not a whole, readable picture and, from its header alone, for one of more
    pixels than Pillow allows (twice PIL.Image.MAX_IMAGE_PIXELS, 179 million unless changed).
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{path}: a folder without pictures that can be read; name a picture")
        if not path.exists():
            raise ImageError(f"{path}: there is no such file")
        if not path.is_file():
            raise ImageError(f"{path}: not a regular file; save the picture to disk first")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes); get a fresh copy")
        with Image.open(path, formats=FORMATS) as image:
            if at_least:
                image.draft(None, (at_least, at_least))
            image.load()
            image = to_rgb(image)
            factor = min(image.size) // at_least if at_least else 1
            return image.reduce(factor) if factor > 1 else image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture, or its header is damaged (read are {' '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ImageError(f"{path}: more than {limit} megapixels, not decoded; save a smaller copy") from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it") from None
    except MemoryError:
        raise ImageError(f"{path}: too large for the free memory; save a smaller copy") from None
    except Exception as error:  # each decoder has its own exceptions for damaged data
        raise ImageError(f"{path}: damaged or cut short ({' '.join(str(error).split())}); get a fresh copy") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as mode RGB, 8 bits: turned upright by its EXIF orientation, transparency laid on white, grey of 16
    bits scaled (65535 -> 255), CMYK converted. The pixels of an upright RGB picture are returned as they are.
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
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF says nothing about the pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    scaled = (values.astype(np.float64) - low) * (255 / max(float(high) - float(low), 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def to_tensor(images: Sequence[Image.Image], size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """B pictures -> (B,3,size,size) float32, (value - mean) / std per channel with values in 0..1.

    Squashed to the square by Pillow's bicubic filter, aspect not kept (EVCap release); a picture that has this size
    already is not resampled. mean, std: one number for each of R, G, B.
    """
    pixels = torch.empty(len(images), 3, size, size)
    for row, image in zip(pixels, images, strict=True):
        small = to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
        row.copy_(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    middle, spread = (torch.tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))
    return pixels.div_(255).sub_(middle).div_(spread)
