"""Captions inside image files: EXIF ImageDescription of JPEG, PNG and WebP, without touching a pixel.

The EXIF block is patched, not written anew: what cameras put into it (previews, maker notes) stays at its place.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from evcap.cli.sidecars import Existing, joined
from evcap.errors import EvcapError
from evcap.files import encoded, replacing

DESCRIPTION = 0x010E  # EXIF tag ImageDescription
TEXTS = (2, 129)  # EXIF types: ASCII, and UTF-8 of EXIF 3
MARK = b"Exif\0\0"
MOST_JPEG = 65_533  # bytes in a JPEG segment
PNG_SIGN = b"\x89PNG\r\n\x1a\n"


def embed(path: Path, captions: list[str], existing: Existing) -> bool:
    """Write captions into an image, one a line; False if a description was there and stays (`keep`).

    The file is replaced only if its pixels, its other EXIF tags and its size are found unchanged; times and permissions stay.
    Raises EvcapError with one line, which names the file, if that cannot be done.
    """
    try:
        data = path.read_bytes()
        kind = _kind(data)
        if kind is None:
            raise EvcapError(f"{path}: captions can be written into JPEG, PNG and WebP files only")
        block = kind.read(data)
        old = _description(block) if block else b""
        new = joined(old.strip(b" \0"), encoded("".join(f"{text}\n" for text in captions)), existing).rstrip(b"\n")
        if existing == Existing.keep and old.strip(b" \0"):
            return False
        if new == old:
            return True
        changed = kind.write(data, _with_description(block, new))
        _replace(path, changed, new)
    except OSError as error:
        raise EvcapError(f"{path}: cannot write the caption into it: {error.strerror or error}") from None
    except (ValueError, struct.error, IndexError) as error:
        raise EvcapError(f"{path}: its metadata is damaged ({error}), no caption was written into it") from None
    return True


def _replace(path: Path, changed: bytes, description: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(changed)
        if not _same(path, temporary) or _description(_kind(changed).read(changed)) != description:
            raise ValueError("pixels or tags would not be the same")
        shutil.copystat(os.path.realpath(path), temporary)


def _same(before: Path, after: Path) -> bool:
    """Whether two files have the same frames and, apart from the description, the same EXIF tags."""
    from PIL import Image, ImageSequence

    from evcap.images.opening import FORMATS

    try:
        with Image.open(before, formats=FORMATS) as one, Image.open(after, formats=FORMATS) as other:
            tags = [{tag: value for tag, value in image.getexif().items() if tag != DESCRIPTION} for image in (one, other)]
            if tags[0] != tags[1] or getattr(one, "n_frames", 1) != getattr(other, "n_frames", 1):
                return False
            pairs = zip(ImageSequence.Iterator(one), ImageSequence.Iterator(other), strict=True)
            return all(a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes() for a, b in pairs)
    except Exception as error:  # each decoder has its own exceptions
        raise ValueError(" ".join(str(error).split())) from None


# -- the EXIF block: a TIFF header and directories, all offsets from its start


def _order(block: bytes) -> str:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise ValueError("its EXIF block does not begin as one")
    return order


def _entries(block: bytes) -> tuple[str, list[bytes], bytes]:
    """Byte order, the entries of the first directory (12 bytes each), and the offset of the next one (4 bytes)."""
    order = _order(block)
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    end = start + 2 + 12 * count
    if end > len(block):
        raise ValueError("its EXIF block is cut short")
    return order, [block[at : at + 12] for at in range(start + 2, end, 12)], (block[end : end + 4] + bytes(4))[:4]


def _description(block: bytes) -> bytes:
    order, entries, _ = _entries(block)
    for entry in entries:
        tag, kind, count, place = struct.unpack(order + "HHII", entry)
        if tag == DESCRIPTION and kind not in TEXTS:
            raise ValueError(f"its description is of type {kind}, no text")
        if tag == DESCRIPTION:
            return (entry[8 : 8 + count] if count <= 4 else block[place : place + count]).split(b"\0")[0]
    return b""


def _with_description(block: bytes, text: bytes) -> bytes:
    """The block with a new first directory at its end, which has the entries of the old one and the description."""
    block = block or b"II*\0\x08\0\0\0" + bytes(6)
    order, entries, following = _entries(block)
    block += bytes(-len(block) % 2)
    value = text + b"\0"
    place = struct.pack(order + "I", len(block)) if len(value) > 4 else (value + bytes(3))[:4]  # short ones stand in the entry
    entry = struct.pack(order + "HHI", DESCRIPTION, 2, len(value)) + place
    kept = [e for e in entries if struct.unpack_from(order + "H", e)[0] != DESCRIPTION]
    entries = sorted([*kept, entry], key=lambda e: struct.unpack_from(order + "H", e)[0])
    block += value + bytes(len(value) % 2)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + following
    return block[:4] + struct.pack(order + "I", len(block)) + block[8:] + directory


# -- containers: `read` gives the EXIF block or b"", `write` the file with another one


class _Jpeg:
    @staticmethod
    def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
        """(marker, start, end) of the segments before the image's data."""
        at = 2
        while True:
            while data[at + 1] == 0xFF:  # fill bytes
                at += 1
            if data[at] != 0xFF:
                raise ValueError("no marker where one should be")
            marker = data[at + 1]
            if marker in (0xDA, 0xD9):
                return
            end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
            if end > len(data):
                raise ValueError("cut short")
            yield marker, at, end
            at = end

    @classmethod
    def _place(cls, data: bytes) -> tuple[int, int]:
        """Start and end of the EXIF segment, or where one belongs: first, but after JFIF's."""
        place = 2
        for marker, start, end in cls.segments(data):
            if marker == 0xE1 and data[start + 4 : start + 10] == MARK:
                return start, end
            if marker == 0xE0 and start == 2:
                place = end
        return place, place

    @classmethod
    def read(cls, data: bytes) -> bytes:
        start, end = cls._place(data)
        return data[start + 10 : end]

    @classmethod
    def write(cls, data: bytes, block: bytes) -> bytes:
        start, end = cls._place(data)
        length = 2 + len(MARK) + len(block)
        if length > MOST_JPEG:
            raise ValueError("no room for the caption in its EXIF block of 64 kB")
        return data[:start] + b"\xff\xe1" + struct.pack(">H", length) + MARK + block + data[end:]


