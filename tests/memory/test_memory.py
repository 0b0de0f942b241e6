"""Search of the memory against the release's rule written as loops, and its edits against a list of tuples."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import clean_name
from evcap.memory.storage import MemoryFormatError

DTYPES = st.sampled_from([np.float16, np.float32])


def make(keys, names, images=None, encoder="e") -> VisualNameMemory:
    """A memory whose names are not cleaned, as those of an old file may be."""
    count = len(names)
    return VisualNameMemory(keys, list(names), ["s"] * count, images or [f"{i}.jpg" for i in range(count)], encoder)


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def rule_of_the_release(similarities, entries, names, keep=32, limit=10):
    """One image, loops only. similarities, entries: for each query its hits, nearest first."""
    hits = [
        (similarity, query, entry)
        for query, row in enumerate(similarities)
        for similarity, entry in zip(row, entries[query], strict=True)
    ]
    ranked = sorted(hits, key=lambda hit: -hit[0])  # stable: equal ones keep the order of queries and ranks
    found = []
    for similarity, query, entry in ranked[:keep]:
        name = clean_name(names[entry])
        if name not in [known for known, _, _ in found]:
            found.append((name, similarity, query))
    return found[:limit]


def nearest(keys, queries, hits):
    """Similarities and entries of each query's nearest keys, by brute force."""
    similarities, entries = [], []
    for query in queries:
        pairs = [(sum(float(a) * float(b) for a, b in zip(query, key, strict=True)), i) for i, key in enumerate(keys)]
        best = sorted(pairs, key=lambda pair: -pair[0])[:hits]
        similarities.append([similarity for similarity, _ in best])
        entries.append([entry for _, entry in best])
    return similarities, entries


# -- without ties between different names: directions and queries whose similarities all differ by 1e-6 and more

_draw = np.random.default_rng(2)
DIRECTIONS = {dtype: unit(_draw.normal(size=(24, 8))).astype(dtype) for dtype in (np.float16, np.float32)}
QUERIES = unit(_draw.normal(size=(12, 8)))
RAW = ["Polo_Shirt", "polo shirt", "POLO  (shirt)", "dog", "Dog!", "cat", *(f"n{i}" for i in range(18))]
entry_lists = st.lists(st.integers(0, 23), max_size=40)
query_lists = st.lists(st.integers(0, 11), min_size=1, max_size=32)


def test_the_directions_have_no_ties():
    for keys in DIRECTIONS.values():
        values = np.sort((QUERIES @ keys.astype(np.float32).T).ravel())
        assert np.diff(values).min() > 1e-6


def agrees(found, expected, keys, names, queries):
    assert [hit.name for hit in found] == [name for name, _, _ in expected]
    for hit, (_, similarity, _) in zip(found, expected, strict=True):
        assert hit.similarity == pytest.approx(similarity, abs=1e-5)
        own = [float(queries[hit.query] @ key) for key, name in zip(keys, names, strict=True) if clean_name(name) == hit.name]
        assert max(own) == pytest.approx(similarity, abs=1e-5)  # the query named is one that made the hit


@given(DTYPES, entry_lists, st.lists(query_lists, min_size=1, max_size=3), st.integers(1, 7), st.integers(1, 40))
def test_search_is_the_rule_of_the_release(dtype, entries, pictures, hits, keep):
    keys = DIRECTIONS[dtype][entries].reshape(-1, 8)
    names = [RAW[entry] for entry in entries]
    memory = make(keys, names)
    wide = keys.astype(np.float32)
    count = max(map(len, pictures))
    batch = np.stack([QUERIES[(picture * count)[:count]] for picture in pictures])
    for queries, found in zip(batch, memory.search(batch * 3, hits, keep), strict=True):  # length of queries is no matter
        expected = rule_of_the_release(*nearest(wide, queries, hits), names, keep)
        agrees(found, expected, wide, names, queries)


@given(DTYPES, entry_lists, query_lists, st.lists(st.integers(0, 5), min_size=1, max_size=3), st.data())
def test_exclude_is_search_in_a_memory_without_the_pictures_own_entries(dtype, entries, queries, pictures, data):
    keys, names = DIRECTIONS[dtype][entries].reshape(-1, 8), [RAW[entry] for entry in entries]
    images = [f"{data.draw(st.integers(0, 4))}.jpg" for _ in entries]
    excluded = [f"{picture}.jpg" for picture in pictures]
    batch = np.stack([QUERIES[queries]] * len(pictures))
    for own, found in zip(excluded, make(keys, names, images).search(batch, exclude=excluded), strict=True):
        stay = [i for i, image in enumerate(images) if image != own]
        wide, left = keys[stay].astype(np.float32), [names[i] for i in stay]
        agrees(found, rule_of_the_release(*nearest(wide, QUERIES[queries], 5), left), wide, left, QUERIES[queries])


