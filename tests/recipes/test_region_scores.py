"""eval/regions.py through its entry point, in the world of coloured squares: what each part counts, told by hand."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from places import REPOSITORY
from tiny_run import COLOURS, world

from evcap.config import load_preset
from evcap.datasets.phrases import Region
from evcap.errors import EvcapError
from evcap.model.build import build_model
from evcap.regions.model import open_regions
from evcap.training.region_data import Sample
from evcap.weights.shipped import write_shipped


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict[str, dict]:
    """Of each part, by one run of the recipe."""
    folder = tmp_path_factory.mktemp("scores")
    squares, data, assets = world() / "data" / "squares", folder / "data", folder / "assets"
    for name in ("flickr_entities", "flickr8k", "coco_plus"):
        (data / name).mkdir(parents=True)
    content = json.loads((squares / "regions_val.json").read_text())
    for place, annotation in enumerate(content["annotations"]):
        annotation["types"] = ["clothing"] if place % 2 else ["vehicles"]
    (data / "flickr_entities" / "entities_test.json").write_text(json.dumps(content))
    (data / "coco_plus" / "boxes_test.json").write_text(json.dumps(content))
    for name in ("flickr8k", "coco_plus"):
        shutil.copytree(squares / "images", data / name / "images")
    shutil.copytree(world() / "memory", assets / "memory")
    shutil.copy(world() / "start.safetensors", assets / "trained.safetensors")
    (assets / "classes.txt").write_text("\n".join([*COLOURS, "person"]))
    preset = yaml.safe_load((world() / "preset.yaml").read_text()) | {"assets": str(assets)}
    preset["decoding"]["phrase_weight"] = 0.0
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    spine = build_model(load_preset(folder / "preset.yaml"), assets / "trained.safetensors")
    spine.language.merge()
    torch.manual_seed(0)
    write_shipped(open_regions(spine, spine.language, None).trained(), assets / "regions.safetensors")
    command = [sys.executable, REPOSITORY / "eval" / "regions.py", "phrases", "colours", "classes", "--data", data]
    command += ["--output", folder / "out", "--preset", folder / "preset.yaml", "--views", "0,0.4,1", "--quiet"]
    variables = os.environ | {"EVCAP_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(run.stdout.strip().splitlines()) == 3
    return {path.stem: json.loads(path.read_text()) for path in (folder / "out").glob("*.json")}


@pytest.mark.slow  # a process of its own
def test_phrases(figures):
    """Each photo has one box and one phrase: every choice is right, by chance as well."""
    found = figures["phrases"]
    assert found["phrases"] == 6 and found["views"] == "0,0.4,1"
    assert found["accuracy"]["overall"] == found["chance"]["overall"] == found["contrast of photos"]["overall"]


@pytest.mark.slow  # a process of its own
def test_colours(figures):
    """Six squares of clothing and vehicles, of which those that are grey are asked for as gray."""
    found = figures["colours"]
    told = {name: count for name, (_, count) in found["by colour"].items()}
    names = [list(COLOURS)[(place // 4 + place + 1) % 4].replace("grey", "gray") for place in range(6)]
    assert found["regions"] == 6 and told == {name: names.count(name) for name in set(names)}
    assert found["accuracy"] == pytest.approx(sum(found["right"]) / 6)
    assert found["most frequent colour"] == max(told.values()) / 6


@pytest.mark.slow  # a process of its own
def test_classes(figures):
    found = figures["classes"]
    assert found["regions"] == 6 and len(found["right"]) == 6 and found["always person"] == 0
    labels = [place // 4 % 4 for place in range(6)]
    each = [[r for r, one in zip(found["right"], labels, strict=True) if one == label] for label in set(labels)]
    assert found["mean over classes"] == pytest.approx(sum(sum(row) / len(row) for row in each) / len(each))


def test_sets_that_a_part_cannot_count_are_told_in_one_line(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "eval")
    monkeypatch.delitem(sys.modules, "memory_matters", raising=False)
    recipe = importlib.import_module("eval.regions")
    region = Region(1, Path("1.png"), (0, 0, 9, 9), ("zebra",), ("animals",), (9, 9), (9, 9))
    describer = SimpleNamespace(classes=SimpleNamespace(texts=["person"]))
    looked = recipe.Looked(describer, [Sample(region.path, region, True)], torch.zeros(1, 6, 24))
    with pytest.raises(EvcapError, match="classes.txt has no class 'zebra'"):
        recipe.classes(looked, True)
    with pytest.raises(EvcapError, match="no region of clothing or vehicles"):
        recipe.colours(looked, True)
