"""Checkpoints made to do harm: one line each, in bounded memory; and what is a file here or a name on a hub."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from evcap.config import LanguageConfig
from evcap.datasets.synthesis import model_mark
from evcap.errors import EvcapError
from evcap.gigapixel.search.towers import ClipTower
from evcap.model.build import build_language
from evcap.weights import checkpoints
from evcap.weights.checkpoints import read_tensors
from evcap.weights.release import read_release_memory
from evcap.weights.sources import local_or_hub

STATE = {"a": torch.ones(3, 4), "b": torch.zeros(2)}


def rewritten(source, target, change) -> None:
    """A copy of a zip file; `change` of each entry's content gives its content and compression."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content, how = change(entry.filename, old.read(entry))
            new.writestr(entry.filename, content, compress_type=how)


def bomb(name: str, content: bytes) -> tuple[bytes, int]:
    padding = b"0" * 10**8 if name.endswith("data.pkl") else b""
    return content + padding, zipfile.ZIP_DEFLATED


def deflated(path) -> None:
    torch.save(STATE, path.with_suffix(".plain"))
    rewritten(path.with_suffix(".plain"), path, bomb)


def crowded(path) -> None:
    """Empty entries, more than any checkpoint has."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):
            archive.writestr(f"archive/{number:060d}", b"")


def repeated(path) -> None:
    torch.save({"a": torch.ones(1).expand(2**40)}, path)


def sparse(path) -> None:
    torch.save({"a": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (2**40,))}, path)


def torn(path) -> None:
    torch.save(STATE, path)
    os.truncate(path, path.stat().st_size // 2)


HARMFUL = {
    deflated: "its entries are compressed",
    crowded: "too many entries",
    repeated: "tensor 'a' is larger than what the file holds of it",
    sparse: "tensor 'a' is larger than what the file holds of it",
    torn: "is damaged or no PyTorch file",
}


@pytest.mark.parametrize("make", HARMFUL, ids=lambda make: make.__name__)
def test_harmful_checkpoints_get_one_line(tmp_path, make):
    make(tmp_path / "x.pt")
    with pytest.raises(EvcapError, match=HARMFUL[make]) as caught:
        read_tensors(tmp_path / "x.pt", lambda name: True)
    assert "\n" not in str(caught.value) and len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_memory_is_bounded(tmp_path):
    """A file of 100 kB whose list of tensors would be 100 MB long, and a tensor of 4 TB; the process grows by less."""
    deflated(tmp_path / "a.pt")
    repeated(tmp_path / "b.pt")
    assert (tmp_path / "a.pt").stat().st_size < 2**18
    code = f"""
