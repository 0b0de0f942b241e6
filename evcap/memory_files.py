"""A memory on disk: a folder that any crash leaves whole, and whose opening runs no code.

    manifest.json               format, encoder fingerprint, counts, key type; name, size and SHA-256 of the other files
    keys-XXXXXXXX.safetensors   tensor "keys" (M,D), float16 or float32, rows of unit length
    names-XXXXXXXX.json         name, source and image of each entry

A save writes a new pair of keys and names and then replaces the manifest, the one file that decides which pair counts: a
process killed at any moment leaves the old memory or the new one. Its other file, .lock, is what writers wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError

FORMAT = 1
ALWAYS_HASHED = 64 * 2**20  # bytes; larger key files are hashed on request only, to open in well under a second
OWN_FILE = re.compile(r"keys-[0-9a-f]{8}\.safetensors|names-[0-9a-f]{8}\.json|manifest-[0-9a-f]{8}\.tmp")


class MemoryFormatError(EvcapError):
    """A folder that is no memory, is damaged, or belongs to another encoder."""


def write_memory(folder: Path, keys: np.ndarray, columns: dict[str, list[str]], encoder: str, known: str | None) -> str:
    """Write keys (M,D) and the columns names, sources, images; returns the manifest's text.

    known: the manifest this memory was opened from; if the folder now holds another one, EvcapError is raised, as it is
    when the folder cannot be written. What was there is kept in both cases.
    """
    try:
        with _lock(folder):
            manifest = folder / "manifest.json"
            if known is not None and manifest.exists() and manifest.read_bytes() != known.encode():
                raise EvcapError(f"{folder} was changed by another process meanwhile; open it again and repeat the edit")
            return _write_parts(folder, keys, columns, encoder)
    except OSError as error:
        raise EvcapError(f"cannot save the memory to {folder}: {error.strerror or error}; what was there is kept") from None


def _write_parts(folder: Path, keys: np.ndarray, columns: dict[str, list[str]], encoder: str) -> str:
    from safetensors.numpy import save

    mark = secrets.token_hex(4)
    parts = {
        f"keys-{mark}.safetensors": save({"keys": np.ascontiguousarray(keys)}),
        f"names-{mark}.json": json.dumps(columns).encode(),
    }
    manifest = {
        "format": FORMAT,
        "encoder": encoder,
        "entries": len(keys),
        "names": len(set(columns["names"])),
        "dim": int(keys.shape[1]),
        "dtype": str(keys.dtype),
        "index": "flat",
        "files": {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in parts.items()},
    }
    text = json.dumps(manifest, indent=1) + "\n"
    temporary = f"manifest-{mark}.tmp"
    try:
        for name, content in (parts | {temporary: text.encode()}).items():
            _write(folder / name, content)
        _sync(folder)
        os.replace(folder / temporary, folder / "manifest.json")
    except BaseException:
        if not _holds(folder, text):  # Ctrl-C can arrive just after the replacement
            _delete(folder / name for name in (*parts, temporary))
        raise
    _sync(folder)
    # the pair before this one, and what killed saves left
    _delete(path for path in list(folder.iterdir()) if OWN_FILE.fullmatch(path.name) and path.name not in parts)
    return text


def _holds(folder: Path, text: str) -> bool:
    manifest = folder / "manifest.json"
    return manifest.exists() and manifest.read_bytes() == text.encode()


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # what stays is in nobody's way, and the next save tries again
            path.unlink()


def _sync(folder: Path) -> None:
    """Make the folder's entries outlast a power failure, on file systems that can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_memory(folder: Path, encoder: str | None, verify: bool) -> tuple[np.ndarray, dict[str, list[str]], str, str]:
    """Mapped keys (M,D), columns, the encoder's fingerprint and the manifest's text. Raises MemoryFormatError."""
    while True:
        text = _manifest_text(folder)
        try:
            return _read_parts(folder, text, encoder, verify)
        except FileNotFoundError as error:
            if text == _manifest_text(folder):  # else a writer replaced the pair after the manifest was read
                raise MemoryFormatError(f"{folder}: {Path(error.filename).name} is missing; restore the folder") from None
        except OSError as error:
            raise MemoryFormatError(f"cannot read {error.filename}: {error.strerror}") from None


