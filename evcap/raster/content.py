"""What tells one raster from another: its content, whatever its name and the time it was copied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

WHOLE, PLACES = 1 << 24, 256  # bytes up to which a file is read whole; places of a larger one that are looked at
WHOLE_PART, PLACES_PART = 1 << 20, 16  # of a file that a raster refers to, of which there may be thousands
PIECE = 1 << 12  # bytes at a place
EDGE = 1 << 16  # bytes at both ends in fingerprints by time


def fingerprint_by_content(path: Path, parts: Sequence[Path], told: tuple) -> str:
    """16 hexadecimal digits: of a file, of those it refers to, and of what else is told. May raise OSError."""
    found = sorted((part.name, _sampled(part, WHOLE_PART, PLACES_PART)) for part in parts)
    content = _sampled(path, WHOLE, PLACES), found, told
    return hashlib.sha256(repr(content).encode(errors="surrogateescape")).hexdigest()[:16]


def _sampled(path: Path, whole: int, places: int) -> str:
    """Digest of a file's size and of all its bytes, or of those at so many places from its first to its last."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= whole:
            digest.update(file.read())
        else:
            for number in range(places):
                file.seek(number * (size - PIECE) // (places - 1))
                digest.update(file.read(PIECE))
    return digest.hexdigest()


def fingerprint_by_time(path: Path, parts: Sequence[Path], states: Mapping[Path, tuple], told: tuple) -> str:
    """As indexes made until 2026 tell which file is theirs. states: size and time of change come first."""
    listed = sorted((part.name, *states[part][:2]) for part in parts)
    digest = hashlib.sha256(repr((states[path][:2], listed, *told)).encode(errors="surrogateescape"))
    with path.open("rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, os.fstat(file.fileno()).st_size - EDGE))
        digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]
