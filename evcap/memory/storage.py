"""A memory on disk: a folder that any crash leaves whole, and whose opening runs no code.

    manifest.json               format, encoder fingerprint, counts, key type; name, size and SHA-256 of the other files
    keys-XXXXXXXX.safetensors   tensor "keys" (M,D), float16 or float32, rows of unit length
    names-XXXXXXXX.json         name, source and image of each entry
    index-XXXXXXXX.faiss        the index of a large memory, see evcap.memory.index; absent where every search compares all keys

A save writes new files for what has changed and then replaces the manifest, the one file that decides which files count: a
process killed at any moment leaves the old memory or the new one. Its other file, .lock, is what writers wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError
from evcap.files import read_regular
from evcap.memory.index import CHUNK, ApproximateIndex, map_index
from evcap.memory.index_kind import IndexKind
from evcap.memory.manifest import COLUMNS, OWN_FILE, Contents, MemoryFormatError, manifest_of, parse_manifest
from evcap.memory.names import clean_name, shown
from evcap.text_files import one_line

LARGEST_MANIFEST, LARGEST_HEADER, LARGEST_NAMES = 2**20, 2**20, 2**16  # bytes
LARGEST_ENTRY = 2**14  # bytes of a name, its source and its image
LENGTH = 0.01  # by which the squared length of a key may differ from 1
SAMPLE = 1024  # keys whose length is looked at where they are many; the others' when they are first searched
ALWAYS_HASHED = 64 * 2**20  # bytes; larger keys and indexes are hashed on request only, to open in well under a second

Put = Callable[[bytes], object]  # takes a block of a file that is being written


def write_memory(folder: Path, contents: Contents, known: Contents | None) -> str:
    """Write what has changed since `known`, which was read from this folder; returns the manifest's text.

    Raises EvcapError if the folder holds another manifest than the known one, or cannot be written. What was there is kept
    in both cases.
    """
    try:
        with _lock(folder):
            manifest = folder / "manifest.json"
            if not manifest.exists():
                known = None
            if known is not None and read_regular(manifest, LARGEST_MANIFEST) != known.manifest.encode():
                raise EvcapError(f"{folder} was changed by another process meanwhile; open it again and repeat the edit")
            return _write_parts(folder, contents, known)
    except OSError as error:
        raise EvcapError(f"cannot save the memory to {folder}: {error.strerror or error}; what was there is kept") from None


def _write_parts(folder: Path, contents: Contents, known: Contents | None) -> str:
    mark, text = secrets.token_hex(4), ""
    files = _unchanged(folder, contents, known)
    parts = {f"keys-{mark}.safetensors": partial(_put_keys, contents.keys), f"names-{mark}.json": partial(_put_names, contents)}
    if contents.index is not None:
        parts[f"index-{mark}.faiss"] = contents.index.write
    kept = {name.split("-")[0] for name in files}
    parts = {name: put for name, put in parts.items() if name.split("-")[0] not in kept}
    temporary = f"manifest-{mark}.tmp"
    try:
        for name, content in parts.items():
            files[name] = _write(folder / name, content)
        text = json.dumps(manifest_of(contents, files), indent=1) + "\n"
        _write(folder / temporary, lambda put: put(text.encode()))
        _sync(folder)
        os.replace(folder / temporary, folder / "manifest.json")
    except BaseException:
        if not _holds(folder, text):  # Ctrl-C can arrive just after the replacement
            _delete(folder / name for name in (*parts, temporary))
        raise
    _sync(folder)
    # the files before these, and what killed saves left
    _delete(path for path in list(folder.iterdir()) if OWN_FILE.fullmatch(path.name) and path.name not in files)
    return text


def _unchanged(folder: Path, contents: Contents, known: Contents | None) -> dict[str, dict]:
    """Those of the known files that hold what is to be written, with what the manifest tells of them."""
    if known is None:
        return {}
    keys = contents.keys is known.keys and not contents.keys.flags.writeable
    index = None not in (contents.index, known.index) and contents.index.faiss is known.index.faiss
    same = {"keys": keys, "index": index, "names": False}
    files = json.loads(known.manifest)["files"]
    return {name: told for name, told in files.items() if same[name.split("-")[0]] and (folder / name).exists()}


def _put_keys(keys: np.ndarray, put: Put) -> None:
    """A safetensors file of one tensor. The library's would pass under a name that no later save knows for its own."""
    dtype = {"float16": "F16", "float32": "F32"}[str(keys.dtype)]
    told = {"dtype": dtype, "shape": keys.shape, "data_offsets": [0, keys.nbytes]}
    header = json.dumps({"keys": told}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    put(len(header).to_bytes(8, "little") + header)
    for start in range(0, len(keys), CHUNK):
        put(np.ascontiguousarray(keys[start : start + CHUNK]).data.cast("B"))


def _put_names(contents: Contents, put: Put) -> None:
    gone = contents.index.removed.tolist() if contents.index is not None else []
    put(json.dumps(contents.columns | ({"removed": gone} if gone else {})).encode())


def _holds(folder: Path, text: str) -> bool:
    manifest = folder / "manifest.json"
    return manifest.exists() and read_regular(manifest, LARGEST_MANIFEST) == text.encode()


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


def read_memory(folder: Path, encoder: str | None, verify: bool, index: bool = True) -> Contents:
    """What a folder holds; without its index if not `index`. Raises MemoryFormatError."""
    while True:
        text = _manifest_text(folder)
        try:
            return _read_parts(folder, text, encoder, verify, index)
        except FileNotFoundError as error:
            if text == _manifest_text(folder):  # else a writer replaced the files after the manifest was read
                path = Path(error.filename)
                raise MemoryFormatError(f"{folder}: {path.name} is missing; {_remedy(path)}") from None
        except OSError as error:
            raise MemoryFormatError(f"cannot read {error.filename}: {error.strerror}") from None


def _read_parts(folder: Path, text: str, encoder: str | None, verify: bool, index: bool) -> Contents:
    manifest, files = parse_manifest(folder, text)
    made_by = manifest["encoder"]
    if encoder is not None and made_by != encoder:
        raise MemoryFormatError(f"{folder} was made by encoder {made_by}, this model is {encoder}: rebuild it with this model")
    _check_file(files["names"], manifest, True)
    _check_file(files["keys"], manifest, verify)
    keys = _map_keys(files["keys"])
    told, found = (manifest["entries"], manifest["dim"], manifest["dtype"]), (*keys.shape, str(keys.dtype))
    if told != found:
        raise MemoryFormatError(f"{folder}: the manifest says {told}, the keys are {found}; restore the folder")
    check_units(keys, files["keys"], None if verify or keys.nbytes <= ALWAYS_HASHED else SAMPLE)
    lists, gone = _read_names(files["names"], len(keys))
    if "index" in files and not index:
        return Contents(keys, lists, made_by, manifest=text)
    mapped = _read_index(files["index"], manifest, gone, verify) if "index" in files else None
    return Contents(keys, lists, made_by, mapped, manifest["chosen"], text)


def _read_names(path: Path, count: int) -> tuple[dict[str, list[str]], list[int]]:
    """The columns, and the entries of the index that are gone."""
    try:
        columns = json.loads(read_regular(path, LARGEST_NAMES + LARGEST_ENTRY * count))
        lists = {column: columns[column] for column in COLUMNS}
        if all(isinstance(x, list) and len(x) == count and set(map(type, x)) <= {str} for x in lists.values()):
            return _presentable(lists), columns.get("removed", [])
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise MemoryFormatError(f"{path} does not hold a name, source and image for each of {count} keys")


def _presentable(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    """The columns with one spelling of each name, whoever wrote the file, and nothing in them that controls a terminal."""
    ways = {"names": clean_name, "sources": shown, "images": shown}
    odd = [column for column, texts in lists.items() if not _plain("".join(texts))]
    return lists | {column: [t if _plain(t) else ways[column](t) for t in lists[column]] for column in odd}


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _read_index(path: Path, manifest: dict, removed: list[int], verify: bool) -> ApproximateIndex:
    _check_file(path, manifest, verify)
    shape, entries = (manifest["indexed"], manifest["dim"]), manifest["entries"]
    try:
        index = map_index(path, IndexKind(manifest["index"]), manifest["search"], removed, shape)
        if index.entries > entries:
            raise ValueError(f"it answers for {index.entries} entries of {entries}")
    except (ValueError, TypeError) as error:
        raise MemoryFormatError(f"{path} is not the index of these keys ({error}); {_remedy(path)}") from None
    return index


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    # never through a link, which may lead to somebody's file, and at once if it is a pipe
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(folder / ".lock", flags, 0o666), "rb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: Callable[[Put], object]) -> dict:
    """Write what `content` puts, a block at a time; returns what the manifest tells of the file."""
    digest = hashlib.sha256()

    def put(block: bytes) -> None:
        digest.update(block)
        file.write(block)

    with path.open("wb") as file:
        content(put)
        file.flush()
        os.fsync(file.fileno())
        return {"sha256": digest.hexdigest(), "bytes": file.tell()}


def _manifest_text(folder: Path) -> str:
    try:
        return read_regular(folder / "manifest.json", LARGEST_MANIFEST).decode()
    except FileNotFoundError:
        what = "is not a memory (no manifest.json)" if folder.is_dir() else "does not exist"
        raise MemoryFormatError(f"{folder} {what}; `evcap memory export FOLDER` makes a copy of the shipped one") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise MemoryFormatError(f"cannot read {folder}/manifest.json: {reason}") from None


def _remedy(path: Path) -> str:
    index = path.name.startswith("index-")
    return f"`evcap memory index --memory {path.parent}` builds it anew" if index else "restore the folder"


def _check_file(path: Path, manifest: dict, hashed: bool) -> None:
    """Its size, and its SHA-256 if `hashed` or small."""
    told, state = manifest["files"][path.name], path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise MemoryFormatError(f"cannot read {path}: not a regular file")
    size = state.st_size
    if size != told["bytes"]:
        raise MemoryFormatError(f"{path} has {size} bytes, the manifest says {told['bytes']}; {_remedy(path)}")
    if hashed or size <= ALWAYS_HASHED:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != told["sha256"]:
            raise MemoryFormatError(f"{path} is damaged (its SHA-256 is not the manifest's); {_remedy(path)}")


def _map_keys(path: Path) -> np.ndarray:
    """Map the tensor "keys" of a safetensors file; the library itself would copy it into memory."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LARGEST_HEADER)))
            size = os.fstat(file.fileno()).st_size
        told = header.pop("keys")
        dtype = {"F16": np.float16, "F32": np.float32}[told["dtype"]]
        rows, width = told["shape"]
        if not all(type(n) is int and 0 <= n < 2**40 for n in (rows, width)):
            raise ValueError("no such shape")
        count = rows * width * np.dtype(dtype).itemsize
        if told["data_offsets"] != [0, count] or size != 8 + length + count or header.keys() - {"__metadata__"}:
            raise ValueError("the tensor is not all that follows the header")
        return np.memmap(path, dtype, "r", offset=8 + length, shape=(rows, width)) if rows else np.zeros((0, width), dtype)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = one_line(error)
        raise MemoryFormatError(f"{path} is not a safetensors file with keys ({what}); restore the folder") from None


def check_units(keys: np.ndarray, where: object, sample: int | None = None) -> None:
    """Raises MemoryFormatError for keys (M,D) that are not finite or not of unit length; of a `sample` of rows, None = all."""
    rows = keys if sample is None or len(keys) <= sample else keys[np.linspace(0, len(keys) - 1, sample).astype(np.int64)]
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK].astype(np.float32)
        if not (np.abs(np.einsum("nd,nd->n", part, part) - 1) < LENGTH).all():  # also of NaN
            raise MemoryFormatError(f"{where}: its keys are not of unit length; build the memory anew")
