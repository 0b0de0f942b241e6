"""data/check.py on small data folders made here."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from data.check import SPLITS, main

app = typer.Typer()
app.command()(main)


def check(folder: Path, *sets: str) -> tuple[int, str]:
    """Exit code and output of `python data/check.py --data folder SET...`."""
    result = CliRunner().invoke(app, ["--data", str(folder), *sets])
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound data folder: every set, every split, two photos of one caption each."""
    for name, splits in SPLITS.items():
        (tmp_path / name / "images").mkdir(parents=True)
        for split in splits:
            files = [f"{split}{n}.jpg" for n in range(2)]
            for file in files:
                Image.new("RGB", (8, 8), "green").save(tmp_path / name / "images" / file)
            captions = {
                "images": [{"id": n, "file_name": file} for n, file in enumerate(files)],
                "annotations": [{"id": n, "image_id": n, "caption": "A lawn."} for n in range(2)],
            }
            (tmp_path / name / f"captions_{split}.json").write_text(json.dumps(captions))
            box = {"image_id": 0, "category_id": 1, "bbox": [0, 0, 4, 4]}
            instances = {**captions, "annotations": [box], "categories": [{"id": 1, "name": "grass"}]}
            (tmp_path / name / f"instances_{split}.json").write_text(json.dumps(instances))
    return tmp_path


def edit(path: Path, change) -> None:
    """Let `change` alter the parsed JSON of `path` in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_sound_folder_passes(folder):
    code, output = check(folder)
    assert code == 0
    assert "6,000" in output  # the reference count stands beside the small one, and is no problem


def test_missing_set_is_a_problem_if_asked_for(folder):
    shutil.rmtree(folder / "ucm")
    code, output = check(folder)
    assert code == 0 and "not there: ucm, coco-karpathy, flickr30k, nocaps, whoops" in output
    code, output = check(folder, "ucm", "coco")
    assert code == 1 and "ucm: there is no" in output and "flickr8k" not in output
    code, output = check(folder, "coco")
    assert code == 0 and "ucm" not in output
    code, output = check(folder, "flicker8k")
    assert code == 1 and "there is no set 'flicker8k'" in output


def test_empty_folder_is_a_problem(tmp_path):
    code, output = check(tmp_path)
    assert code == 1 and "coco: there is no" in output


def test_missing_split_is_named(folder):
    (folder / "flickr8k" / "captions_val.json").unlink()
    code, output = check(folder)
    assert code == 1 and "flickr8k val: cannot read" in output


def test_benchmark_has_its_number_of_photos(folder):
    """Its splits may be converted one by one; test of NoCaps has no captions."""
    (folder / "nocaps" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "nocaps" / "images" / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
    (folder / "nocaps" / "captions_test.json").write_text(json.dumps(content))
    code, output = check(folder, "nocaps")
    assert code == 1 and "nocaps test: there are 1 photos, the benchmark has 10,600" in output
    assert "nocaps val" not in output and "no caption" not in output


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"not a photo")])
def test_photo_that_does_not_open_is_named(folder, damage):
    damage(folder / "flickr8k" / "images" / "val1.jpg")
    code, output = check(folder)
    assert code == 1
    assert "flickr8k val:" in output and "val1.jpg" in output


def test_photo_without_caption_is_named(folder):
    edit(folder / "coco" / "captions_val.json", lambda content: content["annotations"].pop())
    code, output = check(folder)
    assert code == 1
    assert "coco val:" in output and "val1.jpg" in output


def test_empty_caption_is_named(folder):
    edit(folder / "ucm" / "captions_val.json", lambda content: content["annotations"][1].update(caption=" "))
    code, output = check(folder)
    assert code == 1
    assert "ucm val: val1.jpg has an empty caption" in output


def test_box_of_an_unknown_class_is_named(folder):
    edit(folder / "coco" / "instances_train.json", lambda content: content["annotations"][0].update(category_id=7))
    code, output = check(folder)
    assert code == 1
    assert "coco train:" in output and "instances_train.json" in output


def test_photo_in_two_splits_is_named(folder):
    path = folder / "flickr8k" / "captions_test.json"
    edit(path, lambda content: content["images"][0].update(file_name="train0.jpg"))
    code, output = check(folder)
    assert code == 1
    assert "train0.jpg stands in train and in test" in output
