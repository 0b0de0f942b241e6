"""The external visual-name memory: keys (pictures) with names, searched by the query features of a picture."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError
from evcap.memory_files import MemoryFormatError, read_memory, write_memory
from evcap.vocabulary import clean_name

CHUNK = 65536  # keys that become float32 at once while the index is filled
BLAS_FROM = 20  # queries; faiss 1.15 makes no matrix products for fewer than 334 of width 384: 8 times as long for a picture
BLAS_KEYS = 16384  # keys of one product; faiss's 1,024 make so many small ones that threads on busy cores wait for each other


@dataclass(frozen=True)
class RetrievedName:
    """A name with the cosine similarity of its best hit and the query (0 to 31) that made it."""

    name: str
    similarity: float
    query: int


def _array(values) -> np.ndarray:
    """The array of an array or of a tensor on any device; bfloat16, which numpy lacks, becomes float32."""
    if hasattr(values, "detach"):  # told by its manner: importing torch would cost a second
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def _unit(keys) -> np.ndarray:
    keys = _array(keys)
    if keys.ndim != 2 or not np.issubdtype(keys.dtype, np.floating):
        raise EvcapError(f"keys must be a floating array (M,D), got {keys.dtype} {keys.shape}")
    wide = keys.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise EvcapError("a key is zero or not finite; such a picture cannot be found again")
    return (wide / length).astype(keys.dtype if keys.dtype in (np.float16, np.float32) else np.float32)


def checked_name(name: str) -> str:
    """The name as memories spell it. Raises EvcapError when nothing of it can be said."""
    cleaned = clean_name(name)
    if not cleaned:
        raise EvcapError(f"'{name}' holds nothing that can be said; give a name of letters or digits")
    return cleaned


class VisualNameMemory:
    """M entries: keys (M,D), names, sources and images (lists of M strings), and the fingerprint of their encoder."""

    def __init__(self, keys: np.ndarray, names: list[str], sources: list[str], images: list[str], encoder: str):
        self.keys, self.encoder = keys, encoder
        self.names, self.sources, self.images = list(names), list(sources), list(images)  # own: two may share a source
        self._index = None
        self._room: np.ndarray | None = None  # of which keys are the first rows, once entries were added
        self._opened_from: tuple[Path, str] | None = None  # folder and manifest text, to notice another writer

    @classmethod
    def build(cls, keys, names: Sequence[str], sources: Sequence[str], images: Sequence[str], encoder: str):
        """New memory from keys (M,D), which are normalised here. Raises EvcapError for unequal counts or empty names."""
        keys = _array(keys)
        memory = cls.empty(keys.shape[-1], encoder, keys.dtype)
        memory.add(keys, names, sources, images)
        return memory

    @classmethod
    def empty(cls, dim: int, encoder: str, dtype=np.float16):
        """A memory without entries. Keys will be float16 if dtype is, else float32."""
        return cls(np.zeros((0, dim), np.float16 if dtype == np.float16 else np.float32), [], [], [], encoder)

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Short hash of all keys and names: two memories with one fingerprint answer alike."""
        digest = hashlib.sha256(json.dumps([self.encoder, self.names, self.images]).encode())
        for start in range(0, len(self), CHUNK):
            digest.update(np.ascontiguousarray(self.keys[start : start + CHUNK]))
        return digest.hexdigest()[:16]

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
        queries = _array(queries).astype(np.float32, copy=False)
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
            if name not in kept and entry >= 0 and np.isfinite(similarity):  # -1: the index found nothing near a NaN
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

            faiss.cvar.distance_compute_blas_threshold = BLAS_FROM  # of the whole process: an index has no such setting
            faiss.cvar.distance_compute_blas_database_bs = BLAS_KEYS
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
        cleaned = [checked_name(name) for name in names]
        keys = keys.astype(self.keys.dtype)
        if self._index is not None:
            self._index.add(keys.astype(np.float32))
        self._append(keys)
        self.names += cleaned
        self.sources += [str(source) for source in sources]  # a list: they may be this memory's own
        self.images += [str(image) for image in images]

    def _append(self, keys: np.ndarray) -> None:
        """Rows behind the keys, in room that doubles: adding one at a time copies each key a few times, not each time."""
        count = len(self.keys) + len(keys)
        if self._room is None or self.keys.base is not self._room or len(self._room) < count:
            self._room = np.empty((max(count, 2 * len(self.keys)), keys.shape[1]), keys.dtype)
            self._room[: len(self.keys)] = self.keys
        self._room[len(self.keys) : count] = keys
        self.keys = self._room[:count]

    def remove(self, name: str) -> int:
        """Drop all entries of a name; returns how many. Raises EvcapError, with the names that come near, for none."""
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
        old, new = self._present(old), checked_name(new)
        count = self.names.count(old)
        self.names = [new if n == old else n for n in self.names]
        return count

    def merge(self, other: VisualNameMemory) -> int:
        """Append all entries of a memory of the same encoder; returns how many."""
        if other.encoder != self.encoder:
            raise MemoryFormatError(
                f"the other memory was made by encoder {other.encoder}, this one by {self.encoder}: rebuild one of them"
            )
        count = len(other)
        if count:
            self.add(other.keys, other.names, other.sources, other.images)
        return count

    def _present(self, name: str) -> str:
        cleaned = checked_name(name)
        if cleaned not in self.names:
            near = difflib.get_close_matches(cleaned, set(self.names), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`evcap memory list` shows all names"
            raise EvcapError(f"the memory holds no entry '{name}'; {hint}")
        return cleaned

    # -- on disk

    def save(self, folder: str | Path) -> None:
        """Write to `folder`, new or replacing the memory there at one stroke.

        Raises EvcapError when the folder cannot be written, or when another process changed it since it was opened.
        """
        folder = Path(folder)
        columns = {"names": self.names, "sources": self.sources, "images": self.images}
        known = self._opened_from[1] if self._opened_from and self._opened_from[0] == folder.resolve() else None
        manifest = write_memory(folder, self.keys, columns, self.encoder, known)
        self._opened_from = (folder.resolve(), manifest)

    @classmethod
    def open(cls, folder: str | Path, encoder: str | None = None, verify: bool = False) -> VisualNameMemory:
        """Open a memory; keys stay on disk until searched. `encoder`: refuse a memory made by another one.

        verify: hash the keys whatever their size. Raises MemoryFormatError with one line when the folder is no memory, is
        damaged, or belongs to another encoder.
        """
        folder = Path(folder)
        keys, columns, made_by, manifest = read_memory(folder, encoder, verify)
        memory = cls(keys, columns["names"], columns["sources"], columns["images"], made_by)
        memory._opened_from = (folder.resolve(), manifest)
        return memory


def _without(similarity, entry, own: set[int], hits: int):
    """The first `hits` of each row that are not the picture's own entries."""
    if not own:
        return similarity[:, :hits], entry[:, :hits]
    barred = np.isin(entry, list(own))
    order = np.argsort(barred, axis=1, kind="stable")[:, :hits]
    similarity = np.where(barred, -np.inf, similarity)
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(entry, order, 1)
