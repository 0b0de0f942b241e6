"""Every damage of a memory on disk is told in one line, and opening one runs no code."""

import json
import os
import pickle

import pytest
from memory_tools import flip, make, part, refusal, replaced, with_manifest

from evcap import memory_files
from evcap.memory import VisualNameMemory
from evcap.memory_files import MemoryFormatError


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
