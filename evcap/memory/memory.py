"""The external visual-name memory: keys (images) with names, searched by the query features of an image."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evcap.config import MemoryConfig
from evcap.errors import EvcapError
from evcap.memory.arrays import as_array, unit_keys
from evcap.memory.duplicates import KnownEntries
from evcap.memory.index import CHUNK, ApproximateIndex, build_index, exact_search, on_gpus
from evcap.memory.index_kind import FEWEST, IndexKind, kind_for
from evcap.memory.manifest import COLUMNS, Contents, MemoryFormatError
from evcap.memory.names import clean_name
from evcap.memory.ranking import Owners, RetrievedName, ranked_names, voted_names
from evcap.memory.storage import check_units, read_memory, write_memory
from evcap.progress import Progress, silent
from evcap.text_files import brief


def checked_name(name: str) -> str:
    """The name as memories spell it. Raises EvcapError when nothing of it can be said."""
    cleaned = clean_name(name)
    if not cleaned:
        raise EvcapError(f"{brief(name)} holds nothing that can be said; give a name of letters or digits")
    return cleaned


class VisualNameMemory:
    """M entries: keys (M,D), names, sources and images (lists of M strings), and the fingerprint of their encoder."""

    def __init__(self, keys: np.ndarray, names: list[str], sources: list[str], images: list[str], encoder: str):
        self.keys, self.encoder = keys, encoder
        self.names, self.sources, self.images = list(names), list(sources), list(images)  # own: two may share a source
        self._index = None
        self._known: KnownEntries | None = None  # made at the first edit that adds entries
        self._owners: Owners | None = None  # made at the first search that leaves images' own entries out
        self._approximate: ApproximateIndex | None = None  # over the first entries of a large memory
        self._chosen = False  # somebody chose the kind of index
        self._room: np.ndarray | None = None  # of which keys are the first rows, once entries were added
        self._opened_from: tuple[Path, Contents] | None = None  # to notice another writer, and what has not changed

    @classmethod
    def build(cls, keys, names: Sequence[str], sources: Sequence[str], images: Sequence[str], encoder: str):
        """New memory from keys (M,D), which are normalised here. Raises EvcapError for unequal counts or empty names."""
        keys = as_array(keys)
        memory = cls.empty(keys.shape[-1], encoder, keys.dtype)
        memory._append(*memory._checked(keys, names, sources, images))
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
        self, queries, top_k: int = 5, sub_top_k: int = 32, limit: int = 10, exclude: Sequence[str] | None = None
    ) -> list[list[RetrievedName]]:
        """Names for B images from their query features (B,Q,D), best first.

        The EVCap release's rule: each query takes its `top_k` nearest keys; of all hits of an image the `sub_top_k` most
        similar stay (ties: lower query, then nearer rank); names are cleaned, repeats dropped, the first `limit` returned.
        exclude: for each image one whose entries it must not find, so that training images do not find themselves.
        """
        similarity, entry = self._hits(self._queries(queries), top_k, exclude)
        return [ranked_names(s, e, self.names, sub_top_k, limit) for s, e in zip(similarity, entry, strict=True)]

    def vote(
        self, queries, neighbours: int = 100, sharpness: float = 20.0, limit: int = 6, exclude: Sequence[str] | None = None
    ) -> list[list[RetrievedName]]:
        """Names for B images from their query features (B,Q,D), best first, by votes of the entries that are alike.

        The mean query, of which keys are made, takes its `neighbours` nearest keys; each votes for its name with
        exp(`sharpness` x cosine), and the `limit` names with most votes are returned, each with the query nearest to its
        nearest key. So one key that is much nearer than others wins alone; of many about as near, the name most of them bear.
        exclude: as in `search`.
        """
        queries = self._queries(queries)
        similarity, entry = self._hits(queries.mean(axis=1, keepdims=True), neighbours, exclude)
        found = []
        for own, values, places in zip(queries, similarity[:, 0], entry[:, 0], strict=True):
            unit = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
            first = voted_names(values, places, self.names, sharpness)[:limit]
            found.append([RetrievedName(n, value, int(np.argmax(unit @ self.keys[place]))) for n, value, place in first])
        return found

    def retrieve(self, queries, rule: MemoryConfig, exclude: Sequence[str] | None = None) -> list[list[RetrievedName]]:
        """Names for B images from their query features (B,Q,D), by a preset's rule."""
        if rule.votes:
            return self.vote(queries, rule.votes.neighbours, rule.votes.sharpness, rule.names, exclude)
        return self.search(queries, rule.top_k, rule.sub_top_k, rule.names, exclude)

    def _queries(self, queries) -> np.ndarray:
        queries = as_array(queries).astype(np.float32, copy=False)
        if queries.ndim != 3 or queries.shape[2] != self.keys.shape[1]:
            raise EvcapError(f"queries must be (B,Q,{self.keys.shape[1]}), got {queries.shape}")
        return queries

    def _hits(self, queries: np.ndarray, top_k: int, exclude: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and entries (B,Q,h) of the nearest keys of queries (B,Q,D), of whatever length, best first."""
        batch, count, dim = queries.shape
        if exclude is not None and len(exclude) != batch:
            raise EvcapError(f"exclude names {len(exclude)} images for {batch} images")
        owners = None if exclude is None else self._known_owners()
        wanted = min(top_k + (owners.most(exclude) if owners else 0), len(self))
        if batch == 0 or wanted == 0:
            return np.zeros((batch, count, 0), np.float32), np.zeros((batch, count, 0), np.int64)
        flat = queries.reshape(-1, dim)
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        similarity, entry = (found.reshape(batch, count, wanted) for found in self.nearest(flat, wanted))
        return owners.others(similarity, entry, exclude, top_k) if owners else (similarity, entry)

    def _known_owners(self) -> Owners:
        if self._owners is None or not self._owners.made_from(self.images):
            self._owners = Owners(self.images)
        return self._owners

    def nearest(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Similarities (n,top_k) float32 and entries (n,top_k) int64 of queries (n,D) float32 of unit length, best first.

        Entry -1: an approximate index found no more. Those of a flat memory are exact.
        """
        if self._approximate is None:
            return exact_search(self.index, queries, top_k)
        similarity, entry = self._approximate.search(queries, top_k, self.keys)
        if len(self) == self._approximate.entries:
            return similarity, entry
        added, place = exact_search(self.index, queries, min(top_k, self.index.ntotal))
        place = np.where(place < 0, -1, place + self._approximate.entries)
        similarity, entry = np.concatenate([similarity, added], axis=1), np.concatenate([entry, place], axis=1)
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(similarity, best, 1), np.take_along_axis(entry, best, 1)

    @property
    def index(self):
        """Exact inner-product index (faiss.IndexFlatIP), made at the first search, over the keys that no other index has."""
        if self._index is None:
            import faiss

            index = on_gpus(faiss.IndexFlatIP(self.keys.shape[1]))
            for start in range(self._approximate.entries if self._approximate else 0, len(self), CHUNK):
                part = np.ascontiguousarray(self.keys[start : start + CHUNK], dtype=np.float32)
                check_units(part, "the memory")  # of many, opening looks at some only
                index.add(part)
            self._index = index  # whole, for whichever thread sees it
        return self._index

    @property
    def kind(self) -> IndexKind:
        """How the keys are searched."""
        return self._approximate.kind if self._approximate else IndexKind.flat

    def reindex(self, kind: IndexKind | None = None, progress: Progress = silent) -> None:
        """Build the index anew: of a kind that edits then keep, or of the one for so many entries. save() makes it last.

        Takes minutes for a million keys. Raises EvcapError for too few entries.
        """
        chosen, kind = kind is not None, kind or kind_for(len(self))
        self._approximate = None if kind == IndexKind.flat else build_index(self.keys, kind, progress)
        self._chosen, self._index = chosen, None

    def _reindex_if_due(self, progress: Progress) -> None:
        kept = self._chosen and (self.kind == IndexKind.flat or len(self) >= FEWEST)
        kind = self.kind if kept else kind_for(len(self))
        if kind != self.kind or (self._approximate and self._approximate.stale(len(self))):
            self.reindex(kind, progress)
        self._chosen = kept

    # -- edits: in memory; save() makes them last

    def add(self, keys, names: Sequence[str], sources: Sequence[str], images: Sequence[str]) -> int:
        """Append entries and return how many; keys (m,D) are normalised.

        Entries that are there already, of the same name and, up to rounding, the same key, are passed by. Raises EvcapError
        for unequal counts, another D or an empty name.
        """
        keys, names, sources, images = self._checked(keys, names, sources, images)
        if self._known is None:
            self._known = KnownEntries(self.names)
        new = self._known.new(names, keys, self.keys)
        if len(new):
            self._append(keys[new], *([column[i] for i in new] for column in (names, sources, images)))
        return len(new)

    def _checked(self, keys, names: Sequence[str], sources: Sequence[str], images: Sequence[str]) -> tuple:
        """Keys and the three columns as the memory keeps them. Raises EvcapError as `add`."""
        keys = unit_keys(keys)
        if not len(keys) == len(names) == len(sources) == len(images):
            raise EvcapError(f"{len(keys)} keys, {len(names)} names, {len(sources)} sources, {len(images)} images: unequal")
        if keys.shape[1] != self.keys.shape[1]:
            raise EvcapError(f"keys are {keys.shape[1]} wide, this memory's are {self.keys.shape[1]}")
        cleaned = [checked_name(name) for name in names]
        keys = keys.astype(self.keys.dtype, copy=False)
        return keys, cleaned, list(map(str, sources)), list(map(str, images))  # lists: they may be this memory's own

    def _append(self, keys: np.ndarray, names: list[str], sources: list[str], images: list[str]) -> None:
        """Entries behind the others, in room that doubles: adding one at a time copies each key a few times, not each time."""
        if self._index is not None:
            self._index.add(keys.astype(np.float32))
        self.names += names
        self.sources += sources
        self.images += images
        count = len(self.keys) + len(keys)
        if self._room is None or self.keys.base is not self._room or len(self._room) < count:
            self._room = np.empty((max(count, 2 * len(self.keys)), keys.shape[1]), keys.dtype)
            self._room[: len(self.keys)] = self.keys
        self._room[len(self.keys) : count] = keys
        self.keys = self._room[:count]

    def remove(self, name: str) -> int:
        """Drop all entries of a name; returns how many. Raises EvcapError, with the names that come near, for none."""
        name = self._present(name)
        gone = np.array([n == name for n in self.names])
        stay = np.flatnonzero(~gone).tolist()
        if self._approximate is not None:
            self._approximate = self._approximate.without(np.flatnonzero(gone[: self._approximate.entries]))
        self.keys = self.keys[stay]
        for column in COLUMNS:
            values = getattr(self, column)
            setattr(self, column, [values[i] for i in stay])
        self._index = self._known = None
        return int(gone.sum())

    def rename(self, old: str, new: str) -> int:
        """Give all entries of `old` the name `new`, joining it if it exists; returns how many. Raises if there is none."""
        old, new = self._present(old), checked_name(new)
        count = self.names.count(old)
        self.names = [new if n == old else n for n in self.names]
        self._known = None
        return count

    def merge(self, other: VisualNameMemory) -> int:
        """Append the entries of a memory of the same encoder that are not there already, see `add`; returns how many."""
        if other.encoder != self.encoder:
            raise MemoryFormatError(
                f"the other memory was made by encoder {other.encoder}, this one by {self.encoder}: rebuild one of them"
            )
        return self.add(other.keys, other.names, other.sources, other.images)

    def _present(self, name: str) -> str:
        cleaned = checked_name(name)
        if cleaned not in self.names:
            near = difflib.get_close_matches(cleaned, set(self.names), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`evcap memory list` shows all names"
            raise EvcapError(f"the memory holds no entry '{cleaned[:60]}'; {hint}")
        return cleaned

    # -- on disk

    def save(self, folder: str | Path, progress: Progress = silent) -> None:
        """Write to `folder`, new or replacing the memory there at one stroke.

        Builds an index of the kind for the size, or of the chosen one, where there is none or too much has changed. Raises
        EvcapError when the folder cannot be written, or when another process changed it since it was opened.
        """
        folder = Path(folder)
        self._reindex_if_due(progress)
        columns = {column: getattr(self, column) for column in COLUMNS}
        contents = Contents(self.keys, columns, self.encoder, self._approximate, self._chosen)
        known = self._opened_from[1] if self._opened_from and self._opened_from[0] == folder.resolve() else None
        manifest = write_memory(folder, contents, known)
        self._opened_from = (folder.resolve(), replace(contents, columns={}, manifest=manifest))

    @classmethod
    def open(cls, folder: str | Path, encoder: str | None = None, verify: bool = False, index: bool = True) -> VisualNameMemory:
        """Open a memory; keys and index stay on disk until searched. `encoder`: refuse a memory made by another one.

        verify: hash all files whatever their size. index: without it the index is left aside, to build it anew. Raises
        MemoryFormatError with one line when the folder is no memory, is damaged, or belongs to another encoder.
        """
        folder = Path(folder)
        contents = read_memory(folder, encoder, verify, index)
        memory = cls(contents.keys, *(contents.columns[column] for column in COLUMNS), contents.encoder)
        memory._approximate, memory._chosen = contents.index, contents.chosen
        memory._opened_from = (folder.resolve(), replace(contents, columns={}))
        return memory