class _Png:
    @staticmethod
    def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
        """(kind, start, end) of the chunks."""
        at = len(PNG_SIGN)
        while at < len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if at + 12 + length > len(data):
                raise ValueError("cut short")
            yield kind, at, at + 12 + length
            if kind == b"IEND":
                return
            at += 12 + length

    @classmethod
    def read(cls, data: bytes) -> bytes:
        return next((data[start + 8 : end - 4] for kind, start, end in cls.chunks(data) if kind == b"eXIf"), b"")

    @classmethod
    def write(cls, data: bytes, block: bytes) -> bytes:
        parts = [(kind, start, end) for kind, start, end in cls.chunks(data)]
        place = parts[0][2]  # behind IHDR
        start, end = next(((s, e) for kind, s, e in parts if kind == b"eXIf"), (place, place))
        body = b"eXIf" + block
        return data[:start] + struct.pack(">I", len(block)) + body + struct.pack(">I", zlib.crc32(body)) + data[end:]


class _WebP:
    @staticmethod
    def _end(data: bytes) -> int:
        """Where the image ends; other things may follow."""
        return min(8 + struct.unpack_from("<I", data, 4)[0], len(data))

    @classmethod
    def chunks(cls, data: bytes) -> list[tuple[bytes, bytes]]:
        """(kind, content) of the chunks."""
        at, end, found = 12, cls._end(data), []
        while at + 8 <= end:
            kind, size = struct.unpack_from("<4sI", data, at)
            if at + 8 + size > end:
                raise ValueError("cut short")
            found.append((kind, data[at + 8 : at + 8 + size]))
            at += 8 + size + size % 2
        return found

    @classmethod
    def read(cls, data: bytes) -> bytes:
        block = next((content for kind, content in cls.chunks(data) if kind == b"EXIF"), b"")
        return block.removeprefix(MARK)

    @classmethod
    def write(cls, data: bytes, block: bytes) -> bytes:
        chunks = [(kind, content) for kind, content in cls.chunks(data) if kind != b"EXIF"]
        if chunks[0][0] != b"VP8X":
            chunks.insert(0, (b"VP8X", cls._extended(*chunks[0])))
        head = bytes([chunks[0][1][0] | 0x08]) + chunks[0][1][1:]  # it has EXIF
        at = next((number for number, (kind, _) in enumerate(chunks) if kind == b"XMP "), len(chunks))  # XMP comes last
        chunks = [(b"VP8X", head), *chunks[1:at], (b"EXIF", block), *chunks[at:]]
        body = b"".join(kind + struct.pack("<I", len(c)) + c + bytes(len(c) % 2) for kind, c in chunks)
        return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body + data[cls._end(data) :]

    @staticmethod
    def _extended(kind: bytes, content: bytes) -> bytes:
        """The header that an image needs which so far had none."""
        if kind == b"VP8L":
            bits = int.from_bytes(content[1:5], "little")
            width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bits >> 28 & 1
        elif kind == b"VP8 ":
            width, height, alpha = *(side & 0x3FFF for side in struct.unpack_from("<HH", content, 6)), 0
        else:
            raise ValueError("no image where one should be")
        return bytes([alpha << 4, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _kind(data: bytes) -> type[_Jpeg] | type[_Png] | type[_WebP] | None:
    if data[:3] == b"\xff\xd8\xff":
        return _Jpeg
    if data[:8] == PNG_SIGN:
        return _Png
    return _WebP if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
