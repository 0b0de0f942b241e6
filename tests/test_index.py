"""Indexes of large memories: they find what comparing every key finds, through edits, saves and every damage."""

import json
import re
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_tools import flip, part, replaced, same, with_manifest

from evcap import index_kind, memory_files
from evcap.errors import EvcapError
from evcap.index import FOURCC, map_index
from evcap.index_kind import IndexKind
from evcap.memory import VisualNameMemory
from evcap.memory_files import MemoryFormatError

APPROXIMATE = [kind for kind in IndexKind if kind != IndexKind.flat]
kinds = pytest.mark.parametrize("kind", APPROXIMATE)


def clustered(count=1500, dim=16, dtype=np.float16, seed=0, spread=0.3) -> VisualNameMemory:
    """Keys around 50 directions, those of one direction with one name."""
    draw = np.random.default_rng(seed)
    place = draw.integers(0, 50, count)
    keys = draw.normal(size=(50, dim))[place] + spread * draw.normal(size=(count, dim))
    names, images = [f"name {p}" for p in place], [f"{i}.jpg" for i in range(count)]
    return VisualNameMemory.build(keys.astype(dtype), names, ["s"] * count, images, "e")


def near(memory: VisualNameMemory, count: int, seed: int, spread=0.1) -> np.ndarray:
    """(count,8,D) queries, each near a key."""
    draw = np.random.default_rng(seed)
    rows = memory.keys[draw.integers(0, len(memory), (count, 8))].astype(np.float32)
    return rows + spread * draw.normal(size=rows.shape).astype(np.float32) / np.sqrt(rows.shape[2])


def exact(memory: VisualNameMemory) -> VisualNameMemory:
    """The same entries in a flat memory."""
    return VisualNameMemory(np.array(memory.keys), memory.names, memory.sources, memory.images, memory.encoder)


def exhaustive(memory: VisualNameMemory) -> VisualNameMemory:
    """The memory, whose index now looks at everything: what it finds is to be exact."""
    if memory._approximate is not None:
        everything = {name: 10**4 if name != "rerank" else 50 for name in memory._approximate.settings}
        memory._approximate = replace(memory._approximate, settings=everything)
    return memory


def agree(memory: VisualNameMemory, other: VisualNameMemory, queries: np.ndarray, **options) -> None:
    for found, wanted in zip(memory.search(queries, **options), other.search(queries, **options), strict=True):
        assert [hit.name for hit in found] == [hit.name for hit in wanted]
        np.testing.assert_allclose([h.similarity for h in found], [h.similarity for h in wanted], atol=2e-4)


def saved(tmp_path, kind, **options) -> VisualNameMemory:
    memory = clustered(**options)
    memory.reindex(kind)
    memory.save(tmp_path)
    return VisualNameMemory.open(tmp_path, "e", verify=True)


# -- search


@settings(max_examples=12, deadline=None)
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
    memory.reindex(kind, quiet=True)
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
    images = [memory.images[0]] * 10  # the entries of a picture's own image are not found, and others take their place
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
    assert memory.search(mixed, hits=1400)[0]  # more than some lists hold
    memory._approximate = replace(memory._approximate, settings=dict.fromkeys(memory._approximate.settings, 1))
    assert len(memory.search(memory.keys[None, :2].astype(np.float32), hits=1400)[0]) > 0


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
    max_size=8,
)


@settings(max_examples=15, deadline=None)
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
        agree(exhaustive(memory), exact(memory), near(memory, 3, number))


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
    found = memory.search(memory.keys[None, -20:].astype(np.float32), hits=50, keep=1000, limit=50)[0]
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


# -- on disk


@kinds
def test_opening_maps_the_index_and_reads_little_of_it(tmp_path, monkeypatch, kind):
    memory = saved(tmp_path, kind, count=12_000, dim=64 if kind == IndexKind.ivf_pq else 512)
    del memory
    path = part(tmp_path, "index")
    monkeypatch.setattr(memory_files, "ALWAYS_HASHED", 0)  # else all of it passes by, as of a small file
    memory = VisualNameMemory.open(tmp_path)
    held = resident(path)
    assert 0 <= held < (0.5 if kind == IndexKind.ivf_pq else 0.3) * path.stat().st_size
    memory.search(near(memory, 50, 0))
    assert resident(path) > held  # the same mapping serves the search


def resident(path) -> int:
    """Bytes of a mapped file that this process has in main memory; -1 if it is not mapped."""
    maps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: *(\d+) kB", maps)
    return sum(map(int, found)) * 1024 if found else -1


def other_index(factory="IVF10,SQfp16", dim=16, count=1500, metric=faiss.METRIC_INNER_PRODUCT) -> bytes:
    keys = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    index = faiss.index_factory(dim, factory, metric)
    index.train(keys)
    index.add(keys)
    return faiss.serialize_index(index).tobytes()


