"""data/convert.py on sets of regions in their own layouts: what it writes is read back, and drawn where it was drawn."""

import json
import os
import shutil
from pathlib import Path

import pytest
import region_files
import typer
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from data import convert
from evcap.cli.console import command
from evcap.datasets.ovad import read_attributes
from evcap.datasets.phrases import read_phrases
from evcap.datasets.region_sets import REGION_SETS, RegionSplit

app = typer.Typer()
app.command()(command(convert.main))
SMALL = {
    "refcocog": {"val": RegionSplit(2, 4)},
    "visual-genome": {"test": RegionSplit(3)},
    "ovad": {"test": RegionSplit(2)},
    "flickr30k-entities": {"test": RegionSplit(1)},
}
MAKE = {
    "refcocog": region_files.refcocog,
    "visual-genome": region_files.visual_genome,
    "ovad": region_files.ovad,
    "flickr30k-entities": region_files.flickr30k_entities,
}
SAID = {
    "refcocog": "2 images, 3 regions, 4 phrases\n",
    "visual-genome": "2 images, 2 regions, 2 phrases, left out: 1 regions without a phrase, left out: 1 regions outside their "
    "image, left out: 1 images of the split that are in neither file\n",
    "ovad": "2 images, 2 regions, 2 phrases\n",
    "flickr30k-entities": "1 images, 4 regions, 6 phrases, left out: 1 regions without a phrase\n",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sets of the sizes of `region_files`."""
    for name, splits in SMALL.items():
        monkeypatch.setitem(REGION_SETS, name, splits)
        monkeypatch.setitem(convert.SETS, name, splits)


def run(name: str, source: Path, *options: str, code: int = 0) -> str:
    arguments = [name, "--source", str(source), "--data", str(source.parent / "data"), "--quiet", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(params=MAKE)
def name(request):
    return request.param


@pytest.fixture
def source(tmp_path, name) -> Path:
    MAKE[name](tmp_path / "downloads")
    return tmp_path / "downloads"


def target(source: Path, name: str) -> Path:
    (split,) = SMALL[name]
    return source.parent / "data" / name / f"regions_{split}.json"


def test_what_is_written_is_read_back(source, name):
    path = target(source, name)
    assert run(name, source) == f"{path}: {SAID[name]}"
    assert os.readlink(path.with_name("images")) == str(source)
    regions = read_phrases(path, path.with_name("images"))
    assert all(region.path.exists() and region.size == region.real_size for region in regions)
    assert COCO(path).getImgIds() == list(dict.fromkeys(region.image_id for region in regions))
    if name == "refcocog":
        assert [(r.image_id, r.box, r.phrases) for r in regions] == [
            (9, (10, 20, 40.5, 60), ("the left dog", "dog near a cat")),
            (9, (0, 0, 20, 20), ("a cat",)),
            (12, (5, 5, 95, 80), ("a tall man",)),
        ]
    if name == "ovad":
        assert [region.attributes for region in regions] == [(0, 1), (-1, 0)]
        assert [attribute.group for attribute in read_attributes(path)] == ["head", "tail"]
    if name == "flickr30k-entities":
        assert regions[0].phrases == ("A man", "A worker", "another man") and regions[0].types == ("people",)


def test_photos_of_another_size(source, name):
    """Boxes follow their photo where it was squashed, and the real ones can be had back."""
    run(name, source)
    path = target(source, name)
    before = read_phrases(path, path.with_name("images"))
    for photo in {region.path for region in before}:
        with Image.open(photo) as image:
            image.resize((224, 112)).save(photo)
    assert f"{len({r.path for r in before})} images of another size than their boxes" in run(name, source)
    after = read_phrases(path, path.with_name("images"))
    for old, new in zip(before, after, strict=True):
        assert new.size == (224, 112) and new.real_size == old.size and new.phrases == old.phrases
        assert new.real_box == pytest.approx(old.box, abs=0.01)
        assert new.box[2] == pytest.approx(old.box[2] * 224 / old.size[0], abs=0.01)


def test_photos_that_are_missing_or_none(source, name):
    run(name, source)
    path = target(source, name)
    whole = path.read_bytes()
    photo = read_phrases(path, path.with_name("images"))[0].path.resolve()
    kept = photo.read_bytes()
    photo.write_bytes(b"\xff\xd8 no photo")
    output = run(name, source, code=1)
    assert f"{photo} cannot be used as an image" in output and output.count("\n") == 1
    photo.unlink()
    assert "1 images are missing below" in run(name, source, code=1)
    assert path.read_bytes() == whole
    elsewhere = source.parent / "elsewhere"
    shutil.rmtree(path.parent)
    elsewhere.mkdir()
    for file in source.rglob("*.jpg"):
        file.rename(elsewhere / file.name)
    (elsewhere / photo.name).write_bytes(kept)
    run(name, source, "--images", str(elsewhere))
    assert (
        path.read_text() != ""
        and len(read_phrases(path, path.with_name("images"))) == json.loads(whole)["annotations"][-1]["id"]
    )


@pytest.mark.parametrize("name", ["refcocog"], indirect=True)
def test_photos_by_the_names_of_coco_2017(source, name):
    for file in source.rglob("COCO_train2014_*.jpg"):
        file.rename(file.with_name(file.name.removeprefix("COCO_train2014_")))
    run(name, source)
    assert json.loads(target(source, name).read_text())["images"][0]["file_name"] == "train2014/000000000009.jpg"


@pytest.mark.parametrize("name", ["ovad"], indirect=True)
def test_a_split_that_is_not_whole(source, name, monkeypatch):
    monkeypatch.undo()
    output = run(name, source, code=1)
    assert "ovad test: " in output and "test has 2 images, expected 2,000: is the file whole?" in output
    assert "ovad has no split 'val', but test" in run(name, source, "--split", "val", code=1)
    assert not target(source, name).exists()
