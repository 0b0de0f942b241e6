"""eval/new_names.py: F1 by hand, which images become entries, and the whole test around a captioner that only finds."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from places import REPOSITORY
from typer.testing import CliRunner

from eval import new_names
from eval.new_names import Config, entries
from evcap.captioner import Caption
from evcap.cli.console import command
from evcap.datasets.coco import CaptionedImage
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import NameFinder
from evcap.yaml_files import load_yaml

NAMES = ["kite", "tennis ball"]
FILES = {"trained": "weights", "memory": "memory", "set": "set", "output": "o/r.json"}
SETTINGS = FILES | {"names": NAMES, "splits": ["val", "test"]}
app = typer.Typer()
app.command()(command(new_names.main))


def picture(name: str, *captions: str) -> CaptionedImage:
    return CaptionedImage(0, Path(name), list(captions))


def test_entries_are_pictures_whose_captions_agree():
    records = [picture(f"{n}.jpg", *["a kite"] * n, *["tennis balls"] * (5 - n)) for n in range(6)]
    finder, config = NameFinder(NAMES), Config(**SETTINGS)
    found = entries(config, finder, records)
    assert sorted(map(str, {path for name, path in found if name == "kite"})) == ["3.jpg", "4.jpg", "5.jpg"]
    assert sorted(str(path) for name, path in found if name == "tennis ball") == ["0.jpg", "1.jpg", "2.jpg"]
    few = Config(**SETTINGS, per_name=2, agree=1)
    drawn = entries(few, finder, records)
    assert [name for name, _ in drawn] == ["kite"] * 2 + ["tennis ball"] * 2 and len(set(drawn)) == 4
    assert drawn == entries(few, finder, records)
    draws = {tuple(entries(Config(**SETTINGS, per_name=2, agree=1, seed=seed), finder, records)) for seed in range(9)}
    assert len(draws) > 1


class FakeCaptioner:
    """An image of shade n looks like axis n; the captioner says the best name that the memory gives it."""

    encoder_fingerprint = "fake"

    def __init__(self, preset, memory, trained):
        assert (preset, trained) == ("embedded", "weights")
        self.memory = VisualNameMemory.open(memory, self.encoder_fingerprint)

    def query_features(self, images, batch_size=16):
        shades = []
        for path in images:
            with Image.open(path) as image:
                shades.append(image.getpixel((0, 0)))
        return torch.eye(4)[shades, None]

    def keys(self, images, batch_size=16):
        return self.query_features(images)[:, 0].numpy()

    def caption_features(self, queries, beams=5, batch_size=16):
        found = self.memory.search(queries.numpy(), top_k=1, limit=1)
        return [Caption(text, [text], row) for row in found for text in [f"This is a {row[0].name}"]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Shade 0 dogs, 1 kites, 2 tennis balls, 3 hills; the memory knows dogs, and takes kites and balls for dogs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set/images").mkdir(parents=True)
    words = ["dog", "kite", "tennis ball", "hill"]
    sets = {"train": [0, 1, 1, 2, 3], "val": [0, 1, 3], "test": [1, 2, 3]}
    for split, shades in sets.items():
        images = [{"id": n, "file_name": f"{split}{n}.png"} for n in range(len(shades))]
        for image, shade in zip(images, shades, strict=True):
            Image.new("L", (4, 4), shade).save(tmp_path / "set/images" / image["file_name"])
        captions = [{"image_id": n, "caption": f"This is a {words[shade]}"} for n, shade in enumerate(shades)] * 3
        (tmp_path / f"set/captions_{split}.json").write_text(json.dumps({"images": images, "annotations": captions}))
    keys = np.array([[1, 0.5, 0.5, 0], [0, 0, 0, 1]], np.float32)
    VisualNameMemory.build(keys, ["dog", "hill"], ["made"] * 2, ["a", "b"], "fake").save(tmp_path / "memory")
    monkeypatch.setattr(new_names, "Captioner", SimpleNamespace(load=FakeCaptioner))
    return tmp_path


def run(**changes):
    Path("config.yaml").write_text(yaml.safe_dump(SETTINGS | changes))
    return CliRunner().invoke(app, ["config.yaml", "--data", "."])


def test_whole_experiment(folder):
    result = run()
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "o/r.json").read_text())
    assert (report["images"], report["entries_added"]) == (6, 3)
    assert report["before"]["mean_f1"] == 0 and report["after"]["mean_f1"] == 100
    assert report["before"]["names"]["kite"] == {"f1": 0, "hits": 0, "said": 0, "in_references": 2}
    assert report["after"]["names"]["kite"] == {"f1": 100, "hits": 2, "said": 2, "in_references": 2}
    assert report["after"]["cider"] == pytest.approx(1000) and report["before"]["cider"] < 900
    assert VisualNameMemory.open(folder / "memory", "fake").counts() == {"dog": 1, "hill": 1}  # on disk as it was


def test_one_line_for_what_is_wrong(folder):
    result = run(memory="nowhere")
    assert result.exit_code == 1 and "nowhere" in result.output and result.output.count("\n") == 1
    result = run(names=[])
    assert result.exit_code == 1 and "names" in result.output and result.output.count("\n") == 1
    result = run(names=["Tennis_Ball"])
    assert result.exit_code == 1 and "'Tennis_Ball'" in result.output and result.output.count("\n") == 1


def test_config_of_the_repository():
    config = load_yaml(REPOSITORY / "eval/configs/new-names.yaml", Config)
    assert len(config.names) == 3 and [m.name for m in NameFinder(config.names).find(" ".join(config.names))] == config.names