# -- with many ties: vectors whose products are exact, so that equal similarities are equal to the last bit

HALVES = [[a, b, c, 0.5] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)]
EXACT = np.concatenate([np.eye(4), -np.eye(4), HALVES])


@given(DTYPES, st.lists(st.integers(0, 15), min_size=1, max_size=30), st.lists(st.integers(0, 15), min_size=1, max_size=32))
def test_ties_go_to_the_lower_query_and_then_the_nearer_rank(dtype, entries, queries):
    keys, batch = EXACT[entries].astype(dtype), EXACT[queries][None].astype(np.float32)
    names = [RAW[i % len(RAW)] for i in range(len(entries))]
    memory = make(keys, names)
    wanted = min(5, len(names))
    similarities, found = memory.index.search(batch[0], wanted)
    brute, _ = nearest(keys.astype(np.float32), batch[0], wanted)
    assert similarities.tolist() == brute
    expected = rule_of_the_release(brute, found.tolist(), names)
    assert [(hit.name, hit.similarity, hit.query) for hit in memory.search(batch)[0]] == expected


def test_small_and_strange_searches():
    empty = VisualNameMemory.empty(4, "e")
    assert empty.search(np.ones((2, 3, 4))) == [[], []] and empty.counts() == {} and len(empty) == 0
    memory = VisualNameMemory.build(np.eye(4, dtype=np.float32), list("abcd"), ["s"] * 4, ["x.jpg"] * 4, "e")
    assert memory.search(np.zeros((0, 3, 4))) == []
    assert memory.search(np.full((1, 3, 4), np.nan)) == [[]]
    assert memory.search(np.ones((1, 3, 4)), exclude=["x.jpg"]) == [[]]
    assert empty.vote(np.ones((2, 3, 4))) == [[], []] and memory.vote(np.zeros((0, 3, 4))) == []
    assert memory.vote(np.full((1, 3, 4), np.nan)) == [[]] == memory.vote(np.ones((1, 3, 4)), exclude=["x.jpg"])
    best = memory.search(np.eye(4)[None, 2:3], limit=1)
    assert [(hit.name, hit.similarity, hit.query) for hit in best[0]] == [("c", 1.0, 0)]
    for shape, images in (((3, 4), None), ((1, 3, 5), None), ((1, 3, 4), ["a.jpg", "b.jpg"])):
        with pytest.raises(EvcapError, match=r"queries must be \(B,Q,4\)|exclude names 2 images for 1 images"):
            memory.search(np.ones(shape), exclude=images)


@pytest.mark.parametrize(
    "keys, names, message",
    [
        (np.ones((1, 3)), ["dog"], "3 wide"),
        (np.ones((2, 4)), ["dog"], "unequal"),
        (np.ones((1, 4)), ["!"], "nothing that can be said"),
        (np.zeros((1, 4)), ["dog"], "zero or not finite"),
        (np.full((1, 4), np.nan), ["dog"], "zero or not finite"),
        (np.ones((1, 4), int), ["dog"], "floating array"),
        (np.ones(4), ["dog"], "floating array"),
    ],
)
def test_what_cannot_be_added_changes_nothing(keys, names, message):
    memory = VisualNameMemory.build(np.eye(4, dtype=np.float32), list("abcd"), ["s"] * 4, ["x.jpg"] * 4, "e")
    with pytest.raises(EvcapError, match=message) as error:
        memory.add(keys, names, ["s"], ["y.jpg"])
    assert "\n" not in str(error.value)
    assert memory.names == list("abcd") and len(memory.keys) == len(memory.images) == memory.index.ntotal == 4