def cut(folder) -> None:
    path = part(folder, "index")
    replaced(folder, "index", path.read_bytes()[:5000])


DAMAGES = {
    "missing": (lambda f: part(f, "index").unlink(), "index-.* is missing"),
    "cut": (lambda f: part(f, "index").write_bytes(b"IwSq"), "has 4 bytes, the manifest says"),
    "flipped": (lambda f: flip(part(f, "index")), "index-.* is damaged"),
    "empty": (lambda f: replaced(f, "index", b""), "not the index of these keys"),
    "cut, and vouched for": (cut, "not the index of these keys"),
    "a pickle": (lambda f: replaced(f, "index", b"\x80\x04N."), "it holds no ivf index"),
    "another kind": (lambda f: replaced(f, "index", other_index("HNSW8_SQfp16")), "it holds no ivf index"),
    "no kind of ours": (lambda f: replaced(f, "index", other_index("Flat")), "it holds no ivf index"),
    "other width": (lambda f: replaced(f, "index", other_index(dim=8)), "it holds 1500 keys of 8"),
    "other keys": (lambda f: replaced(f, "index", other_index(count=1400)), "it holds 1400 keys of 16"),
    "other metric": (lambda f: replaced(f, "index", other_index(metric=faiss.METRIC_L2)), "1500 keys of 16 by another measure"),
    "more than the entries": (lambda f: with_manifest(f, lambda m: m.update(indexed=2000)), "it holds 1500 keys of 16"),
    "no count": (lambda f: with_manifest(f, lambda m: m.pop("indexed")), "manifest.json is damaged"),
    "no settings": (lambda f: with_manifest(f, lambda m: m.pop("search")), "manifest.json is damaged"),
    "settings of another": (lambda f: with_manifest(f, lambda m: m.update(search={"efSearch": 9})), "manifest.json is damaged"),
    "negative": (lambda f: with_manifest(f, lambda m: m.update(search={"nprobe": -1})), "manifest.json is damaged"),
    "settings are text": (lambda f: with_manifest(f, lambda m: m.update(search="nprobe")), "manifest.json is damaged"),
    "chosen is text": (lambda f: with_manifest(f, lambda m: m.update(chosen="no")), "manifest.json is damaged"),
}


@pytest.fixture(scope="module")
def ivf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ivf")
    saved(folder, IndexKind.ivf)
    return folder


@pytest.fixture
def folder(ivf, tmp_path):
    for path in ivf.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line_and_mended_by_building_anew(folder, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(MemoryFormatError, match=message) as error:
        VisualNameMemory.open(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    if "manifest" not in message and damage != "missing":
        assert f"`evcap memory index --memory {folder}` builds it anew" in str(error.value)
    if "manifest.json" not in message:
        memory = VisualNameMemory.open(folder, index=False)
        memory.reindex(IndexKind.ivf)
        memory.save(folder)
        assert VisualNameMemory.open(folder, verify=True).kind == "ivf"


@pytest.mark.parametrize("gone", [[-1], [1500], [3, 3], [5, 4], ["x"], "x", 7, [[1]], [2**70]])
def test_removed_entries_that_are_none_of_the_index(folder, gone):

    columns = json.loads(part(folder, "names").read_bytes())
    replaced(folder, "names", json.dumps(columns | {"removed": gone}).encode())
    with pytest.raises(MemoryFormatError, match="is not the index of these keys"):
        VisualNameMemory.open(folder)


def test_an_index_over_more_than_the_entries(folder):
    short = VisualNameMemory.open(folder)
    short.remove("name 0")
    short._approximate = replace(short._approximate, removed=np.zeros(0, np.int64))
    short.save(folder)
    with pytest.raises(MemoryFormatError, match="it answers for 1500 entries of "):
        VisualNameMemory.open(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    found = {}
    for kind in APPROXIMATE:
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = (saved(folder, kind)._approximate.settings, part(folder, "index").read_bytes())
        assert found[kind][1][:4] in FOURCC[kind]
    return found


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(APPROXIMATE), st.integers(0), st.binary(min_size=1, max_size=8), st.booleans())
def test_any_content_is_an_index_or_a_value_error(tmp_path_factory, files, kind, place, content, short):
    told, whole = files[kind]
    place %= len(whole) - 8 if place % 3 else 3000
    path = tmp_path_factory.getbasetemp() / "spoiled"
    path.write_bytes(whole[:place] + content + (b"" if short else whole[place + len(content) :]))
    try:
        index = map_index(path, kind, told, [], (1500, 16))
    except ValueError:
        return
    similarity, entry = index.search(np.ones((3, 16), np.float32), 5, np.zeros((1500, 16), np.float16))
    assert ((entry >= -1) & (entry < 1500)).all()
