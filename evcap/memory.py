"""The external visual-name memory: keys (pictures) with names, searched by the query features of a picture.

On disk (a folder):

    manifest.json               format, encoder fingerprint, counts, key type, and of both other files name and SHA-256
    keys-XXXXXXXX.safetensors   tensor "keys" (M,D), float16 or float32, rows of unit length
    names-XXXXXXXX.json         name, source and image of each entry

A save writes new keys and names files and then replaces the manifest, the one file that decides which pair counts: a
process killed at any moment leaves the old memory or the new one. Opening runs no code and maps the keys into memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError
from evcap.vocabulary import clean_name

FORMAT = 1
ALWAYS_HASHED = 64 * 2**20  # bytes; larger key files are hashed by open(verify=True) only, to open in well under a second
CHUNK = 65536  # keys that become float32 at once while the index is filled


class MemoryFormatError(EvcapError):
    """A folder that is no memory, is damaged, or belongs to another encoder."""


@dataclass(frozen=True)
class RetrievedName:
    """A name with the cosine similarity of its best hit and the query (0 to 31) that made it."""

    name: str
    similarity: float
    query: int


def _unit(keys) -> np.ndarray:
    keys = np.asarray(keys)
    if keys.ndim != 2 or not np.issubdtype(keys.dtype, np.floating):
        raise EvcapError(f"keys must be a floating array (M,D), got {keys.dtype} {keys.shape}")
    wide = keys.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise EvcapError("a key is zero or not finite; such a picture cannot be found again")
    return (wide / length).astype(keys.dtype if keys.dtype in (np.float16, np.float32) else np.float32)


class VisualNameMemory:
    """M entries: keys (M,D), names, sources and images (lists of M strings), and the fingerprint of their encoder."""

    def __init__(self, keys: np.ndarray, names: list[str], sources: list[str], images: list[str], encoder: str):
        self.keys, self.names, self.sources, self.images, self.encoder = keys, names, sources, images, encoder
        self._index = None
        self._opened_from: tuple[Path, str] | None = None  # folder and manifest text, to notice another writer

    @classmethod
    def build(cls, keys, names: Sequence[str], sources: Sequence[str], images: Sequence[str], encoder: str):
        """New memory from keys (M,D), which are normalised here. Raises EvcapError for unequal counts or empty names."""
        memory = cls.empty(np.asarray(keys).shape[-1], encoder, np.asarray(keys).dtype)
        memory.add(keys, names, sources, images)
        return memory

    @classmethod
    def empty(cls, dim: int, encoder: str, dtype=np.float16):
        """A memory without entries."""
        return cls(np.zeros((0, dim), dtype if dtype == np.float32 else np.float16), [], [], [], encoder)

    def __len__(self) -> int:
        return len(self.names)

    def counts(self) -> dict[str, int]:
        """Entries per name."""
        return dict(Counter(self.names))

    # -- search

    def search(
        self, queries, hits: int = 5, keep: int = 32, limit: int = 10, exclude: Sequence[str] | None = None
    ) -> list[list[RetrievedName]]:
        """Names for B pictures from their query features (B,Q,D), best first.

        The EVCap release's rule: each query takes its `hits` nearest keys; of all hits of a picture the `keep` most similar
        stay (ties: lower query, then nearer rank); names are cleaned, repeats dropped, the first `limit` returned.
        exclude: for each picture an image whose entries it must not find, so that training pictures do not find themselves.
        """
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 3 or queries.shape[2] != self.keys.shape[1]:
            raise EvcapError(f"queries must be (B,Q,{self.keys.shape[1]}), got {queries.shape}")
        batch, count, dim = queries.shape
        own = [set() for _ in range(batch)] if exclude is None else self._entries_of(exclude)
        wanted = min(hits + max(map(len, own), default=0), len(self))
        if batch == 0 or wanted == 0:
            return [[] for _ in range(batch)]
        flat = queries.reshape(-1, dim)
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        similarity, entry = self.index.search(flat, wanted)
        similarity, entry = (x.reshape(batch, count, wanted) for x in (similarity, entry))
        results = []
        for b in range(batch):
            sims, found = _without(similarity[b], entry[b], own[b], hits)
            best = np.argsort(-sims, axis=None, kind="stable")[:keep]
            results.append(self._names(best // sims.shape[1], sims.ravel()[best], found.ravel()[best], limit))
        return results

    def _names(self, queries, similarities, entries, limit: int) -> list[RetrievedName]:
        kept: dict[str, RetrievedName] = {}
        for query, similarity, entry in zip(queries.tolist(), similarities.tolist(), entries.tolist(), strict=True):
            name = clean_name(self.names[entry])
            if name not in kept and np.isfinite(similarity):
                kept[name] = RetrievedName(name, similarity, query)
        return list(kept.values())[:limit]

    def _entries_of(self, images: Sequence[str]) -> list[set[int]]:
        wanted, places = set(images), {}
        for place, image in enumerate(self.images):
            if image in wanted:
                places.setdefault(image, set()).add(place)
        return [places.get(image, set()) for image in images]

    @property
    def index(self):
        """Exact inner-product index over the keys (faiss.IndexFlatIP), made at the first search."""
        if self._index is None:
            import faiss

            self._index = faiss.IndexFlatIP(self.keys.shape[1])
            for start in range(0, len(self), CHUNK):
                self._index.add(np.ascontiguousarray(self.keys[start : start + CHUNK], dtype=np.float32))
        return self._index

    # -- edits: in memory; save() makes them last

    def add(self, keys, names: Sequence[str], sources: Sequence[str], images: Sequence[str]) -> None:
        """Append entries; keys (m,D) are normalised. Raises EvcapError for unequal counts, another D or an empty name."""
        keys = _unit(keys)
        if not len(keys) == len(names) == len(sources) == len(images):
            raise EvcapError(f"{len(keys)} keys, {len(names)} names, {len(sources)} sources, {len(images)} images: unequal")
        if keys.shape[1] != self.keys.shape[1]:
            raise EvcapError(f"keys are {keys.shape[1]} wide, this memory's are {self.keys.shape[1]}")
        cleaned = [self._checked(name) for name in names]
        keys = keys.astype(self.keys.dtype)
        if self._index is not None:
            self._index.add(keys.astype(np.float32))
        self.keys = np.concatenate([self.keys, keys])
        self.names += cleaned
        self.sources += map(str, sources)
        self.images += map(str, images)

    def remove(self, name: str) -> int:
        """Drop all entries of a name; returns how many. Raises EvcapError if there is none."""
        name = self._present(name)
        stay = [i for i, n in enumerate(self.names) if n != name]
        removed = len(self) - len(stay)
        self.keys = self.keys[stay]
        for column in ("names", "sources", "images"):
            values = getattr(self, column)
            setattr(self, column, [values[i] for i in stay])
        self._index = None
        return removed

    def rename(self, old: str, new: str) -> int:
        """Give all entries of `old` the name `new`, joining it if it exists; returns how many. Raises if there is none."""
        old, new = self._present(old), self._checked(new)
        count = self.names.count(old)
        self.names = [new if n == old else n for n in self.names]
        return count

    def merge(self, other: VisualNameMemory) -> int:
        """Append all entries of a memory of the same encoder; returns how many."""
        if other.encoder != self.encoder:
            raise MemoryFormatError(
                f"the other memory was made by encoder {other.encoder}, this one by {self.encoder}: rebuild one of them"
            )
        if len(other):
            self.add(other.keys, other.names, other.sources, other.images)
        return len(other)

    @staticmethod
    def _checked(name: str) -> str:
        cleaned = clean_name(name)
        if not cleaned:
            raise EvcapError(f"'{name}' holds nothing that can be said; give a name of letters or digits")
        return cleaned

    def _present(self, name: str) -> str:
        cleaned = clean_name(name)
        if cleaned not in self.names:
            raise EvcapError(f"the memory holds no entry '{name}'")
        return cleaned

    # -- on disk

    def save(self, folder: str | Path) -> None:
        """Write to `folder`, new or replacing the memory there at one stroke.

        Raises EvcapError when the folder cannot be written, or when another process changed it since this memory was opened.
        """
        folder = Path(folder)
        try:
            with _lock(folder):
                self._refuse_lost_update(folder)
                manifest = self._write_parts(folder)
                self._opened_from = (folder.resolve(), manifest)
        except OSError as error:
            raise EvcapError(f"cannot save the memory to {folder}: {error.strerror or error}; what was there is kept") from None

    def _refuse_lost_update(self, folder: Path) -> None:
        manifest = folder / "manifest.json"
        same = self._opened_from and self._opened_from[0] == folder.resolve() and manifest.exists()
        if same and manifest.read_text() != self._opened_from[1]:
            raise EvcapError(f"{folder} was changed by another process meanwhile; open it again and repeat the edit")

    def _write_parts(self, folder: Path) -> str:
        from safetensors.numpy import save

        mark = secrets.token_hex(4)
        columns = {"names": self.names, "sources": self.sources, "images": self.images}
        parts = {
            f"keys-{mark}.safetensors": save({"keys": np.ascontiguousarray(self.keys)}),
            f"names-{mark}.json": json.dumps(columns).encode(),
        }
        written = []
        try:
            for name, content in parts.items():
                written.append(folder / name)
                _write(folder / name, content)
            manifest = {
                "format": FORMAT,
                "encoder": self.encoder,
                "entries": len(self),
                "names": len(set(self.names)),
                "dim": int(self.keys.shape[1]),
                "dtype": str(self.keys.dtype),
                "index": "flat",
                "files": {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in parts.items()},
            }
            text = json.dumps(manifest, indent=1) + "\n"
            written.append(folder / f"manifest-{mark}.tmp")
            _write(written[-1], text.encode())
            os.replace(written[-1], folder / "manifest.json")
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        for path in folder.iterdir():  # the pair before this one, and what killed saves left
            if path.name.startswith(("keys-", "names-", "manifest-")) and path.name not in parts:
                path.unlink()
        return text

    @classmethod
    def open(cls, folder: str | Path, encoder: str | None = None, verify: bool = False) -> VisualNameMemory:
        """Open a memory; keys stay on disk until searched. `encoder`: refuse a memory made by another one.

        Raises MemoryFormatError with one line when the folder is no memory, is damaged, or is another encoder's.
        """
        folder = Path(folder)
        for attempt in (1, 2, 3):
            text = _manifest_text(folder)
            try:
                return cls._open_parts(folder, text, encoder, verify)
            except FileNotFoundError as error:  # a writer replaced the pair after the manifest was read
                if attempt == 3 or text == _manifest_text(folder):
                    raise MemoryFormatError(f"{folder}: {Path(error.filename).name} is missing; restore the folder") from None
        raise AssertionError("unreachable")

    @classmethod
    def _open_parts(cls, folder: Path, text: str, encoder: str | None, verify: bool) -> VisualNameMemory:
        manifest, keys_file, names_file = _parse_manifest(folder, text)
        if encoder is not None and manifest["encoder"] != encoder:
            raise MemoryFormatError(
                f"{folder} was made by encoder {manifest['encoder']}, this model's is {encoder}: rebuild it with this model"
            )
        _check_file(names_file, manifest, True)
        _check_file(keys_file, manifest, verify or keys_file.stat().st_size <= ALWAYS_HASHED)
        columns = json.loads(names_file.read_text())
        keys = _map_keys(keys_file)
        told = (manifest["entries"], manifest["dim"], manifest["dtype"])
        if (*keys.shape, str(keys.dtype)) != told:
            raise MemoryFormatError(f"{folder}: the manifest says {told}, the keys are {(*keys.shape, str(keys.dtype))}")
        lists = [columns.get(c) if isinstance(columns, dict) else None for c in ("names", "sources", "images")]
        if any(not isinstance(x, list) or len(x) != len(keys) for x in lists):
            raise MemoryFormatError(f"{names_file} does not hold a name, source and image for each of {len(keys)} keys")
        memory = cls(keys, *lists, manifest["encoder"])
        memory._opened_from = (folder.resolve(), text)
        return memory


def _without(similarity, entry, own: set[int], hits: int):
    """The first `hits` of each row that are not the picture's own entries."""
    if not own:
        return similarity[:, :hits], entry[:, :hits]
    barred = np.isin(entry, list(own))
    order = np.argsort(barred, axis=1, kind="stable")[:, :hits]
    similarity = np.where(barred, -np.inf, similarity)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(entry, order, 1)


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
        names = [n for n in manifest["files"] if Path(n).name == n and {"sha256", "bytes"} <= set(manifest["files"][n])]
        keys_file = next(n for n in names if n.startswith("keys-"))
        names_file = next(n for n in names if n.startswith("names-"))
        entries, dim, dtype = manifest["entries"], manifest["dim"], manifest["dtype"]
        if not (isinstance(entries, int) and isinstance(dim, int) and dtype in ("float16", "float32")):
            raise ValueError
    except (ValueError, KeyError, TypeError, StopIteration):
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
    except (ValueError, KeyError, TypeError) as error:
        raise MemoryFormatError(f"{path} is not a safetensors file with keys ({error}); restore the folder") from None
