"""Files that are never seen half-written, and files of other people's making, read with a bound."""

from __future__ import annotations

import codecs
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new empty file beside `path` to write to, which takes its name at the end; removed if that fails.

    The old file stays whole until then. A link is written through, not replaced; so is a device. May raise OSError.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".evcap-{secrets.token_hex(6)}.tmp")  # of this call alone, whoever else writes the same file
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, through `replacing`; file names in it that are not UTF-8 keep their bytes.

    Half of a surrogate pair, which no encoding has, becomes a question mark. May raise OSError.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(encoded(text))


WRITABLE = "evcap.writable"  # name of an error handler of encodings, as in open(..., errors=WRITABLE)


def _writable(error: UnicodeError) -> tuple[bytes | str, int]:
    """Undecoded bytes of file names (PEP 383) are those bytes again, what else the encoding lacks is a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    left = error.object[error.start : error.end]
    return b"".join(bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else b"?" for c in left), error.end


codecs.register_error(WRITABLE, _writable)


def encoded(text: str) -> bytes:
    """UTF-8 in which undecoded bytes of file names (PEP 383) are those bytes, and other lone surrogates question marks."""
    return text.encode(errors=WRITABLE)


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises OSError, at once, also for a pipe, a device or a longer file: `strerror` says which.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would else wait for ever
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(0, "not a regular file", str(path))
        if state.st_size > most:
            raise OSError(0, f"{state.st_size:,} bytes are more than the {most:,} that such a file may have", str(path))
        with os.fdopen(os.dup(file), "rb") as stream:
            return stream.read(most)
    finally:
        os.close(file)


def is_text(path: str | Path) -> bool:
    """Whether the first 4,096 bytes of a file look like text: no byte of them is 0, as some are in every image's.

    May raise OSError.
    """
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)
