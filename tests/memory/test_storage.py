"""A memory on disk: it comes back as it was, and a failed save harms nothing."""

import errno
import hashlib
import json
import os
import re
import unicodedata

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from memory_tools import make, part, same

from evcap.errors import EvcapError
from evcap.memory import storage as memory_files
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import clean_name


@pytest.fixture
def folder(tmp_path):
    make().save(tmp_path / "m")
    return tmp_path / "m"


# -- round trip


@given(st.sampled_from([np.float16, np.float32]), st.lists(st.text(), max_size=5), st.text("abc012 -.\u00e9", max_size=20))
def test_round_trip(tmp_path_factory, dtype, texts, encoder):
    count, folder = len(texts), tmp_path_factory.mktemp("m")
    memory = VisualNameMemory(np.eye(5, dtype=dtype)[:count], texts, texts[::-1], [t * 2 for t in texts], encoder)
    memory.save(folder)
    opened = VisualNameMemory.open(folder, encoder, verify=True)
    assert opened.keys.dtype == dtype and np.array_equal(opened.keys, memory.keys)
    for column in ("names", "sources", "images"):  # plain ones stay; of the others nothing is left that controls a terminal
        for now, before in zip(getattr(opened, column), getattr(memory, column), strict=True):
            plain = all(" " <= letter <= "~" for letter in before)
            assert now == (before if plain or before.isprintable() and column != "names" else now)
            assert not {unicodedata.category(letter) for letter in now} & {"Cc", "Zl", "Zp"}
    names = [name if all(" " <= letter <= "~" for letter in name) else clean_name(name) for name in texts]
    assert opened.names == names


def test_names_of_files_that_are_not_unicode_come_back(tmp_path):
    memory = VisualNameMemory.build(np.ones((1, 4)), ["dog"], ["user"], [os.fsdecode(b"caf\xe9.jpg")], "e")
    memory.save(tmp_path)
    assert same(VisualNameMemory.open(tmp_path), memory)


def test_keys_stay_on_disk_until_searched(folder):
    memory = VisualNameMemory.open(folder)
    assert isinstance(memory.keys, np.memmap) and not memory.keys.flags.writeable
    before = memory.search(memory.keys[None].astype(np.float32))
    make().save(folder)  # replaces the mapped file
    assert memory.search(memory.keys[None].astype(np.float32)) == before


def test_keys_that_did_not_change_are_not_written_again(folder):
    keys, memory = part(folder, "keys"), VisualNameMemory.open(folder)
    memory.rename("name 0", "other")
    memory.save(folder)
    assert part(folder, "keys") == keys and same(VisualNameMemory.open(folder, verify=True), memory)
    memory.save(folder.parent / "copy")
    assert same(VisualNameMemory.open(folder.parent / "copy", verify=True), memory)
    memory.save(folder)  # after the copy it is no longer known what the folder holds
    assert part(folder, "keys") != keys and same(VisualNameMemory.open(folder, verify=True), memory)
    memory.remove("name 1")
    memory.save(folder)
    memory.keys[0] = np.eye(4)[0]  # in main memory: such a change cannot be noticed
    memory.save(folder)
    assert same(VisualNameMemory.open(folder, verify=True), memory)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_flat_memory_is_what_it_was_in_the_first_version(tmp_path, monkeypatch, dtype):
    """Both ways: what evcap 0.1 wrote opens, and what is written now is that to the byte, keys in blocks of any size."""
    monkeypatch.setattr(memory_files, "CHUNK", 2)
    memory = make(5, dtype)
    memory.save(tmp_path)
    keys, names = part(tmp_path, "keys"), part(tmp_path, "names")
    files = {keys.name: safetensors.numpy.save({"keys": memory.keys})}
    files[names.name] = json.dumps({c: getattr(memory, c) for c in ("names", "sources", "images")}).encode()
    told = {"format": 1, "encoder": "e", "entries": 5, "names": 2, "dim": 4, "dtype": np.dtype(dtype).name, "index": "flat"}
    told["files"] = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()}
    files["manifest.json"] = (json.dumps(told, indent=1) + "\n").encode()
    for name, content in files.items():
        assert (tmp_path / name).read_bytes() == content, name


def test_a_save_leaves_one_pair_and_touches_no_other_file(folder):
    (folder / "keys-01234567.safetensors").write_bytes(b"left by a killed save")
    (folder / "names-89abcdef.json").write_text("left")
    (folder / "manifest-89abcdef.tmp").write_text("left")
    for name in ("names-of-my-pets.json", "keys-to-the-house.txt", "photo.jpg"):
        (folder / name).write_text("mine")
    make(5).save(folder)
    names = sorted(re.sub("[0-9a-f]{8}", "X", path.name) for path in folder.iterdir())
    kept = [".lock", "keys-X.safetensors", "keys-to-the-house.txt", "manifest.json", "names-X.json"]
    assert names == [*kept, "names-of-my-pets.json", "photo.jpg"]
    assert same(VisualNameMemory.open(folder), make(5))


# -- what cannot be saved


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["first file", "second file", "manifest", "replace", "lock"])
def test_a_failed_save_keeps_what_was_there(folder, monkeypatch, step):
    before, write, left = sorted(folder.iterdir()), memory_files._write, ["first file", "second file", "manifest"]

    def limited(path, content):
        def put_a_part(put):  # a part is on disk when the place runs out
            put(b"a part")
            full()

        return write(path, put_a_part if left.pop(0) == step else content)

    if step == "replace":
        monkeypatch.setattr(memory_files.os, "replace", full)
    elif step == "lock":
        monkeypatch.setattr(memory_files.fcntl, "flock", full)
    else:
        monkeypatch.setattr(memory_files, "_write", limited)
    memory = VisualNameMemory.open(folder)
    memory.remove("name 1")
    memory.rename("name 0", "other")
    with pytest.raises(EvcapError, match="No space left on device; what was there is kept") as error:
        memory.save(folder)
    assert "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before
    assert same(VisualNameMemory.open(folder, verify=True), make())
    monkeypatch.undo()
    memory.save(folder)  # once there is room again
    assert "other" in VisualNameMemory.open(folder).names


@pytest.mark.parametrize("done", [False, True])
def test_ctrl_c_beside_the_replacement_leaves_a_whole_memory(folder, monkeypatch, done):
    replace = os.replace

    def interrupted(source, target):
        if done:
            replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(memory_files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(5).save(folder)
    assert same(VisualNameMemory.open(folder, verify=True), make(5 if done else 3))


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/m"):
        with pytest.raises(EvcapError, match="cannot save the memory to"):
            make().save(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_change_by_another_process_is_not_overwritten(folder):
    one, two = VisualNameMemory.open(folder), VisualNameMemory.open(folder)
    one.remove("name 0")
    one.save(folder)
    one.remove("name 1")
    one.save(folder)  # one's own earlier save is no other process
    two.rename("name 0", "other")
    with pytest.raises(EvcapError, match="changed by another process"):
        two.save(folder)
    assert len(VisualNameMemory.open(folder)) == 0
    (folder / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(EvcapError, match="changed by another process"):
        two.save(folder)
    two.save(folder.parent / "copy")
    assert same(VisualNameMemory.open(folder.parent / "copy"), two)


def test_a_reader_meets_a_save_between_manifest_and_keys(folder, monkeypatch):
    text, saves = memory_files._manifest_text, [make(5)]

    def slow(path):
        found = text(path)
        if saves:
            saves.pop().save(path)
        return found

    monkeypatch.setattr(memory_files, "_manifest_text", slow)
    assert same(VisualNameMemory.open(folder), make(5))