import resource
from evcap.weights.checkpoints import read_tensors
from evcap.errors import EvcapError
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in "ab":
    try:
        read_tensors({str(tmp_path)!r} + f"/{{name}}.pt", lambda name: True)
    except EvcapError:
        print("refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told[:2] == ["refused"] * 2 and int(told[2]) < 50


def test_sound_checkpoints_are_read(tmp_path):
    """As torch writes them, in both of its formats, whole or a view of something larger."""
    wide = torch.arange(12.0).reshape(3, 4)
    state = STATE | {"transposed": wide.T, "part": wide[1:], "none": torch.zeros(0, 3), "scalar": torch.tensor(1.5)}
    for new in (True, False):
        torch.save({"model": state}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        found, others = read_tensors(tmp_path / "x.pt", lambda name: name != "b")
        assert others == ["b"] and all(torch.equal(found[name], state[name]) for name in state if name != "b")
    torch.save({"a": torch.ones(2), "b": torch.ones(1).expand(2**40)}, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt", lambda name: name == "a")[1] == ["b"]  # harms nobody who does not want it


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_told_at_once(tmp_path, kind):
    path = tmp_path / "x.pt"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(EvcapError, match="not a regular file"):
        read_tensors(path, lambda name: True)
    with pytest.raises(EvcapError, match="not a regular file"):
        read_release_memory(path)
    os.rename(path, tmp_path / "x.safetensors")
    with pytest.raises(EvcapError, match="x.safetensors: not a regular file"):
        read_tensors(tmp_path / "x.safetensors", lambda name: True)


class Claims:
    """A pickle of an array that is said to be larger than the file."""

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (3, 2**28), "f8")


@pytest.mark.parametrize("keys", [torch.ones(3, 1).expand(3, 2**40), Claims()])
def test_a_memory_larger_than_its_file_is_refused(tmp_path, keys):
    with (tmp_path / "x.pkl").open("wb") as file:
        pickle.dump((keys, ["a", "b", "c"]), file)
    with pytest.raises(EvcapError, match="its keys are larger than the file|is damaged or no pickle"):
        read_release_memory(tmp_path / "x.pkl")


INDEXES = {
    "elsewhere": json.dumps({"weight_map": {"a": "../x.bin"}}),
    "absolute": json.dumps({"weight_map": {"a": "/etc/passwd"}}),
    "numbers": json.dumps({"weight_map": {"a": 3}}),
    "a list": json.dumps({"weight_map": ["a"]}),
    "deep": "[" * 10**5,
    "long": '{"weight_map": ' + "9" * 10**5,
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_of_shards_that_is_damaged(tmp_path, kind):
    (tmp_path / "x.bin").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(INDEXES[kind])
    with pytest.raises(EvcapError, match=r"index\.json (is damaged|is not JSON)"):
        read_tensors(folder, lambda name: True)


LOCAL = [
    "weights/x.safetensors",
    "x.pth",
    "./llm",
    "../llm",
    "/models/vicuna",
    "~/llm",
    "weights/llm/",
    "a/b/c",
    "a b",
    "E.PTH",
]
HUB = ["gpt2", "lmsys/vicuna-13b-v1.3", "Salesforce/blip2-flan-t5-xl", "openai/clip-vit-base-patch32", "a.b/c_d"]


@pytest.mark.parametrize("source", LOCAL)
def test_a_file_that_is_not_here_is_no_question_to_a_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "_on_hub", lambda *asked: pytest.fail("the hub was asked"))
    language = LanguageConfig(kind=source, hidden=8, before="", after="")
    asked = [
        lambda: read_tensors(source, lambda name: True),
        lambda: build_language(language, "float32", torch.device("cpu")),
        lambda: ClipTower(source),
        lambda: model_mark(source),
    ]
    for ask in asked:
        with pytest.raises(EvcapError, match="no such file or folder"):
            ask()


@pytest.mark.parametrize("source", HUB)
def test_names_on_a_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    assert local_or_hub(source) == source
    (tmp_path / source).mkdir(parents=True)
    assert local_or_hub(source) == (tmp_path / source).relative_to(tmp_path)  # what is here goes before
    with pytest.raises(EvcapError, match="holds no checkpoint"):
        read_tensors(source, lambda name: True)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    import huggingface_hub

    class SomeHttpLibrarysError(Exception):
        pass

    def fail(*asked):
        raise SomeHttpLibrarysError("timed\nout")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(EvcapError, match="^some/name is no file or folder here, and the hub did not give it; check the path$"):
        read_tensors("some/name", lambda name: True)


@pytest.mark.parametrize("how", ["memory", "legacy", "zip"])
def test_a_tuple_of_a_million_levels_does_not_end_the_process(tmp_path, how):
    """As the key of a dictionary it would: Python's hash of a tuple knows no bound."""
    deep = b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s."
    if how == "zip":
        torch.save(STATE, tmp_path / "plain")
        stored = zipfile.ZIP_STORED
        rewritten(tmp_path / "plain", tmp_path / "x", lambda name, old: (deep if name.endswith("data.pkl") else old, stored))
    else:
        (tmp_path / "x").write_bytes(deep)
    code = f"""
from evcap.weights.checkpoints import read_tensors
from evcap.weights.release import read_release_memory
read = read_release_memory if {how == "memory"} else lambda path: read_tensors(path, lambda name: True)
read({str(tmp_path / "x")!r})
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 1 and "EvcapError" in child.stderr.splitlines()[-1] and "deep" in child.stderr.splitlines()[-1]