def test_a_memory_merged_with_itself_stays():
    memory = VisualNameMemory.build(np.eye(2, dtype=np.float32), ["a", "b"], ["s", "t"], ["x.jpg", "y.jpg"], "e")
    assert memory.merge(memory) == 0
    assert memory.names == list("ab") and memory.sources == list("st") and memory.keys.shape == (2, 2)
    memory.rename("b", "c")
    assert memory.add(np.eye(2), ["a", "b"], ["u"] * 2, ["z.jpg"] * 2) == 1  # the same key under another name is new
    assert memory.names == list("acb") and memory.images == ["x.jpg", "y.jpg", "z.jpg"]
    memory.remove("a")
    assert memory.add(np.eye(2), ["a", "b"], ["u"] * 2, ["z.jpg"] * 2) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_entries_are_passed_by_as_a_naive_loop_finds_them(dtype):
    """Keys near each other and the same ones, rounded and in another length, of few names; in the memory and in one call."""
    draw = np.random.default_rng(0)
    near = draw.normal(size=384) + 0.02 * draw.normal(size=(8, 384))  # cosines above 0.999: of different images still
    rows = (near / np.linalg.norm(near, axis=1, keepdims=True))[draw.integers(0, 8, 300)]
    names = [f"name {n}" for n in draw.integers(0, 3, 300)]
    given = [rows[:100] * 7, rows[100:200].astype(np.float16), (rows * (1 + 1e-7 * draw.normal(size=rows.shape)))[200:]]
    memory = VisualNameMemory.empty(384, "e", dtype)
    seen, expected = [], []
    for part, start in zip(given, (0, 100, 200), strict=True):
        for row, name in zip(rows[start : start + 100], names[start : start + 100], strict=True):
            if not any(name == other and np.abs(row - known).max() < 1e-5 for known, other in seen):
                seen.append((row, name))
        memory.add(part, names[start : start + 100], ["s"] * 100, ["i"] * 100)
        expected.append(len(seen))
        assert len(memory) == len(seen)
    assert len(set(expected)) < 3 and expected[-1] == len(set(zip(map(bytes, rows), names, strict=True)))
    assert [name for _, name in seen] == memory.names
    np.testing.assert_allclose(memory.keys, [row for row, _ in seen], atol=1e-4)


@pytest.mark.parametrize("dtypes", [(np.float16, np.float32), (np.float32, np.float16), (np.float16, np.float16)])
def test_what_was_merged_once_is_known_after_a_save(tmp_path, dtypes):
    keys = np.random.default_rng(1).normal(size=(500, 384)).astype(np.float32)
    columns = [f"name {i % 7}" for i in range(500)], ["s"] * 500, [f"{i}.jpg" for i in range(500)]
    one, two = (VisualNameMemory.empty(384, "e", dtype) for dtype in dtypes)
    assert one.add(keys[:300], *(column[:300] for column in columns)) == 300
    assert two.add(keys, *columns) == 500
    for memory, folder in ((one, "one"), (two, "two")):
        memory.save(tmp_path / folder)
    merged = VisualNameMemory.open(tmp_path / "one")
    assert merged.merge(VisualNameMemory.open(tmp_path / "two")) == 200
    merged.save(tmp_path / "one")
    before = VisualNameMemory.open(tmp_path / "one")
    assert before.merge(VisualNameMemory.open(tmp_path / "two")) == 0
    assert before.merge(VisualNameMemory.open(tmp_path / "one")) == 0 and before.names == merged.names


def test_an_imported_memory_keeps_what_it_holds():
    """A memory of others may have keys twice, and is to answer as theirs does."""
    memory = VisualNameMemory.build(np.ones((3, 4), np.float32), ["a"] * 3, ["s"] * 3, ["x"] * 3, "e")
    assert len(memory) == 3


