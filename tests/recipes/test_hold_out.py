"""data/hold_out.py through its entry point."""

import json
from collections import Counter

import typer
from mosaic_data import make_data
from typer.testing import CliRunner

from data import hold_out
from evcap.cli.console import command
from evcap.datasets.coco import read_coco_captions

app = typer.Typer()
app.command()(command(hold_out.main))


def run(*args, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def records(folder, split):
    return read_coco_captions(folder / "ucm" / f"captions_{split}.json", folder / "ucm" / "images")


def test_pictures_are_in_one_split_and_none_of_the_val_split_is_there(tmp_path):
    data = make_data(tmp_path / "data", tiles=5)
    assert "42 of 105 train images of ucm held out" in run(tmp_path / "held", "--data", data, "--share", 0.4)
    train, val = (records(tmp_path / "held", split) for split in ("train", "val"))
    assert set(Counter(r.scene for r in val).values()) == {2}
    found = {r.path.name: r.captions for r in train + val}
    assert len(found) == len(train) + len(val)
    assert found == {r.path.name: r.captions for r in records(data, "train")}
    assert (tmp_path / "held" / "drone" / "a.png").read_bytes() == (data / "drone" / "a.png").read_bytes()


def test_the_same_seed_draws_the_same(tmp_path):
    data = make_data(tmp_path / "data")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, "--data", data, "--seed", seed, "--share", 0.5)
    a, b, c = ((tmp_path / name / "ucm" / "captions_val.json").read_text() for name in "abc")
    assert a == b != c


def test_bad_input_is_one_line(tmp_path):
    data = make_data(tmp_path / "data", tiles=1)
    run(tmp_path / "held", "--data", data)
    assert "is there already" in run(tmp_path / "held", "--data", data, code=1)
    (data / "ucm" / "captions_train.json").write_text(json.dumps([1]))
    assert "is not a COCO captions file" in run(tmp_path / "other", "--data", data, code=1)
    assert "cannot read" in run(tmp_path / "other", "--data", tmp_path / "nowhere", code=1)
