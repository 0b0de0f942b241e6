"""The index file of a large memory: mapped, written whole or not at all, and every damage told in one line."""

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_tools import APPROXIMATE, clustered, flip, near, part, refusal, replaced, saved, with_manifest

from evcap.errors import EvcapError
from evcap.memory import storage as memory_files
from evcap.memory.index import FOURCC, map_index
from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory
from evcap.memory.storage import MemoryFormatError

kinds = pytest.mark.parametrize("kind", APPROXIMATE)


@kinds
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_index_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch, kind, error):
    memory, write = clustered(), memory_files._write
    memory.save(tmp_path)
    before, blocks = sorted(tmp_path.iterdir()), []

    def limited(path, content):
        def put_some(put):
            def fail(block):
                put(block[:100])
                blocks.append(block)
                raise error

            content(fail)

        return write(path, put_some if path.name.startswith("index") else content)

    monkeypatch.setattr(memory_files, "_write", limited)
    memory.reindex(kind)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else EvcapError, match="^$|No space left"):
        memory.save(tmp_path)
    assert blocks and sorted(tmp_path.iterdir()) == before
    assert VisualNameMemory.open(tmp_path, verify=True).kind == "flat"
    monkeypatch.undo()
    memory.save(tmp_path)
    assert VisualNameMemory.open(tmp_path, verify=True).kind == kind


@pytest.mark.parametrize("kind", [IndexKind.ivf, IndexKind.hnsw])  # one of compressed codes is small
def test_opening_maps_the_index_and_reads_little_of_it(tmp_path, monkeypatch, kind):
    saved(tmp_path, kind, count=10_000, dim=512)
    path = part(tmp_path, "index")
    monkeypatch.setattr(memory_files, "ALWAYS_HASHED", 0)  # else all of it passes by, as of a small file
    memory = VisualNameMemory.open(tmp_path)
    held = resident(path)
    assert 0 <= held < 0.4 * path.stat().st_size  # of a graph, the links are looked through
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
    said = refusal(folder, message)
    if "manifest.json" not in message:
        assert f"`evcap memory index --memory {folder}` builds it anew" in said
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
