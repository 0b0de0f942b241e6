"""Every damage of a memory on disk is told in one line, and opening one runs no code."""

import json
import os
import pickle

import numpy as np
import pytest
from memory_tools import flip, make, part, refusal, replaced, saved, with_manifest

from evcap.errors import EvcapError
from evcap.memory import storage as memory_files
from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory
from evcap.memory.storage import MemoryFormatError


@pytest.fixture
def folder(tmp_path):
    make().save(tmp_path / "m")
    return tmp_path / "m"


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


def overlapping() -> bytes:
    told = {"dtype": "F16", "shape": [3, 4], "data_offsets": [0, 24]}
    return safetensors({"keys": told, "more": told})


def rows(value: float) -> bytes:
    keys = np.eye(3, 4, dtype=np.float16)
    keys[1, 1] = value
    return tensor()[:-24] + keys.tobytes()


def manifest_with(folder, old: str, new: str) -> None:
    text = (folder / "manifest.json").read_text()
    assert old in text
    (folder / "manifest.json").write_text(text.replace(old, new))


DAMAGES = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a memory"),
    "manifest is a folder": (lambda f: [(f / "manifest.json").unlink(), (f / "manifest.json").mkdir()], "cannot read"),
    "manifest is no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot read"),
    "manifest is empty": (lambda f: (f / "manifest.json").write_text(""), "manifest.json is damaged"),
    "manifest is torn": (lambda f: (f / "manifest.json").write_text('{"format": 1, "enc'), "manifest.json is damaged"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[1]"), "manifest.json is damaged"),
    "manifest is deep": (lambda f: (f / "manifest.json").write_text("[" * 10**5), "manifest.json is damaged"),
    "other format": (lambda f: with_manifest(f, lambda m: m.update(format=3)), "format 3.*1 and 2: update evcap"),
    "format of another index": (lambda f: with_manifest(f, lambda m: m.update(format=2)), "manifest.json is damaged"),
    "index of another format": (lambda f: with_manifest(f, lambda m: m.update(index="ivf")), "manifest.json is damaged"),
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
    "keys are short of the end": (
        lambda f: replaced(f, "keys", tensor(shape=[2, 4], data_offsets=[0, 16])),
        "not a safetensors",
    ),
    "keys in the header": (lambda f: replaced(f, "keys", tensor(data_offsets=[-8, 16])), "not a safetensors file"),
    "keys shifted": (lambda f: replaced(f, "keys", tensor(data_offsets=[4, 28])), "not a safetensors file"),
    "keys over others": (lambda f: replaced(f, "keys", overlapping()), "not a safetensors file"),
    "keys of negative shape": (lambda f: replaced(f, "keys", tensor(shape=[-3, -4])), "not a safetensors file"),
    "keys of a huge shape": (lambda f: replaced(f, "keys", tensor(shape=[2**62, 4])), "not a safetensors file"),
    "keys of a shape that wraps around": (
        lambda f: replaced(f, "keys", tensor(shape=[2**32, 2**32])),
        "not a safetensors file",
    ),
    "keys of no columns": (lambda f: replaced(f, "keys", tensor(shape=[3, True])), "not a safetensors file"),
    "keys of a huge width": (lambda f: replaced(f, "keys", tensor(shape=[0, 2**62], data_offsets=[0, 0])), "not a safetensors"),
    "header of a huge length": (lambda f: replaced(f, "keys", b"\xff" * 8 + tensor()[8:]), "not a safetensors file"),
    "header beyond the end": (lambda f: replaced(f, "keys", (2**20).to_bytes(8, "little") + tensor()[8:]), "not a safetensors"),
    "header is a list": (lambda f: replaced(f, "keys", safetensors([1])), "not a safetensors file"),
    "header is deep": (lambda f: replaced(f, "keys", (10**5).to_bytes(8, "little") + b"[" * 10**5), "not a safetensors file"),
    "keys are not finite": (lambda f: replaced(f, "keys", rows(np.nan)), "keys-.*: its keys are not of unit length"),
    "keys are endless": (lambda f: replaced(f, "keys", rows(np.inf)), "keys-.*: its keys are not of unit length"),
    "keys are zero": (lambda f: replaced(f, "keys", rows(0)), "keys-.*: its keys are not of unit length"),
    "keys are long": (lambda f: replaced(f, "keys", rows(1.1)), "keys-.*: its keys are not of unit length"),
    "names are huge": (lambda f: replaced(f, "names", columns() + b" " * 2**18), "bytes are more than the"),
    "names are deep": (lambda f: replaced(f, "names", b"[" * 10**5), "does not hold a name"),
    "manifest is huge": (lambda f: os.truncate(f / "manifest.json", 2**21), "cannot read .*bytes are more than the"),
    "entries are endless": (lambda f: manifest_with(f, '"entries": 3', f'"entries": {"9" * 5000}'), "manifest.json is damaged"),
    "entries are a truth": (lambda f: with_manifest(f, lambda m: m.update(entries=True)), "manifest.json is damaged"),
    "encoder is a page": (lambda f: with_manifest(f, lambda m: m.update(encoder="e" * 10**5)), "manifest.json is damaged"),
    "encoder colours": (lambda f: with_manifest(f, lambda m: m.update(encoder="\x1b[31m")), "manifest.json is damaged"),
    "format is a page": (
        lambda f: with_manifest(f, lambda m: m.update(format="f" * 10**5)),
        "has format 'fff.{10,90}, this evcap",
    ),
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
    refusal(folder, message)


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


@pytest.mark.parametrize("prefix", ["manifest.json", "keys", "names", "index"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_told_at_once(tmp_path, prefix, kind):
    saved(tmp_path, IndexKind.ivf)
    path = next(tmp_path.glob(f"{prefix}*"))
    if prefix != "manifest.json":  # it agrees to that length
        with_manifest(tmp_path, lambda manifest: manifest["files"][path.name].update(bytes=0))
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    refusal(tmp_path, "not a regular file")


def test_a_lock_that_is_a_link_or_a_pipe_harms_nobody(folder):
    (folder / ".lock").unlink()
    precious = folder.parent / "precious"
    precious.write_text("mine")
    (folder / ".lock").symlink_to(precious)
    memory = VisualNameMemory.open(folder)
    with pytest.raises(EvcapError, match="cannot save the memory"):
        memory.save(folder)
    (folder / ".lock").unlink()
    os.mkfifo(folder / ".lock")
    memory.save(folder)
    assert precious.read_text() == "mine" and len(VisualNameMemory.open(folder)) == 3


def test_many_keys_are_looked_at_when_they_are_searched(folder, monkeypatch):
    """A few of many when they are opened; all of them on request and before the first search."""
    keys = np.tile(np.eye(4, dtype=np.float16), (5000, 1))
    keys[10] = np.nan
    columns = ["x"] * len(keys), ["s"] * len(keys), ["i"] * len(keys)
    VisualNameMemory(keys, *columns, "e").save(folder.parent / "many")
    refusal(folder.parent / "many", "not of unit length")
    monkeypatch.setattr(memory_files, "ALWAYS_HASHED", 10)
    memory = VisualNameMemory.open(folder.parent / "many")
    with pytest.raises(MemoryFormatError, match="not of unit length"):
        VisualNameMemory.open(folder.parent / "many", verify=True)
    with pytest.raises(MemoryFormatError, match="not of unit length"):
        memory.search(np.ones((1, 1, 4)))
    keys[:] = 7
    VisualNameMemory(keys, *columns, "e").save(folder.parent / "all")
    refusal(folder.parent / "all", "not of unit length")


def test_a_file_behind_a_link_is_read(folder):
    """As the hub's cache keeps files."""
    path = part(folder, "keys")
    path.rename(folder.parent / "blob")
    path.symlink_to(folder.parent / "blob")
    assert len(VisualNameMemory.open(folder)) == 3
