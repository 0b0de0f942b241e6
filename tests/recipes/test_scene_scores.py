"""eval/calibrate_scenes.py and eval/scenes.py through their entry points, on scenes of plain colours, one a class, with an
encoder that sees which share of an image each colour has: what it is asked about it can find."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import typer
import yaml
from mosaic_data import make_data
from PIL import Image
from typer.testing import CliRunner

from data import make_mosaic
from eval import calibrate_scenes, scenes
from evcap.cli.console import command
from evcap.config import Preset, RetrievalConfig, preset_path
from evcap.datasets.ucm import UCM
from evcap.gigapixel.search.calibration import calibrated
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.retrieval import Retriever
from evcap.gigapixel.search.scene_search import UNMEASURED, Searcher
from evcap.memory.memory import VisualNameMemory
from evcap.yaml_files import from_dict

NAMES = [words.name for words in UCM.values()] + ["something else"]
STEP = 11  # of red, between classes
OURS = ("fast path", "slow path", "fast, then slow", "both in one pass (evcap ask)")


def runner(main):
    app = typer.Typer()
    app.command()(command(main))

    def run(*args, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*map(str, args), "--quiet"], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return run


class ShareTower:
    """Sees the share of each class's colour in an image, and reads the names of the classes."""

    shape, image_size, encoder_fingerprint = (1, len(NAMES)), 288, "shares"

    def query_features(self, images, batch_size=16):
        found = [np.asarray(image.convert("RGB"))[..., 0].ravel() // STEP for image in images]
        shares = np.stack([np.bincount(f, minlength=22)[:22] / len(f) for f in found]).astype(np.float32)
        return torch.from_numpy(shares[:, None])

    def read(self, phrases):
        places = [next((i for i, name in enumerate(NAMES) if name in phrase), 21) for phrase in phrases]
        return torch.eye(len(NAMES))[places]

    attention = staticmethod(lambda image: np.random.default_rng(0).random((1, 9, 9)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two scenes of 3,001 pixels with 8 planted tiles each, whose images have the red of their class."""
    folder = make_data(tmp_path_factory.mktemp("data"), tiles=6)
    for path in [*(folder / "ucm" / "images").iterdir(), *(folder / "drone").iterdir()]:
        label = path.name.split("-")[0]
        number = list(UCM).index(label) if label in UCM else 21
        pixels = np.full((*Image.open(path).size[::-1], 3), 40, np.uint8)
        pixels[..., 0] = STEP * number + STEP // 2
        Image.fromarray(pixels).save(path)
    runner(make_mosaic.main)(folder / "scenes", "--data", folder, "--size", 3001, "--scenes", 2, "--planted", 8)
    return folder


def a_searcher(rule: RetrievalConfig) -> Searcher:
    tower = ShareTower()
    keys = torch.eye(len(NAMES))[:21].numpy()
    memory = VisualNameMemory.build(keys, NAMES[:21], ["test"] * 21, [f"{n}.png" for n in NAMES[:21]], "shares")
    gallery = Gallery(memory)
    return Searcher(tower, tower, gallery, Retriever(tower, [gallery], rule))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    path = folder / "scenes.yaml"
    path.write_text(yaml.safe_dump({"scenes": "scenes", "pattern": "val-*.json", "output": str(folder / "scores")}))
    return path


@pytest.fixture(scope="module")
def chosen(data, config):
    """The thresholds that calibration prints, and all that it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Searcher, "open", lambda config: a_searcher(UNMEASURED))
        told = runner(calibrate_scenes.main)(config, "--data", data)
    return yaml.safe_load(told)["retrieval"], told


def test_thresholds_are_what_is_scored_where_nothing_is(chosen):
    """This encoder sees nothing alike everywhere: all cosines are 0, of the words and of the images."""
    rule, told = chosen
    assert "2 scenes, 8 phrases" in told
    bare = "\n".join(line for line in preset_path("embedded").read_text().splitlines() if "retrieval:" not in line)
    preset = from_dict(Preset, yaml.safe_load(f"{bare}\n{told}"), "a preset with what was printed below it")
    assert dataclasses.asdict(calibrated(preset)).items() >= rule.items()
    rivals = len(NAMES) - 2  # labels but the phrase's own
    assert rule["fast"] + rule["slope"] * np.log(0.257) == pytest.approx(-np.log(1 + rivals) / 10, abs=0.02)
    assert rule["slope"] >= 0


@pytest.fixture(scope="module")
def scores(data, config, chosen):
    with pytest.MonkeyPatch.context() as patch:
        rule = {name: value + 0.01 * (name != "slope") for name, value in chosen[0].items()}  # the levels are rounded
        patch.setattr(Searcher, "open", lambda config: a_searcher(RetrievalConfig(**rule)))
        runner(scenes.main)(config, "--data", data)
    return config.parent / "scores"


def test_an_encoder_that_sees_finds_all_and_others_do_not(scores):
    told = json.loads((scores / "metrics.json").read_text())
    assert told["scenes"] == ["val-0.json", "val-1.json"]
    for name in OURS:
        got = told["scores"][name]
        assert got["recall@1"] == 100
        assert got["recall@5"] > 85
        assert got["presence"] == 100
    assert told["scores"]["slow path"]["count error"] < 0.5
    assert told["scores"]["whole image as one input"]["recall@5"] < 50
    # the plan's tiles are 288 pixels: of (3001 / 216)^2 one or two have the middle of a planted tile of 4
    assert 0 < told["scores"]["chance"]["recall@1"] < 10


def test_rows_are_what_the_table_sums_up(scores):
    rows = [json.loads(line) for line in (scores / "predictions.jsonl").read_text().splitlines()]
    told = json.loads((scores / "metrics.json").read_text())
    assert len(rows) == 6 * told["questions"]
    for name in (*OURS, "ImageRAG's rule, grid"):
        here = [row for row in rows if row["way"] == name and row["kind"] == "presence"]
        assert told["scores"][name]["presence"] == pytest.approx(100 * np.mean([r["answer"] == r["truth"] for r in here]))
    table = (scores / "results.md").read_text()
    assert all(f"| {name} |" in table for name in told["scores"])


def test_without_scenes_one_line_says_what_makes_them(config, tmp_path):
    assert "data/make_mosaic.py makes them" in runner(scenes.main)(config, "--data", tmp_path, code=1)
