"""Boxes of images that are stored turned: cameras write pixels as the sensor has them, and how to turn them (EXIF)."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

from PIL import Image

ORIENTATION = 0x0112  # EXIF tag: 1 upright, 2 to 8 mirrored or turned
Corners = tuple[float, float, float, float]
Size = tuple[int, int]


def stored_orientation(picture) -> int:
    """How an image is stored, 1 to 8: a path, a PIL image or the bytes of a file; 1 where nobody says."""
    if isinstance(picture, Image.Image):
        return _told(picture)
    opened = io.BytesIO(picture) if isinstance(picture, (bytes, bytearray, memoryview)) else picture
    if not isinstance(opened, (str, os.PathLike, io.BytesIO)):
        return 1
    try:
        with Image.open(opened) as image:
            return _told(image)
    except Exception:  # whoever opens it says what is wrong with it
        return 1


def _told(image: Image.Image) -> int:
    try:
        told = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return told if told in range(1, 9) else 1


def stored_size(upright: Size, orientation: int) -> Size:
    """(width, height) of the pixels as stored, of an image that is so large upright, or the other way round."""
    return upright[::-1] if orientation >= 5 else upright


def to_upright(box: Sequence[float], orientation: int, upright: Size) -> Corners:
    """A box (x1,y1,x2,y2) in pixels as stored -> in pixels of the upright image, which is (width, height) large."""
    width, height = stored_size(upright, orientation)
    x1, y1, x2, y2 = box
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)


def to_stored(box: Sequence[float], orientation: int, upright: Size) -> Corners:
    """The other way: a box in pixels of the upright image -> in pixels as stored."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return to_upright(box, back, stored_size(upright, orientation))
