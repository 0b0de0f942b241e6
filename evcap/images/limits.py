"""What an image would cost to decode, told from its header: a file of a few kilobytes can ask for gigabytes or minutes."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Semaphore

from PIL import Image

MOST_BYTES = 1 << 30  # that one image may take while it is opened
LARGE_BYTES = 1 << 28  # images that take more are opened one at a time, whoever opens several
MOST_SCANNED = 4_000_000_000  # pixels times scans of a JPEG: a few seconds; 178 megapixels in the usual ten scans pass
ONE_AT_A_TIME = Semaphore(1)

STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes a pixel; other modes take 4
CODEC = {"WEBP": 12, "AVIF": 12, "HEIF": 12}  # bytes a pixel of decoders that hold the whole image themselves
# after a scan's data, which may hold 0xFF only before a zero, a restart mark or another 0xFF, comes the next marker
MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
SCAN, END = 0xDA, 0xD9
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


class TooLarge(Exception):
    """The image would take too much memory to decode whole; says how much, in a few words."""


class TooSlow(Exception):
    """The image would take too long to decode, whoever does it; says why, in a few words."""


def bytes_needed(image: Image.Image, turned: bool) -> int:
    """Of memory, at most, from an image whose header is read to one that is RGB. turned: by its EXIF orientation."""
    stored = STORED.get(image.mode, 4)
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    rgb = 0 if image.mode == "RGB" and not transparent else 4
    copies = stored + (stored if turned else 0) + rgb + (5 if transparent else 0)
    pixels = image.width * image.height
    return pixels * (copies + CODEC.get(image.format, 0)) + _largest_block(image)


def _largest_block(image: Image.Image) -> int:
    """Of a TIFF, whose decoder makes room for a whole tile even where the image is smaller."""
    tags = getattr(image, "tag_v2", {})
    wide, high = tags.get(322, 0), tags.get(323, 0)
    return int(wide) * int(high) * 4 if isinstance(wide, int) and isinstance(high, int) else 0


def check_bytes(image: Image.Image, turned: bool) -> int:
    """`bytes_needed`. Raises TooLarge if these are too many."""
    needed = bytes_needed(image, turned)
    if needed > MOST_BYTES:
        raise TooLarge(f"{image.width:,} x {image.height:,} pixels would take {needed / 1e9:.1f} GB of memory")
    return needed


def check_scans(path: Path, image: Image.Image) -> None:
    """Raises TooSlow for a JPEG that goes over all of its pixels more often than any camera or program writes."""
    pixels = image.width * image.height
    data = path.read_bytes()
    if pixels * data.count(bytes([0xFF, SCAN])) <= MOST_SCANNED:  # a glance, which counts other images in the file too
        return
    scans = count_scans(data)
    if pixels * scans > MOST_SCANNED:
        raise TooSlow(f"{image.width:,} x {image.height:,} pixels in {scans} scans would take minutes to decode")


def count_scans(data: bytes) -> int:
    """Of the JPEG that `data` begins with, up to its end marker."""
    place, scans = 2, 0
    while match := MARKER.search(data, place):
        marker, place = data[match.end() - 1], match.end()
        if marker == END:
            break
        scans += marker == SCAN
        if marker not in WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
    return scans
