"""Indexes of large memories: they find what comparing every key finds, through edits and saves."""

from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_tools import APPROXIMATE, agree, clustered, exact, exhaustive, near, part, same, saved

from evcap.errors import EvcapError
from evcap.memory import index_kind
from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory

kinds = pytest.mark.parametrize("kind", APPROXIMATE)


# -- search


@settings(max_examples=12)
@given(
    st.sampled_from(APPROXIMATE),
    st.sampled_from([np.float16, np.float32]),
    st.integers(1000, 3000),
    st.sampled_from([16, 20, 33]),
    st.integers(0, 10**6),
)
def test_an_index_finds_the_names_that_comparing_every_key_finds(kind, dtype, count, dim, seed):
    memory = clustered(count, dim, dtype, seed)
    queries = near(memory, 20, seed)
    similarity, entry = memory.nearest(flat := unit(queries), 5)
    wanted = memory.search(queries)
    memory.reindex(kind)
    close, found = memory.nearest(flat, 5)
    assert (close[:, 0] >= similarity[:, 0] - 1e-3).mean() >= 0.95
    assert np.mean([a == b for a, b in zip(found[:, 0], entry[:, 0], strict=True)]) >= 0.95
    names = [({hit.name for hit in a}, {hit.name for hit in b}) for a, b in zip(memory.search(queries), wanted, strict=True)]
    assert np.mean([len(a & b) / len(a | b) for a, b in names]) >= 0.95
    by_hand = (flat[:, None] * memory.keys[found].astype(np.float32)).sum(2)
    np.testing.assert_allclose(close, by_hand, atol=2e-4)  # similarities are those of the keys, not of their codes


def unit(queries: np.ndarray) -> np.ndarray:
    flat = queries.reshape(-1, queries.shape[2])
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@kinds
def test_what_looks_at_everything_is_exact(kind):
    memory = clustered()
    memory.reindex(kind)
    agree(exhaustive(memory), exact(memory), near(memory, 10, 1))
    images = [memory.images[0]] * 10  # the entries of an image's own image are not found, and others take their place
    queries = np.repeat(memory.keys[None, :1].astype(np.float32), 10, axis=0)
    agree(memory, exact(memory), queries, exclude=images)
    memory.images = ["x.jpg"] * 40 + memory.images[40:]
    agree(memory, exact(memory), queries, exclude=["x.jpg"] * 10)


@kinds
def test_strange_queries(kind):
    memory = clustered()
    memory.reindex(kind)
    assert memory.search(np.full((1, 3, 16), np.nan)) == [[]]
    assert memory.search(np.zeros((0, 3, 16))) == []
    mixed = np.stack([np.full(16, np.nan, np.float32), memory.keys[7].astype(np.float32)])[None]
    assert memory.search(mixed)[0][0].query == 1
    assert memory.search(mixed, top_k=1400)[0]  # more than some lists hold
    memory._approximate = replace(memory._approximate, settings=dict.fromkeys(memory._approximate.settings, 1))
    assert len(memory.search(memory.keys[None, :2].astype(np.float32), top_k=1400)[0]) > 0


# -- edits

edits = st.lists(
    st.one_of(
        st.tuples(st.just("remove"), st.integers(0, 49)),
        st.tuples(st.just("add"), st.integers(1, 60)),
        st.tuples(st.just("rename"), st.integers(0, 49)),
        st.tuples(st.just("merge"), st.integers(1, 30)),
        st.tuples(st.just("save"), st.just(0)),
        st.tuples(st.just("index"), st.sampled_from(list(IndexKind))),
    ),
    max_size=6,
)


