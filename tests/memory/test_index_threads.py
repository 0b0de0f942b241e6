"""What FAISS keeps for the whole process is left as it was, and threads do not disturb each other."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from memory_tools import clustered, near

from evcap.memory import index
from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory


def kept() -> tuple[int, ...]:
    """All that is set for the process."""
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    return faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs, *limits


def test_searches_and_openings_leave_the_settings_of_the_process(tmp_path):
    before = kept()
    memory = clustered()
    queries = near(memory, 4, 0)
    alone = memory.search(queries)
    assert kept() == before
    memory.reindex(IndexKind.ivf)
    memory.save(tmp_path / "m")
    (tmp_path / "flat").mkdir()
    clustered().save(tmp_path / "flat")

    def work(number: int):
        opened = VisualNameMemory.open(tmp_path / ("m" if number % 2 else "flat"))
        return opened.kind, [[hit.name for hit in row] for row in opened.search(queries)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(32)))
    assert {kind for kind, _ in found} == {IndexKind.flat, IndexKind.ivf}
    assert all(names == [[hit.name for hit in row] for row in alone] for kind, names in found if kind == IndexKind.flat)
    assert kept() == before


def test_exact_searches_are_matrix_products_also_when_they_overlap():
    """The setting is ours for the whole of each search, the process's again behind the last."""
    before, seen = kept(), []

    class Slow:
        def search(self, queries, hits):
            if hits:
                index.exact_search(self, queries, hits - 1)  # begins later and ends before
            seen.append(kept()[:2])

    index.exact_search(Slow(), np.zeros((1, 1)), 2)
    assert seen == [(index.BLAS_FROM, index.BLAS_KEYS)] * 3 and kept() == before
