"""eval/memory_matters.py around a captioner of which is known when it listens to its memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from places import REPOSITORY
from typer.testing import CliRunner

import evcap
from eval import memory_matters
from eval.memory_matters import Config, paired_difference, rates, rename_test
from evcap.captioner import Caption
from evcap.cli.console import command
from evcap.config import load_preset
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import clean_name, pluralize
from evcap.yaml_files import load_yaml

SETTINGS = {"captions": "set.json", "images": "images", "output": "out", "batch_size": 2}
app = typer.Typer()
app.command()(command(memory_matters.main))


class FakeCaptioner:
    """Image n looks like key n of dog, dog, car, tree, man, kite; the captioner says the best name that it finds.

    But it never hears of trees: it says "a boat" for one; and a man is "a man with kites", whatever the memory says.
    """

    preset = load_preset("embedded")
    names = ["dog", "dog", "car", "tree", "man", "kite"]

    def __init__(self):
        keys = np.eye(len(self.names), dtype=np.float32)
        self.memory = VisualNameMemory.build(keys, self.names, ["made"] * 6, list("abcdef"), "fake")
        self.batches = []

    def query_features(self, images, batch_size=16):
        return torch.eye(6)[[int(Path(str(path)).stem) for path in images], None]

    def caption_features(self, queries, beams, batch_size):
        self.batches.append(len(queries))
        found = self.memory.search(queries.numpy(), top_k=1, sub_top_k=1, limit=1)
        texts = []
        for query, row in zip(queries, found, strict=True):
            name = row[0].name if row else "thing"
            texts.append({3: "a boat", 4: "a man with kites"}.get(int(query.argmax()), f"Two {pluralize(name)}"))
        return [Caption(text, [text], row) for text, row in zip(texts, found, strict=True)]


def config(**changes) -> Config:
    return Config(**SETTINGS, renames={"dog": "wolf", "man": "pirate", "kite": "Zeppelin_", "tree": "car"}, **changes)


def test_rename_test_counts():
    captioner = FakeCaptioner()
    own = captioner.memory
    queries = captioner.query_features(range(6))
    before = captioner.caption_features(queries, 1, 6)
    results, passed_over = rename_test(captioner, own, queries, before, config(count=3))
    assert list(results) == ["dog", "kite", "man"]  # said 2, 2 and 1 times
    counts = ("said", "retrieved", "follows", "neither", "keeps", "follows_retrieved", "keeps_retrieved")
    assert [results["dog"][k] for k in counts] == [2, 2, 2, 0, 0, 2, 0]
    assert [results["kite"][k] for k in counts] == [2, 1, 1, 0, 1, 1, 0]  # where it was not retrieved it stays
    assert [results["man"][k] for k in counts] == [1, 1, 0, 0, 1, 0, 1]
    assert "true" not in json.dumps(results) and "false" not in json.dumps(results)  # counts, also of one image
    assert results["dog"]["example"] == {"before": "Two dogs", "after": "Two wolves"}
    assert results["kite"]["new"] == "zeppelin"
    assert passed_over == {"car": "has no substitute in the config"}  # said as often as man, and first
    overall = rates(results)
    assert overall == {
        "follows": 60,
        "follows_when_retrieved": 75,
        "keeps": 40,
        "retrieved": 80,
        "mean_over_names": 50,
    }
    assert own.names == FakeCaptioner.names  # the memory itself is left as it was


def test_names_that_cannot_be_renamed_are_reported():
    captioner = FakeCaptioner()
    own, queries = captioner.memory, captioner.query_features(range(6))
    captioner.memory.names[3] = "boat"
    before = captioner.caption_features(queries, 1, 6)
    settings = Config(**SETTINGS, renames={"boat": "car", "kite": "zeppelin"})
    results, passed_over = rename_test(captioner, own, queries, before, settings)
    assert list(results) == ["kite"]
    reasons = dict.fromkeys(("dog", "car", "man"), "has no substitute in the config")
    assert passed_over == reasons | {"boat": "its substitute 'car' stands in the memory already"}


def test_new_name_that_was_said_before_does_not_count():
    captioner = FakeCaptioner()
    queries = captioner.query_features([4])
    before = captioner.caption_features(queries, 1, 1)  # "a man with kites"
    captioner.memory.names[5] = "moon"
    results, _ = rename_test(captioner, captioner.memory, queries, before, Config(**SETTINGS, renames={"man": "kite"}))
    assert (results["man"]["follows"], results["man"]["keeps"]) == (0, 1)


def test_paired_difference_by_hand():
    found = paired_difference({1: 10.0, 2: 30.0}, {1: 8.0, 2: 24.0})
    assert found == pytest.approx({"CIDEr difference": 4, "standard error": 2})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(6)]
    captions = [{"image_id": n, "caption": f"Two {name}s run"} for n, name in enumerate(FakeCaptioner.names)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": captions}))
    monkeypatch.setattr("evcap.evaluation.caption_metrics._meteor", lambda truth, said: 0.5)
    return tmp_path


def test_whole_experiment(folder, monkeypatch):
    captioner, asked = FakeCaptioner(), []
    monkeypatch.setattr(evcap, "load", lambda *args: asked.append(args) or captioner)
    Path("config.yaml").write_text(yaml.safe_dump(SETTINGS | {"renames": {"dog": "wolf", "kite": "zeppelin"}}))
    result = CliRunner().invoke(app, ["config.yaml", "--data", ".", "--preset", "other.yaml"])
    assert result.exit_code == 0, result.output
    assert asked == [("other.yaml", None)]
    assert max(captioner.batches) == 2
    report = json.loads((folder / "out/embedded/results.json").read_text())
    scores = {name: row["CIDEr"] for name, row in report["scores"].items()}
    assert scores["as it is"] > max(scores["empty"], scores["names shuffled"])
    assert report["against_as_it_is"]["empty"]["CIDEr difference"] == pytest.approx(scores["empty"] - scores["as it is"])
    assert report["rates"]["follows"] == 75 and report["names_in_prompt"] is FakeCaptioner.preset.language.names_in_prompt
    table = (folder / "out/embedded/results.md").read_text()
    assert "| dog → wolf | 2 | 100 % | 0 % | 2 of 2 |" in table and "| all | 4 | 75 % | 25 % | 100 % |" in table
    assert table.count("| as it is |") == 1 and "75.0 % of captions follow" in result.output
    with Image.open(folder / "out/embedded/memory_matters.png") as chart:
        assert chart.width > 1000


def test_substitutes_of_the_repository():
    """Single new words, all different, none of which is a name of the shipped memory."""
    settings = load_yaml(REPOSITORY / "eval/configs/memory-matters.yaml", Config)
    new = list(settings.renames.values())
    names = VisualNameMemory.open(REPOSITORY / "evcap/assets/embedded/memory").counts()
    assert len(new) >= 40 and len(set(new)) == len(new)
    assert all(word == clean_name(word) and " " not in word for word in new)
    assert not set(new) & (set(names) | set(settings.renames))
