"""eval/evaluate.py: what it writes, how it goes on, what it refuses; at the end once with the shipped model."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from cli_tools import run_recipe
from PIL import Image
from places import REPOSITORY
from typer.testing import CliRunner

import evcap
from eval import evaluate
from evcap.captioner import Caption
from evcap.cli.console import command
from evcap.config import PRESET_FOLDER
from evcap.datasets.benchmarks import BENCHMARKS, PAPER
from evcap.evaluation.caption_metrics import score
from evcap.memory.memory import VisualNameMemory
from evcap.memory.ranking import RetrievedName
from evcap.yaml_files import load_yaml

PICTURES = 13
app = typer.Typer()
app.command()(command(evaluate.main))


class FakeCaptioner:
    """Captions "image NUMBER"; is interrupted after `stop_after` images. Calls stand in `asked`."""

    def __init__(self, stop_after: int = PICTURES):
        keys = np.eye(4, dtype=np.float32)
        self.memory = VisualNameMemory.build(keys, ["dog", "dog", "car", "tree"], ["made"] * 4, list("abcd"), "fake")
        self.stop_after, self.asked, self.encoder_fingerprint = stop_after, [], "fake"

    def caption(self, images, beams, min_length, max_length, batch_size):
        self.asked += [path.stem for path in images]
        if len(self.asked) > self.stop_after:
            raise KeyboardInterrupt
        return [Caption(f"image {p.stem}", [f"image {p.stem}"], [RetrievedName("dog", 0.5, 3)]) for p in images]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A set of 13 images 0.png ... with ids 100 ..., which becomes the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(PICTURES):
        Image.new("RGB", (30 + number, 20), (10 * number, 90, 90)).save(tmp_path / "images" / f"{number}.png")
    images = [{"id": 100 + n, "file_name": f"{n}.png"} for n in range(PICTURES)]
    captions = [{"image_id": 100 + n, "caption": f"image {n} of colour"} for n in range(PICTURES)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path


def run(monkeypatch, captioner: FakeCaptioner | None = None, code: int = 0, load=None, options=(), **changes):
    """One evaluation in the current folder with a made captioner, scored without METEOR and SPICE, which start slowly."""
    monkeypatch.setattr("evcap.evaluation.caption_metrics._meteor", lambda truth, said: 0.5)
    for module in ("evcap.evaluation.caption_metrics", "eval.evaluate"):
        monkeypatch.setattr(f"{module}.missing_spice", lambda models: "SPICE is left out: no models")
    monkeypatch.setattr(evcap, "load", load or (lambda preset, memory=None, device=None: captioner))
    settings = {"captions": "set.json", "images": "images", "output": "out", "batch_size": 4} | changes
    Path("config.yaml").write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(app, ["config.yaml", "--data", ".", "--quiet", *options])
    assert result.exit_code == code, result.output
    return result


def test_what_it_writes(folder, monkeypatch):
    output = run(monkeypatch, FakeCaptioner()).output
    predictions = json.loads((folder / "out/predictions.json").read_text())
    assert predictions == [{"image_id": 100 + n, "caption": f"image {n}"} for n in range(PICTURES)]
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert metrics["images"] == PICTURES and metrics["config"]["beams"] == 5
    references = {100 + n: [f"image {n} of colour"] for n in range(PICTURES)}
    expected = score({row["image_id"]: row["caption"] for row in predictions}, references)
    assert metrics["scores"] == pytest.approx(expected) and expected["METEOR"] == 50 and expected["CIDEr"] > 0
    assert metrics["versions"]["evcap"] == evcap.__version__ and len(metrics["fingerprints"]["trained.safetensors"]) == 16
    with Image.open(folder / "out/contact_sheet.png") as sheet:
        assert sheet.width == 1600
    assert "CIDEr" in output and f"{metrics['scores']['CIDEr']:.1f}" in output
    assert "SPICE is left out" in output


def test_interrupted_run_goes_on(folder, monkeypatch):
    run(monkeypatch, FakeCaptioner(stop_after=8), code=130)
    path = folder / "out/predictions.jsonl"
    assert len(path.read_text().splitlines()) == 1 + 8
    with path.open("a") as file:
        file.write('{"image_id": 108, "capt')  # killed while writing
    second = FakeCaptioner()
    run(monkeypatch, second)
    assert second.asked == [str(n) for n in range(8, PICTURES)]
    assert len(json.loads((folder / "out/predictions.json").read_text())) == PICTURES
    third = FakeCaptioner()
    run(monkeypatch, third)
    assert third.asked == []


def test_file_killed_in_its_first_line(folder, monkeypatch):
    (folder / "out").mkdir()
    (folder / "out/predictions.jsonl").write_text('{"captio')
    captioner = FakeCaptioner()
    run(monkeypatch, captioner)
    assert len(captioner.asked) == PICTURES


def test_damaged_captions_get_one_line(folder, monkeypatch):
    run(monkeypatch, FakeCaptioner())
    path = folder / "out/predictions.jsonl"
    path.write_text(path.read_text().replace('{"image_id": 104', '{"image_i'))
    result = run(monkeypatch, FakeCaptioner(), code=1)
    assert "predictions.jsonl is damaged" in result.output and result.output.count("\n") == 1


def test_captions_of_other_settings_are_not_mixed(folder, monkeypatch):
    run(monkeypatch, FakeCaptioner(), limit=5)
    assert len(json.loads((folder / "out/predictions.json").read_text())) == 5
    more = FakeCaptioner()
    run(monkeypatch, more, limit=9)
    assert more.asked == ["5", "6", "7", "8"]
    assert "other settings (beams): delete it" in run(monkeypatch, FakeCaptioner(), code=1, beams=3).output
    renamed = FakeCaptioner()
    renamed.memory.rename("dog", "wolf")
    assert "other settings (memory): delete it" in run(monkeypatch, renamed, code=1).output


def test_captions_of_an_edited_preset_are_not_mixed(folder, monkeypatch):
    preset = yaml.safe_load((PRESET_FOLDER / "embedded.yaml").read_text())
    preset["assets"] = str(PRESET_FOLDER / preset["assets"])
    (folder / "own.yaml").write_text(yaml.safe_dump(preset))
    run(monkeypatch, FakeCaptioner(), preset="own.yaml")
    preset["decoding"]["length_penalty"] += 0.1
    (folder / "own.yaml").write_text(yaml.safe_dump(preset))
    assert "other settings (own.yaml): delete it" in run(monkeypatch, FakeCaptioner(), code=1, preset="own.yaml").output


def test_memory_of_a_folder(folder, monkeypatch):
    asked = []

    def load(preset, memory=None, device=None):
        asked.append((preset, memory))
        return FakeCaptioner()

    run(monkeypatch, load=load, memory="some/folder")
    assert asked == [("embedded", "some/folder")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam": 5}, "unknown key 'beam'"),
        ({"batch_size": 0}, "batch_size and limit must be at least 1"),
        ({"limit": -2}, "batch_size and limit must be at least 1"),
        ({"captions": "none.json"}, "cannot read none.json"),
        ({"seen": "none.json"}, "cannot read none.json"),
        ({"benchmark": "nocaps"}, "there is no benchmark 'nocaps', but coco-karpathy-test, nocaps-val"),
        ({"output": "set.json"}, "cannot read or write set.json"),
    ],
)
def test_bad_settings_get_one_line(folder, monkeypatch, changes, message):
    result = run(monkeypatch, FakeCaptioner(), code=1, **changes)
    assert message in result.output and result.output.count("\n") == 1


def test_spice_models_that_are_not_there(folder, monkeypatch):
    captioner = FakeCaptioner()
    result = run(monkeypatch, captioner, code=1, options=["--spice", "nowhere"])
    assert "SPICE is left out" in result.output and result.output.count("\n") == 1 and not captioner.asked


def with_domains(folder: Path) -> dict[int, str]:
    """Give the images of the set domains, and return them by id."""
    content = json.loads((folder / "set.json").read_text())
    for image in content["images"]:
        image["domain"] = ["in-domain", "near-domain", "out-domain"][image["id"] % 3]
    (folder / "set.json").write_text(json.dumps(content))
    return {image["id"]: image["domain"] for image in content["images"]}


def test_scores_of_domains(folder, monkeypatch):
    domains = with_domains(folder)
    output = run(monkeypatch, FakeCaptioner(), benchmark="nocaps-val").output
    metrics = json.loads((folder / "out/metrics.json").read_text())
    references = {key: [f"image {key - 100} of colour"] for key in domains}
    predictions = {key: f"image {key - 100}" for key in domains}
    assert metrics["scores"] == pytest.approx(score(predictions, references))
    assert list(metrics["domains"]) == ["in-domain", "near-domain", "out-domain"]
    for domain, scores in metrics["domains"].items():
        own = {key: text for key, text in predictions.items() if domains[key] == domain}
        assert scores == pytest.approx(score(own, references)) and domain in output
    page = (folder / "out/results.md").read_text()
    for domain in metrics["domains"]:
        assert f"| this run, {domain} |" in page and f"| EVCap paper, {domain} |" in page
    assert f" {metrics['scores']['CIDEr']:.1f} |" in page and "SPICE is left out" in page


def test_set_without_references(folder, monkeypatch):
    """What EvalAI takes: a list of integer ids with captions, and no more."""
    content = json.loads((folder / "set.json").read_text())
    del content["annotations"][0]
    (folder / "set.json").write_text(json.dumps(content))
    assert "1 images have no caption" in run(monkeypatch, FakeCaptioner(), code=1).output
    assert "EvalAI" in run(monkeypatch, FakeCaptioner(), scored=False).output
    predictions = json.loads((folder / "out/predictions.json").read_text())
    assert predictions == [{"image_id": 100 + n, "caption": f"image {n}"} for n in range(PICTURES)]
    assert not (folder / "out/metrics.json").exists() and not (folder / "out/results.md").exists()


def test_captions_end_before_a_text(folder, monkeypatch):
    run(monkeypatch, FakeCaptioner(), scored=False, cut_at="age")
    assert json.loads((folder / "out/predictions.json").read_text())[0]["caption"] == "im"
    assert "other settings (cut_at)" in run(monkeypatch, FakeCaptioner(), code=1, scored=False).output


def test_names_said_and_held_out(folder, monkeypatch):
    """The fake memory knows dog, car and tree and finds "dog"; captions are "image 0" ..."""
    captioner = FakeCaptioner()
    captioner.memory.rename("dog", "image")
    monkeypatch.setattr(
        captioner,
        "caption",
        lambda images, **settings: [
            Caption(f"an image {p.stem}", [], [RetrievedName(("car", "image")[int(p.stem) < 5], 0.5, 3)]) for p in images
        ],
    )
    (folder / "train.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "two cars"}]}))
    run(monkeypatch, captioner, seen="train.json")
    naming = json.loads((folder / "out/metrics.json").read_text())["naming"]
    assert naming["captions_naming_a_retrieved_object"] == pytest.approx(100 * 5 / 13)
    assert naming["different_names_said"] == 1 and naming["object_f1"] == {"f1": 100, "names": 1}
    assert naming["held_out"]["each"] == {"image": {"f1": 100, "hits": 13, "said": 13, "in_references": 13}}


def test_other_preset_goes_to_a_folder_of_its_own(folder, monkeypatch):
    asked = []

    def load(preset, memory=None, device=None):
        asked.append(preset)
        return FakeCaptioner()

    run(monkeypatch, load=load, preset="evcap-vicuna-13b", options=["--preset", "embedded"], scored=False)
    assert asked == ["embedded"] and (folder / "out/embedded/predictions.json").exists()


def test_configs_of_the_repository():
    benchmarks = {"coco-karpathy-test", "nocaps-val", "nocaps-test", "flickr30k-karpathy-test", "whoops"}
    names = {"flickr8k-test", "flickr8k-val", "ucm-val", "coco-val"} | benchmarks
    for config in (load_yaml(REPOSITORY / f"eval/configs/{name}.yaml", evaluate.Config) for name in benchmarks):
        name, split = re.fullmatch(r"([\w-]+)/captions_(\w+)\.json", config.captions).groups()
        assert split in BENCHMARKS[name] and config.images == f"{name}/images"
        assert config.benchmark in PAPER if config.scored else (name, split) == ("nocaps", "test")
    outputs = [load_yaml(REPOSITORY / f"eval/configs/{name}.yaml", evaluate.Config).output for name in names]
    assert sorted(outputs) == sorted(f"runs/eval/{name}" for name in names)


def test_shipped_model_on_example_photos(captioner, tmp_path, monkeypatch):
    """Real captions of real photos, all scores."""
    references = {"pizza": "A pizza on a plate.", "elephant": "An elephant walks through grass.", "bus": "A bus in a street."}
    images = [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate(references, 1)]
    captions = [{"image_id": n, "caption": text} for n, text in enumerate(references.values(), 1)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": captions}))
    settings = {"captions": "set.json", "images": str(REPOSITORY / "examples"), "output": str(tmp_path / "out"), "beams": 2}
    settings["max_length"] = 8
    monkeypatch.setattr(evcap, "load", lambda preset, memory=None, device=None: captioner)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    run_recipe(evaluate.main, tmp_path / "config.yaml", "--data", tmp_path)
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len({row["caption"] for row in predictions}) == 3 and all(row["caption"] for row in predictions)
    scores = json.loads((tmp_path / "out/metrics.json").read_text())["scores"]
    assert set(scores) >= {"BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"} and scores["BLEU-1"] > 0 and scores["METEOR"] > 0
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert all(row["names"] for row in rows[1:])