def _read_parts(folder: Path, text: str, encoder: str | None, verify: bool):
    manifest, keys_file, names_file = _parse_manifest(folder, text)
    made_by = manifest["encoder"]
    if encoder is not None and made_by != encoder:
        raise MemoryFormatError(f"{folder} was made by encoder {made_by}, this model is {encoder}: rebuild it with this model")
    _check_file(names_file, manifest, True)
    _check_file(keys_file, manifest, verify or keys_file.stat().st_size <= ALWAYS_HASHED)
    keys = _map_keys(keys_file)
    told, found = (manifest["entries"], manifest["dim"], manifest["dtype"]), (*keys.shape, str(keys.dtype))
    if told != found:
        raise MemoryFormatError(f"{folder}: the manifest says {told}, the keys are {found}; restore the folder")
    try:
        columns = json.loads(names_file.read_bytes())
        lists = [columns[c] for c in ("names", "sources", "images")]
        complete = all(isinstance(x, list) and len(x) == len(keys) and set(map(type, x)) <= {str} for x in lists)
    except (ValueError, LookupError, TypeError, RecursionError):
        complete = False
    if not complete:
        raise MemoryFormatError(f"{names_file} does not hold a name, source and image for each of {len(keys)} keys")
    return keys, columns, made_by, text


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _manifest_text(folder: Path) -> str:
    try:
        return (folder / "manifest.json").read_text()
    except FileNotFoundError:
        what = "is not a memory (no manifest.json)" if folder.is_dir() else "does not exist"
        raise MemoryFormatError(f"{folder} {what}; `evcap memory export FOLDER` makes a copy of the shipped one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MemoryFormatError(f"cannot read {folder}/manifest.json: {error}") from None


def _parse_manifest(folder: Path, text: str) -> tuple[dict, Path, Path]:
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise MemoryFormatError(f"{folder} has format {manifest['format']}, this evcap reads {FORMAT}: update evcap")
        if manifest["index"] != "flat" or not isinstance(manifest["encoder"], str):
            raise ValueError
        names = [n for n in manifest["files"] if OWN_FILE.fullmatch(n) and {"sha256", "bytes"} <= set(manifest["files"][n])]
        keys_file = next(n for n in names if n.startswith("keys-"))
        names_file = next(n for n in names if n.startswith("names-"))
        entries, dim, dtype = manifest["entries"], manifest["dim"], manifest["dtype"]
        if not (isinstance(entries, int) and isinstance(dim, int) and dtype in ("float16", "float32")):
            raise ValueError
    except (ValueError, LookupError, TypeError, StopIteration, RecursionError):
        raise MemoryFormatError(f"{folder}/manifest.json is damaged; restore the folder") from None
    return manifest, folder / keys_file, folder / names_file


def _check_file(path: Path, manifest: dict, hashed: bool) -> None:
    told = manifest["files"][path.name]
    if path.stat().st_size != told["bytes"]:
        raise MemoryFormatError(f"{path} has {path.stat().st_size} bytes, the manifest says {told['bytes']}; restore it")
    if hashed:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != told["sha256"]:
            raise MemoryFormatError(f"{path} is damaged (its SHA-256 is not the manifest's); restore the folder")


def _map_keys(path: Path) -> np.ndarray:
    """Map the tensor "keys" of a safetensors file; the library itself would copy it into memory."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            told = json.loads(file.read(min(length, 2**20)))["keys"]
        dtype = {"F16": np.float16, "F32": np.float32}[told["dtype"]]
        rows, width = told["shape"]
        if rows == 0:
            return np.zeros((0, width), dtype)
        return np.memmap(path, dtype, "r", offset=8 + length + told["data_offsets"][0], shape=(rows, width))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise MemoryFormatError(f"{path} is not a safetensors file with keys ({error}); restore the folder") from None
