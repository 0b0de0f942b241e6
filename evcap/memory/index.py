"""FAISS indexes for large memories: the kind by size, built in chunks, mapped from one file, searched approximately.

An index is never changed once it is built. It answers for the first entries of a memory; entries removed since are passed
over, entries added since are compared one by one, and a save builds it anew when a tenth of them came or went. So every
kind takes every edit, also a graph and a mapped file, which FAISS cannot edit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError
from evcap.memory.index_kind import FEWEST, SETTINGS, IndexKind
from evcap.progress import Progress, silent

FOURCC = {
    IndexKind.ivf: (b"IwSq", b"IwFl"),
    IndexKind.hnsw: (b"IHNs", b"IHNf"),
    IndexKind.ivf_pq: (b"IwPQ",),
}  # a file begins with it
BLAS_FROM = 20  # queries; faiss 1.15 makes no matrix products for fewer than 334 of width 384: 8 times as long for an image
BLAS_KEYS = 16384  # keys of one product; faiss's 1,024 make so many small ones that threads on busy cores wait for each other
STALE = 0.1  # share of entries that came or went, from which a save builds the index anew
CHUNK = 65536  # keys that become float32 at once
RERANKED = 64  # queries whose candidates are compared exactly at once
LINKS = 32  # of a graph: neighbours of each key, twice as many on its lowest level
EF_CONSTRUCTION = 40  # of a graph: candidates among which a key's neighbours are chosen
PER_LIST = 40  # training keys for each list of an IVF; FAISS warns below 39


class _Shared:
    """Settings that FAISS has for the whole process only: ours while anybody is inside, as they were once all have left."""

    def __init__(self):
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self):
        import faiss

        with self._lock:
            if not self._inside:
                self._before = faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs
                self._set(BLAS_FROM, BLAS_KEYS)
            self._inside += 1

    def __exit__(self, *raised):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set(*self._before)

    @staticmethod
    def _set(queries: int, keys: int) -> None:
        import faiss

        faiss.cvar.distance_compute_blas_threshold = queries
        faiss.cvar.distance_compute_blas_database_bs = keys


_products = _Shared()
_reading = threading.Lock()  # of one index at a time: the limits of a file are the process's


def exact_search(index, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and entries (n,top_k) that an exact index finds, by matrix products from an image's queries on."""
    with _products:
        return index.search(queries, top_k)


def on_gpus(index):
    """A copy of an exact index on all GPUs where FAISS is built for them; else the index itself. Not run on a GPU so far."""
    import faiss

    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else index


