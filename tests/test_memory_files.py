"""A memory on disk: it comes back as it was, every damage is told in one line, and a failed save harms nothing."""

import errno
import hashlib
import json
import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcap import memory_files
from evcap.errors import EvcapError
from evcap.memory import VisualNameMemory
from evcap.memory_files import MemoryFormatError


def make(count=3, dtype=np.float16, encoder="e") -> VisualNameMemory:
    keys = np.random.default_rng(count).normal(size=(count, 4)).astype(dtype)
    memory = VisualNameMemory.empty(4, encoder, dtype)
    memory.add(keys, [f"name {i % 2}" for i in range(count)], ["s"] * count, [f"{i}.jpg" for i in range(count)])
    return memory


def same(one: VisualNameMemory, two: VisualNameMemory) -> bool:
    columns = all(getattr(one, c) == getattr(two, c) for c in ("names", "sources", "images", "encoder"))
    return columns and one.keys.dtype == two.keys.dtype and np.array_equal(one.keys, two.keys)


def part(folder, prefix):
    (path,) = folder.glob(f"{prefix}-*")
    return path


def with_manifest(folder, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replaced(folder, prefix: str, content: bytes) -> None:
    """Other content under the same name, with a manifest that vouches for it."""
    path = part(folder, prefix)
    path.write_bytes(content)
    told = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    with_manifest(folder, lambda manifest: manifest["files"].update({path.name: told}))


@pytest.fixture
def folder(tmp_path):
    make().save(tmp_path / "m")
    return tmp_path / "m"


# -- round trip


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([np.float16, np.float32]), st.lists(st.text(), max_size=5), st.text())
def test_round_trip(tmp_path_factory, dtype, texts, encoder):
    count, folder = len(texts), tmp_path_factory.mktemp("m")
    memory = VisualNameMemory(np.eye(5, dtype=dtype)[:count], texts, texts[::-1], [t * 2 for t in texts], encoder)
    memory.save(folder)
    assert same(VisualNameMemory.open(folder, encoder, verify=True), memory)


def test_names_of_files_that_are_not_unicode_come_back(tmp_path):
    memory = VisualNameMemory.build(np.ones((1, 4)), ["dog"], ["user"], [os.fsdecode(b"caf\xe9.jpg")], "e")
    memory.save(tmp_path)
    assert same(VisualNameMemory.open(tmp_path), memory)


def test_keys_stay_on_disk_until_searched(folder):
    memory = VisualNameMemory.open(folder)
    assert isinstance(memory.keys, np.memmap) and not memory.keys.flags.writeable
    before = memory.search(memory.keys[None].astype(np.float32))
    memory.save(folder)  # replaces the mapped file
    assert memory.search(memory.keys[None].astype(np.float32)) == before
    assert same(VisualNameMemory.open(folder), memory)


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


# -- what cannot be opened


