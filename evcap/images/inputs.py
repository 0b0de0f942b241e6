"""What an image may be handed over as: a path, a PIL image, an array, the bytes of a file, an open binary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from evcap.errors import EvcapError
from evcap.images.opening import ImageError, open_image, to_rgb

Picture = str | os.PathLike | Image.Image | np.ndarray | bytes | bytearray | memoryview | BinaryIO
WANTED = "a path, a PIL image, a uint8 array (H,W,3) or (H,W), the bytes of an image file, or a file opened in binary mode"


def as_list(pictures: Picture | Iterable[Picture]) -> tuple[Iterable[Picture], bool]:
    """The images one by one, and whether it is a single one that was given as itself."""
    single = isinstance(pictures, (str, os.PathLike, Image.Image, np.ndarray, bytes, bytearray, memoryview))
    if single or hasattr(pictures, "read"):
        return [pictures], True
    if not isinstance(pictures, Iterable) or isinstance(pictures, dict) or hasattr(pictures, "detach"):
        raise EvcapError(f"cannot take {_told(pictures)} as an image: give {WANTED}, or several of these")
    return pictures, False


def open_picture(picture: Picture, at_least: int | None = None) -> Image.Image:
    """One image as `open_image` gives it; pixels that are in memory already are not shrunk.

    Raises ImageError for a file or content that is no readable image, EvcapError for what is no image by its kind.
    """
    if isinstance(picture, (str, os.PathLike)):
        return open_image(Path(os.fsdecode(picture)), at_least)
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return _from_content(bytes(picture), "the bytes of an image", at_least)
    if hasattr(picture, "read"):
        content = picture.read()
        name = getattr(picture, "name", "the content of a file object")
        if not isinstance(content, bytes):
            raise EvcapError(f"{name}: opened as text; open images in binary mode, as open(path, 'rb')")
        return _from_content(content, str(name), at_least)
    raise EvcapError(f"cannot take {_told(picture)} as an image: give {WANTED}")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or not array.size:
        raise EvcapError(
            f"cannot take {_told(array)} as an image: arrays must be uint8, (H,W,3) in RGB or (H,W) in grey; "
            "give several as a list"
        )
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _from_content(content: bytes, name: str, at_least: int | None) -> Image.Image:
    """Through a file, so that it is checked as every file is."""
    with tempfile.NamedTemporaryFile(prefix="evcap-") as file:
        file.write(content)
        file.flush()
        try:
            return open_image(file.name, at_least)
        except ImageError as error:
            raise ImageError(str(error).replace(file.name, name)) from None


def _told(value) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        shape = ",".join(map(str, value.shape))
        return f"{type(value).__name__} ({shape}) of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
