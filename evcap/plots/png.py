"""How PNG files that evcap drew are known again."""

from __future__ import annotations

from pathlib import Path

SIGN, SOFTWARE = b"\x89PNG\r\n\x1a\n", "evcap"
METADATA = {"Software": SOFTWARE}  # what matplotlib writes into them
_MARK = b"tEXtSoftware\0" + SOFTWARE.encode()


def is_drawing(path: Path) -> bool:
    """Whether a file is a PNG that evcap drew. May raise OSError."""
    with path.open("rb") as file:
        start = file.read(4096)
    return start.startswith(SIGN) and _MARK in start
