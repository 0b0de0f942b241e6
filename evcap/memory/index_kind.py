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


# measured with a million random and 15 thousand real keys of width 768, see docs/memory-scale.md
FLAT_UP_TO = 200_000  # entries; so far an image's 32 queries take a tenth of a second, and the keys 0.6 GB of main memory
IVF_UP_TO = 500_000  # ivf needs main memory for all keys while it is built, ivf-pq a thirteenth, and finds as much
SETTINGS = {  # those that find the nearest key of 95 in 100 real queries and noisy copies of keys (cosine 0.8), or more
    IndexKind.flat: {},
    IndexKind.ivf: {"nprobe": 160},
    IndexKind.hnsw: {"efSearch": 2048},
    IndexKind.ivf_pq: {"nprobe": 160, "rerank": 20},
}


def kind_for(entries: int) -> IndexKind:
    """The kind for a memory of so many entries."""
    if entries <= FLAT_UP_TO:
        return IndexKind.flat
    return IndexKind.ivf if entries <= IVF_UP_TO else IndexKind.ivf_pq
