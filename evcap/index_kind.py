"""The kinds of index a memory may have, with how they are searched, and which one fits how many entries."""

from __future__ import annotations

from enum import StrEnum

FEWEST = 1000  # entries; k-means and product quantisers need some hundreds, and fewer are compared in no time


class IndexKind(StrEnum):
    """How keys are found. The approximate kinds are FAISS's, with float16 or float32 codes as the keys are."""

    flat = "flat"  # every key, exactly
    ivf = "ivf"  # the keys of the k-means clusters nearest the query (Sivic and Zisserman 2003), exactly
    hnsw = "hnsw"  # a walk through a graph of neighbours (Malkov and Yashunin, arXiv 1603.09320)
    ivf_pq = "ivf-pq"  # as ivf over codes of one byte for 8 numbers (Jegou et al. 2011), the best compared exactly


SETTINGS = {
    IndexKind.flat: {},
    IndexKind.ivf: {"nprobe": 32},
    IndexKind.hnsw: {"efSearch": 256},
    IndexKind.ivf_pq: {"nprobe": 64, "rerank": 20},
}
FLAT_UP_TO = 200_000
IVF_UP_TO = 3_000_000


def kind_for(entries: int) -> IndexKind:
    """The kind for a memory of so many entries."""
    if entries <= FLAT_UP_TO:
        return IndexKind.flat
    return IndexKind.ivf if entries <= IVF_UP_TO else IndexKind.ivf_pq