def test_merge_refuses_another_encoder():
    with pytest.raises(MemoryFormatError, match="encoder f"):
        VisualNameMemory.empty(4, "e").merge(VisualNameMemory.empty(4, "f"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_are_taken_as_arrays_are(dtype):
    torch = pytest.importorskip("torch")
    keys = torch.eye(4, dtype=getattr(torch, dtype), requires_grad=True)
    memory = VisualNameMemory.build(keys, list("abcd"), ["s"] * 4, ["x.jpg"] * 4, "e")
    assert memory.keys.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert [hit.name for hit in memory.search(keys[None, 2:3])[0][:1]] == ["c"]


def test_entries_added_one_at_a_time_do_not_copy_all_keys_each_time():
    memory, rooms = VisualNameMemory.empty(4, "e"), set()
    for i in range(300):
        memory.add(np.ones((1, 4)), [f"n{i}"], ["s"], ["x.jpg"])
        rooms.add(memory.keys.ctypes.data)
    assert len(memory.keys) == 300 and len(rooms) < 15


def test_a_memory_made_of_parts_of_another_leaves_that_one_alone():
    one = VisualNameMemory.build(np.eye(2), ["a", "b"], ["s", "t"], ["x.jpg", "y.jpg"], "e")
    one.add(np.ones((1, 2)), ["c"], ["u"], ["z.jpg"])  # its keys have room behind them
    two = VisualNameMemory(one.keys, ["d", "e", "f"], one.sources, one.images, "e")
    two.add(np.eye(2)[:1], ["two"], ["s"], ["x.jpg"])
    one.add(np.eye(2)[1:], ["one"], ["s"], ["y.jpg"])
    assert (one.names, one.sources, len(one.images)) == (["a", "b", "c", "one"], list("stus"), 4)
    assert two.names == ["d", "e", "f", "two"]
    assert one.keys[3].tolist() == [0, 1] and two.keys[3].tolist() == [1, 0]


def test_an_absent_name_is_told_with_those_that_come_near():
    memory = VisualNameMemory.build(np.eye(2), ["fire hydrant", "dog"], ["s"] * 2, ["x.jpg"] * 2, "e")
    for edit in (lambda name: memory.remove(name), lambda name: memory.rename(name, "x")):
        with pytest.raises(EvcapError, match="no entry 'fire hydrnt'; did you mean fire hydrant"):
            edit("fire hydrnt")
        with pytest.raises(EvcapError, match="no entry 'qqq'; `evcap memory list`"):
            edit("qqq")


# -- edits

SAID = st.sampled_from(["dog", "Dog", "polo_shirt", "polo shirt", "cat", "fire hydrant"])
some_entries = st.lists(st.tuples(st.integers(0, 23), SAID), max_size=4)


class Edits(RuleBasedStateMachine):
    """The memory beside a list of (direction, name, source, image)."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "m"
        self.memory, self.model, self.saved = VisualNameMemory.empty(8, "e", np.float32), [], None

    def teardown(self):
        self.folder.cleanup()

    def rows(self, entries, source):
        return [(place, clean_name(name), source, f"{place}.jpg") for place, name in entries]

    @rule(entries=some_entries)
    def add(self, entries):
        keys = 2 * DIRECTIONS[np.float32][[place for place, _ in entries]].reshape(-1, 8)
        images = [f"{place}.jpg" for place, _ in entries]
        new = self.new(self.rows(entries, "added"))
        assert self.memory.add(keys, [name for _, name in entries], ["added"] * len(entries), images) == len(new)
        self.model += new

    def new(self, rows):
        """Those of the rows whose direction and name are not in the model, nor before them."""
        known = {row[:2] for row in self.model}
        return [row for row in rows if row[:2] not in known and not known.add(row[:2])]

    @rule(name=SAID)
    def remove(self, name):
        stay = [row for row in self.model if row[1] != clean_name(name)]
        if len(stay) == len(self.model):
            with pytest.raises(EvcapError, match="no entry"):
                self.memory.remove(name)
        else:
            assert self.memory.remove(name) == len(self.model) - len(stay)
            self.model = stay

    @rule(old=SAID, new=SAID)
    def rename(self, old, new):
        count = sum(row[1] == clean_name(old) for row in self.model)
        if count == 0:
            with pytest.raises(EvcapError, match="no entry"):
                self.memory.rename(old, new)
        else:
            assert self.memory.rename(old, new) == count
            self.model = [(r[0], clean_name(new), *r[2:]) if r[1] == clean_name(old) else r for r in self.model]

    @rule(entries=some_entries)
    def merge(self, entries):
        rows = self.rows(entries, "merged")
        other = VisualNameMemory.empty(8, "e", np.float16)
        if rows:
            keys = DIRECTIONS[np.float32][[row[0] for row in rows]]
            other.add(keys, [row[1] for row in rows], ["merged"] * len(rows), [row[3] for row in rows])
        new = self.new(rows)
        assert self.memory.merge(other) == len(new)
        self.model += new

    @rule()
    def save(self):
        self.memory.save(self.path)
        self.saved = list(self.model)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def open(self):
        self.memory, self.model = VisualNameMemory.open(self.path, "e"), list(self.saved)

    @rule()
    def search(self):  # makes the index, which later edits must keep in step
        self.memory.search(QUERIES[None])

    @invariant()
    def the_memory_is_the_model(self):
        memory = self.memory
        assert list(zip(memory.names, memory.sources, memory.images, strict=True)) == [row[1:] for row in self.model]
        assert len(memory) == len(memory.keys) == len(self.model) and memory.keys.dtype == np.float32
        assert sum(memory.counts().values()) == len(self.model) and set(memory.counts()) == {row[1] for row in self.model}
        expected = DIRECTIONS[np.float32][[row[0] for row in self.model]].reshape(-1, 8)
        np.testing.assert_allclose(memory.keys, expected, atol=1e-3)  # merged ones were float16
        if memory._index is not None:
            for left_out in (None, ["3.jpg"]):
                fresh = make(memory.keys, memory.names, memory.images).search(QUERIES[None], exclude=left_out)
                assert memory._index.ntotal == len(self.model) and memory.search(QUERIES[None], exclude=left_out) == fresh


TestEdits = Edits.TestCase
TestEdits.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