def flip(path, place=-1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def safetensors(header: dict, data: bytes = bytes(24)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(**changes) -> bytes:
    told = {"dtype": "F16", "shape": [3, 4], "data_offsets": [0, 24]} | changes
    return safetensors({"keys": told})


def outside(folder, prefix: str, name: str) -> None:
    """The manifest names a file elsewhere, which exists and is as it says."""
    path = part(folder, prefix)
    content = path.read_bytes()
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    with_manifest(folder, lambda manifest: manifest["files"].update({name: manifest["files"].pop(path.name)}))


def columns(**changes) -> bytes:
    return json.dumps({c: ["x"] * 3 for c in ("names", "sources", "images")} | changes).encode()


DAMAGES = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a memory"),
    "manifest is a folder": (lambda f: [(f / "manifest.json").unlink(), (f / "manifest.json").mkdir()], "cannot read"),
    "manifest is no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot read"),
    "manifest is empty": (lambda f: (f / "manifest.json").write_text(""), "manifest.json is damaged"),
    "manifest is torn": (lambda f: (f / "manifest.json").write_text('{"format": 1, "enc'), "manifest.json is damaged"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[1]"), "manifest.json is damaged"),
    "manifest is deep": (lambda f: (f / "manifest.json").write_text("[" * 10**5), "manifest.json is damaged"),
    "other format": (lambda f: with_manifest(f, lambda m: m.update(format=2)), "format 2.*update evcap"),
    "other index": (lambda f: with_manifest(f, lambda m: m.update(index="tree")), "manifest.json is damaged"),
    "no encoder": (lambda f: with_manifest(f, lambda m: m.pop("encoder")), "manifest.json is damaged"),
    "files are a list": (lambda f: with_manifest(f, lambda m: m.update(files=["keys-"])), "manifest.json is damaged"),
    "files without sums": (lambda f: with_manifest(f, lambda m: m["files"].update(dict.fromkeys(m["files"], {}))), "damaged"),
    "entries lie": (lambda f: with_manifest(f, lambda m: m.update(entries=4)), "the manifest says .*4, 4.*the keys are .*3, 4"),
    "dim lies": (lambda f: with_manifest(f, lambda m: m.update(dim=5)), "the manifest says .*3, 5"),
    "dtype lies": (lambda f: with_manifest(f, lambda m: m.update(dtype="float32")), "the manifest says .*float32"),
    "dtype is unknown": (lambda f: with_manifest(f, lambda m: m.update(dtype="object")), "manifest.json is damaged"),
    "keys missing": (lambda f: part(f, "keys").unlink(), "keys-.* is missing"),
    "names missing": (lambda f: part(f, "names").unlink(), "names-.* is missing"),
    "keys are a folder": (lambda f: [part(f, "keys").rename(f / "x"), (f / json_name(f, "keys")).mkdir()], "cannot read|bytes"),
    "keys cut": (lambda f: os.truncate(part(f, "keys"), 40), "has 40 bytes, the manifest says"),
    "names grown": (lambda f: part(f, "names").write_bytes(part(f, "names").read_bytes() + b" "), "bytes, the manifest says"),
    "keys flipped": (lambda f: flip(part(f, "keys")), "keys-.* is damaged"),
    "names flipped": (lambda f: flip(part(f, "names"), 20), "names-.* is damaged"),
    "names of other length": (lambda f: replaced(f, "names", columns(names=["x"] * 2)), "does not hold a name"),
    "names are numbers": (lambda f: replaced(f, "names", columns(images=[1, 2, 3])), "does not hold a name"),
    "no sources": (lambda f: replaced(f, "names", b'{"names": []}'), "does not hold a name"),
    "names are a list": (lambda f: replaced(f, "names", b"[]"), "does not hold a name"),
    "names are no JSON": (lambda f: replaced(f, "names", b"\xff{"), "does not hold a name"),
    "keys are empty": (lambda f: replaced(f, "keys", b""), "not a safetensors file"),
    "keys of another type": (lambda f: replaced(f, "keys", tensor(dtype="I64")), "not a safetensors file"),
    "keys beyond the end": (lambda f: replaced(f, "keys", tensor(shape=[3000, 4])), "not a safetensors file"),
    "keys before the start": (lambda f: replaced(f, "keys", tensor(data_offsets=[-(10**6), 24])), "not a safetensors file"),
    "keys without offsets": (lambda f: replaced(f, "keys", tensor(data_offsets=[])), "not a safetensors file"),
    "keys of three axes": (lambda f: replaced(f, "keys", tensor(shape=[3, 2, 2])), "not a safetensors file"),
    "no keys": (lambda f: replaced(f, "keys", safetensors({"other": {}})), "not a safetensors file"),
    "keys from above": (lambda f: outside(f, "keys", "../keys-01234567.safetensors"), "manifest.json is damaged"),
    "keys from below": (lambda f: outside(f, "keys", "keys-1/../keys-01234567.safetensors"), "manifest.json is damaged"),
    "names from afar": (lambda f: outside(f, "names", str(f.parent / "names-01234567.json")), "manifest.json is damaged"),
}


def json_name(folder, prefix: str) -> str:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return next(name for name in files if name.startswith(prefix))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(folder, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(MemoryFormatError, match=message) as error:
        VisualNameMemory.open(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_no_folder_and_a_file(tmp_path):
    with pytest.raises(MemoryFormatError, match="does not exist; `evcap memory export"):
        VisualNameMemory.open(tmp_path / "no")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MemoryFormatError, match="file"):
        VisualNameMemory.open(tmp_path / "file")


def test_another_encoder_is_refused(folder):
    with pytest.raises(MemoryFormatError, match="made by encoder e, this model is f: rebuild"):
        VisualNameMemory.open(folder, "f")
    assert len(VisualNameMemory.open(folder, "e")) == 3


def test_large_keys_are_hashed_on_request(folder, monkeypatch):
    flip(part(folder, "keys"))
    monkeypatch.setattr(memory_files, "ALWAYS_HASHED", 10)
    VisualNameMemory.open(folder)
    with pytest.raises(MemoryFormatError, match="damaged"):
        VisualNameMemory.open(folder, verify=True)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("prefix", ["keys", "names"])
def test_opening_runs_no_code(folder, monkeypatch, prefix):
    monkeypatch.chdir(folder)
    replaced(folder, prefix, pickle.dumps(Bomb()))
    with pytest.raises(MemoryFormatError):
        VisualNameMemory.open(folder)
    assert not (folder / "exploded").exists()


# -- what cannot be saved


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["first file", "second file", "manifest", "replace", "lock"])
def test_a_failed_save_keeps_what_was_there(folder, monkeypatch, step):
    before, write, left = sorted(folder.iterdir()), memory_files._write, ["first file", "second file", "manifest"]

    def limited(path, content):
        write(path, content[:10])  # a part is on disk when the place runs out
        if left.pop(0) == step:
            full()
        write(path, content)

    if step == "replace":
        monkeypatch.setattr(memory_files.os, "replace", full)
    elif step == "lock":
        monkeypatch.setattr(memory_files.fcntl, "flock", full)
    else:
        monkeypatch.setattr(memory_files, "_write", limited)
    memory = VisualNameMemory.open(folder)
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