@settings(max_examples=20)
@given(st.sampled_from(APPROXIMATE), edits)
def test_edits_and_saves_in_any_order_leave_what_building_anew_gives(tmp_path_factory, kind, steps):
    folder = tmp_path_factory.mktemp("m") / "m"
    memory = clustered()
    memory.reindex(kind)
    for number, (what, value) in enumerate([*steps, ("save", 0)]):
        if what == "remove" and f"name {value}" in memory.names:
            memory.remove(f"name {value}")
        elif what == "rename" and f"name {value}" in memory.names:
            memory.rename(f"name {value}", f"other {number}")
        elif what == "add":
            new = clustered(value, seed=number + 1)
            memory.add(new.keys, [f"new {n}" for n in new.names], new.sources, new.images)
        elif what == "merge":
            memory.merge(clustered(value, seed=number + 100))
        elif what == "index":
            memory.reindex(value)
            kind = value
        elif what == "save":
            memory.save(folder)
            opened = VisualNameMemory.open(folder, "e", verify=True)
            assert same(opened, memory) and opened.kind == memory.kind == kind
            memory = opened
        queries = np.concatenate([near(memory, 3, number), near(clustered(), 3, number)])  # some near keys that are gone
        agree(exhaustive(memory), exact(memory), queries)


@kinds
def test_an_index_is_kept_while_little_changes_and_built_anew_when_much_has(tmp_path, kind):
    memory = saved(tmp_path, kind)
    first, keys = part(tmp_path, "index"), part(tmp_path, "keys")
    memory.rename("name 1", "dog")
    memory.save(tmp_path)
    assert (part(tmp_path, "index"), part(tmp_path, "keys")) == (first, keys)
    memory.remove("dog")
    memory.add(memory.keys[:20], ["new"] * 20, ["s"] * 20, ["x.jpg"] * 20)
    memory.save(tmp_path)
    assert part(tmp_path, "index") == first and part(tmp_path, "keys") != keys
    memory = VisualNameMemory.open(tmp_path, verify=True)
    found = memory.search(memory.keys[None, -20:].astype(np.float32), top_k=50, sub_top_k=1000, limit=50)[0]
    assert "new" in [hit.name for hit in found] and "dog" not in [hit.name for hit in found]
    memory.add(memory.keys[:130], ["newer"] * 130, ["s"] * 130, ["x.jpg"] * 130)  # with those before, more than a tenth
    memory.save(tmp_path)
    memory = VisualNameMemory.open(tmp_path, verify=True)
    assert part(tmp_path, "index") != first and memory._approximate.entries == len(memory) and memory.kind == kind
    memory.save(tmp_path.parent / "copy")  # what is mapped is copied, not named
    agree(VisualNameMemory.open(tmp_path.parent / "copy", verify=True), memory, near(memory, 5, 0))


def test_the_kind_follows_the_size_unless_it_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(index_kind, "FLAT_UP_TO", 1200)
    monkeypatch.setattr(index_kind, "IVF_UP_TO", 1500)

    def of(count, memory=None):
        memory = memory or clustered(count)
        if count > len(memory):
            memory.merge(clustered(count - len(memory), seed=1))
        memory.save(tmp_path)
        return VisualNameMemory.open(tmp_path)

    assert [of(n).kind for n in (1200, 1201, 1500, 1501)] == ["flat", "ivf", "ivf", "ivf-pq"]
    assert of(1300, of(1200)).kind == "ivf"
    for chosen in IndexKind:
        memory = of(1100)
        memory.reindex(chosen)
        assert of(1501, of(1101, memory)).kind == chosen
    memory = of(1100)
    memory.reindex(IndexKind.hnsw)
    for name in sorted(set(memory.names))[:20]:
        memory.remove(name)
    assert len(memory) < 1000 and of(len(memory), memory).kind == "flat"
    assert not list(tmp_path.glob("index-*"))


def test_too_few_entries_for_an_index():
    memory = clustered(999)
    for kind in APPROXIMATE:
        with pytest.raises(EvcapError, match=f"{kind} needs 1,000 entries, the memory holds 999: choose flat"):
            memory.reindex(kind)
    assert memory.kind == "flat" and memory.search(near(memory, 1, 0))[0]


def test_gpus_train_where_there_are_any(monkeypatch):
    """Nothing here has one: the functions of FAISS are stand-ins that count."""
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: moved.append(index.d) or index)
    memory = clustered()
    memory.reindex(IndexKind.ivf)
    assert moved == [16] and memory.search(near(memory, 1, 0))[0]
    memory.reindex(IndexKind.flat)
    assert memory.search(near(memory, 1, 0))[0] and moved == [16, 16]