@dataclass(frozen=True, eq=False)
class ApproximateIndex:
    """A trained and filled FAISS index over rows of keys, and what is to be known to search it.

    removed: sorted int64, the rows whose entries are gone. buffer: the mapped file that `faiss` reads from, if it does.
    """

    kind: IndexKind
    faiss: object
    settings: dict[str, int]
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    buffer: np.ndarray | None = None

    @property
    def entries(self) -> int:
        """How many entries it answers for: the first ones of the memory."""
        return self.faiss.ntotal - len(self.removed)

    def without(self, entries: np.ndarray) -> ApproximateIndex:
        """This index after the removal of some of its entries, (r,) int64."""
        rows = np.delete(np.arange(self.faiss.ntotal), self.removed)[entries]
        return replace(self, removed=np.union1d(self.removed, rows))

    def search(self, queries: np.ndarray, top_k: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarities (n,top_k) float32 and entries (n,top_k) int64 of queries (n,D) float32, best first; -1 = no more found.

        keys: the memory's, read only where candidates of compressed codes are compared exactly.
        """
        rerank = self.settings.get("rerank", 1)
        similarity, row = self.faiss.search(queries, top_k * rerank, params=self._parameters())
        known = (row >= 0) & (row < self.faiss.ntotal)  # else none was found, or a damaged file names what never was
        entry = np.where(known, row - np.searchsorted(self.removed, row), -1)
        return _reranked(queries, entry, top_k, keys) if rerank > 1 else (similarity, entry)

    def _parameters(self):
        import faiss

        make = {IndexKind.ivf_pq: faiss.IVFPQSearchParameters, IndexKind.hnsw: faiss.SearchParametersHNSW}
        settings = {name: value for name, value in self.settings.items() if name != "rerank"}
        if len(self.removed):
            settings["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(self.removed))
        return make.get(self.kind, faiss.SearchParametersIVF)(**settings)

    def stale(self, count: int) -> bool:
        """Whether too many entries came or went for a memory of `count` entries to keep it."""
        return count - self.entries + len(self.removed) > STALE * self.faiss.ntotal

    def write(self, put: Callable[[bytes], object]) -> None:
        """Give the file's content to `put`, a block at a time."""
        import faiss

        faiss.write_index(self.faiss, faiss.PyCallbackIOWriter(put))


def _reranked(queries: np.ndarray, entry: np.ndarray, top_k: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best `top_k` of each query's candidates by their exact similarity. FAISS's IndexRefine wants all keys once more."""
    similarity = np.full(entry.shape, -np.inf, np.float32)
    for start in range(0, len(queries), RERANKED):
        part = slice(start, start + RERANKED)
        near = keys[np.maximum(entry[part], 0)].astype(np.float32)
        similarity[part] = np.where(entry[part] < 0, -np.inf, np.einsum("nd,nkd->nk", queries[part], near))
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(similarity, best, 1), np.take_along_axis(entry, best, 1)


# -- build


def build_index(keys: np.ndarray, kind: IndexKind, progress: Progress = silent) -> ApproximateIndex:
    """An index of an approximate kind over keys (M,D), float16 or float32 of unit length, M >= 1000.

    Holds the index, its training keys and a chunk of keys in main memory.
    """
    import faiss

    if len(keys) < FEWEST:
        raise EvcapError(f"an index of kind {kind} needs {FEWEST:,} entries, the memory holds {len(keys):,}: choose flat")
    index = _empty_index(keys.shape[1], len(keys), kind, keys.dtype)
    with progress(len(keys), f"{kind} index", "key") as advance:
        if kind == IndexKind.hnsw:
            index.train(_sample(keys, 1))
        else:
            clusters = on_gpus(faiss.IndexFlatIP(keys.shape[1]))  # named, for FAISS keeps no reference to it
            index.clustering_index = clusters
            index.train(_sample(keys, PER_LIST * index.nlist))
            index.clustering_index = None
        for start in range(0, len(keys), CHUNK):
            part = np.ascontiguousarray(keys[start : start + CHUNK], dtype=np.float32)
            index.add(part)
            advance(len(part))
    return ApproximateIndex(kind, index, dict(SETTINGS[kind]))


def _empty_index(dim: int, count: int, kind: IndexKind, dtype):
    """An untrained index of a kind for `count` keys."""
    import faiss

    half, product = dtype == np.float16, faiss.METRIC_INNER_PRODUCT
    if kind == IndexKind.hnsw:
        code = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(dim, code, LINKS, product) if half else faiss.IndexHNSWFlat(dim, LINKS, product)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index
    lists = min(round(4 * count**0.5), count // PER_LIST)
    code = f"PQ{dim // gcd(dim, 8)}np" if kind == IndexKind.ivf_pq else "SQfp16" if half else "Flat"
    index = faiss.index_factory(dim, f"IVF{lists},{code}", product)
    if kind == IndexKind.ivf_pq:
        index.pq.cp.min_points_per_centroid = 1  # no warning for small memories
    else:
        index.by_residual = False  # so that float16 codes are the keys themselves
    return index


def _sample(keys: np.ndarray, count: int) -> np.ndarray:
    rows = np.random.default_rng(0).choice(len(keys), min(count, len(keys)), replace=False)
    return np.ascontiguousarray(keys[np.sort(rows)], dtype=np.float32)


# -- read


def map_index(path: Path, kind: IndexKind, settings: dict[str, int], removed: list[int], shape: tuple[int, int]):
    """The ApproximateIndex in a file, which stays on disk until searched. Raises ValueError if it is not one over `shape` keys.

    FAISS's reader checks lengths and links as it goes, from version 1.15 on. It is asked only for the kinds that
    `build_index` makes, and may take no more memory than the file is long.
    """
    import faiss

    buffer = np.memmap(path, np.uint8, "r")
    if bytes(buffer[:4]) not in FOURCC[kind]:
        raise ValueError(f"it holds no {kind} index")
    with _reading:
        limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        try:
            faiss.set_deserialization_vector_byte_limit(len(buffer))
            faiss.set_deserialization_loop_limit(len(buffer))
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(buffer), len(buffer))
            index = faiss.read_index(reader, faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)  # a table for another metric
        except (RuntimeError, MemoryError) as error:
            raise ValueError(" ".join(str(error).split())[-120:]) from None
        finally:
            faiss.set_deserialization_vector_byte_limit(limits[0])
            faiss.set_deserialization_loop_limit(limits[1])
    if (index.ntotal, index.d) != shape or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        measure = "inner product" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "another measure"
        raise ValueError(f"it holds {index.ntotal} keys of {index.d} by {measure}")
    ascending = isinstance(removed, list) and set(map(type, removed)) <= {int} and sorted(set(removed)) == removed
    if not ascending or (removed and not 0 <= removed[0] <= removed[-1] < shape[0]):
        raise ValueError("the removed entries are none of its own")
    return ApproximateIndex(kind, index, settings, np.array(removed, np.int64), buffer)
