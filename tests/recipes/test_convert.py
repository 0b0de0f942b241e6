"""data/convert.py on files in the layouts that the benchmarks come in, at their real numbers of images (empty files)."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from places import REPOSITORY
from pycocotools.coco import COCO
from typer.testing import CliRunner

from data import convert
from evcap.cli.console import command
from evcap.datasets.benchmarks import Files
from evcap.datasets.coco import read_coco_captions
from evcap.errors import EvcapError

app = typer.Typer()
app.command()(command(convert.main))


def run(name: str, source: Path, *options: str, code: int = 0) -> str:
    """`python data/convert.py name --source source --data ../data`; its output."""
    arguments = [name, "--source", str(source), "--data", str(source.parent / "data"), "--quiet", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def one_line(name: str, source: Path, *options: str) -> str:
    """The line that a failing conversion prints."""
    output = run(name, source, *options, code=1)
    assert output.startswith("evcap: ") and output.count("\n") == 1
    return output


def touch(folder: Path, names) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


def edit(path: Path, change) -> None:
    """Let `change` alter the parsed JSON of `path` in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def captions_of(path: Path) -> dict[int, list[str]]:
    """{image id: captions} as pycocotools reads a converted file."""
    coco = COCO(path)
    return {key: [row["caption"] for row in coco.imgToAnns[key]] for key in coco.getImgIds()}


def karpathy_flickr30k(source: Path) -> dict:
    """dataset_flickr30k.json with val and test whole and little of train, and all these images."""
    splits = ["val"] * 1014 + ["train"] * 7 + ["test"] * 1000
    images = []
    for number, split in enumerate(splits):
        sentences = [{"tokens": [], "raw": f"Caption {i} of é {number}.", "imgid": number} for i in range(5)]
        images.append(
            {"sentids": [], "imgid": number, "sentences": sentences, "split": split, "filename": f"{9000 - number}.jpg"}
        )
    data = {"images": images, "dataset": "flickr30k"}
    (source / "dataset_flickr30k.json").write_text(json.dumps(data))
    touch(source / "flickr30k-images", [image["filename"] for image in images])
    return data


def test_flickr30k(source):
    """Both files it comes in give the same; a split that is not whole keeps no other back."""
    images = karpathy_flickr30k(source)["images"]
    output = run("flickr30k", source, code=1)
    assert "flickr30k train: " in output and "train has 7 images, expected 29,000" in output
    data = source.parent / "data/flickr30k"
    assert sorted(os.listdir(data)) == ["captions_test.json", "captions_val.json", "images"]
    records = read_coco_captions(data / "captions_test.json", data / "images")
    expected = [image for image in images if image["split"] == "test"]
    assert [r.id for r in records] == [image["imgid"] for image in expected]
    assert [r.path.name for r in records] == [image["filename"] for image in expected]
    assert [r.captions for r in records] == [[s["raw"] for s in image["sentences"]] for image in expected]
    assert os.readlink(data / "images") == str(source)  # nothing is copied

    whole = {split: (data / f"captions_{split}.json").read_text() for split in ("val", "test")}
    (source / "dataset_flickr30k.json").unlink()
    with (source / "flickr_annotations_30k.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["raw", "sentids", "split", "filename", "img_id"])
        table.writeheader()
        for image in images:
            raw = json.dumps([s["raw"] for s in image["sentences"]])
            row = {"split": image["split"], "filename": image["filename"], "img_id": image["imgid"]}
            table.writerow({"raw": raw, "sentids": "[0, 1, 2, 3, 4]", **row})
    run("flickr30k", source, "--split", "val", "--split", "test")
    assert whole == {split: (data / f"captions_{split}.json").read_text() for split in ("val", "test")}


def test_coco_karpathy(source):
    """The 5,000 test images lie in val2014; the real program, asked for these only."""
    images = []
    for number in range(5000):
        name = f"COCO_val2014_{number + 42:012}.jpg"
        sentences = [{"raw": f"caption {i} of {number}", "tokens": [], "sentid": i} for i in range(5 + (number % 500 == 0))]
        row = {"filepath": "val2014", "filename": name, "cocoid": number + 42, "imgid": number, "sentences": sentences}
        images.append({**row, "split": "test"})
    images.append({"filepath": "train2014", "filename": "x.jpg", "cocoid": 1, "split": "train", "sentences": []})
    (source / "caption_datasets").mkdir()
    (source / "caption_datasets/dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    touch(source / "val2014", [image["filename"] for image in images[:-1]])
    data = source.parent / "data"
    program = [sys.executable, "data/convert.py", "coco-karpathy", "--source", source, "--data", data, "--split", "test"]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(program, capture_output=True, text=True, cwd=REPOSITORY, env=variables)
    assert (result.returncode, result.stderr) == (0, "")
    path = data / "coco-karpathy/captions_test.json"
    assert result.stdout == f"{path}: 5,000 images, 25,010 captions\n"
    assert captions_of(path) == {i["cocoid"]: [s["raw"] for s in i["sentences"]] for i in images[:-1]}
    file = json.loads(path.read_text())["images"][0]["file_name"]
    assert file == "val2014/COCO_val2014_000000000042.jpg" and (data / "coco-karpathy/images" / file).exists()


@pytest.fixture
def nocaps(source) -> Path:
    """The two files that NoCaps publishes, with their images."""
    images, annotations = [], []
    for number in range(4500):
        domain = ["in-domain", "near-domain", "near-domain", "near-domain", "out-domain"][number % 5]
        key = f"{number:016x}"
        place = {"open_images_id": key, "file_name": f"{key}.jpg", "coco_url": f"https://s3.amazonaws.com/nocaps/val/{key}.jpg"}
        images.append({**place, "id": number, "height": 9, "width": 9, "license": 0, "domain": domain})
        annotations += [{"image_id": number, "id": 10 * number + i, "caption": f"A {i} of {number}."} for i in range(10)]
    about = {"licenses": [], "info": {"url": "http://nocaps.org", "version": "0.1"}}
    content = about | {"images": images, "annotations": annotations}
    (source / "nocaps_val_4500_captions.json").write_text(json.dumps(content))
    touch(source / "val", [image["file_name"] for image in images])
    test = [{"id": n, "open_images_id": f"t{n}", "file_name": f"t{n}.jpg"} for n in range(10600)]
    (source / "nocaps_test_image_info.json").write_text(json.dumps(about | {"images": test}))
    touch(source / "test", [image["file_name"] for image in test])
    return source


def test_nocaps(nocaps):
    output = run("nocaps", nocaps)
    assert "4,500 images, 45,000 captions, 900 in-domain, 2,700 near-domain, 900 out-domain" in output
    assert "10,600 images, 0 captions" in output
    data = nocaps.parent / "data/nocaps"
    original = COCO(nocaps / "nocaps_val_4500_captions.json")
    assert captions_of(data / "captions_val.json") == {
        key: [row["caption"] for row in original.imgToAnns[key]] for key in original.getImgIds()
    }
    records = read_coco_captions(data / "captions_val.json", data / "images")
    assert [r.domain for r in records] == [image["domain"] for image in original.dataset["images"]]
    assert len(read_coco_captions(data / "captions_test.json", data / "images", captioned=False)) == 10600
    with pytest.raises(EvcapError, match="10600 images have no caption"):
        read_coco_captions(data / "captions_test.json", data / "images")


def test_what_is_wrong_with_nocaps(nocaps):
    path = nocaps / "nocaps_val_4500_captions.json"
    sound = path.read_text()
    edit(path, lambda data: data["images"][3].update(id=7))
    assert "1 image ids of val stand more than once, the first is 7" in one_line("nocaps", nocaps, "--split", "val")
    path.write_text(sound)
    edit(path, lambda data: data["images"].pop())
    assert "val has 4,499 images, expected 4,500" in one_line("nocaps", nocaps, "--split", "val")
    path.write_text(sound)
    edit(path, lambda data: data["annotations"].pop())
    assert "val has 44,999 captions, expected at least 45,000" in one_line("nocaps", nocaps, "--split", "val")
    path.write_text(sound)
    edit(path, lambda data: [row.update(image_id=1) for row in data["annotations"][:10]])
    assert "1 images of val have no caption, the first is 0000000000000000.jpg" in one_line("nocaps", nocaps, "--split", "val")
    path.write_text(sound)
    edit(path, lambda data: data["images"][2].pop("domain"))
    assert "images[2] has no 'domain'" in one_line("nocaps", nocaps, "--split", "val")
    path.write_text(sound[:1000])
    assert "is not JSON" in one_line("nocaps", nocaps, "--split", "val")
    path.unlink()
    assert "there is no nocaps_val_4500_captions.json below" in one_line("nocaps", nocaps, "--split", "val")
    assert not list((nocaps.parent / "data").glob("nocaps/*.json"))


def test_where_pictures_may_lie(nocaps):
    run("nocaps", nocaps, "--split", "val")
    data = nocaps.parent / "data/nocaps"
    before = (data / "captions_val.json").read_text()
    (nocaps / "val/0000000000000005.jpg").unlink()
    (nocaps / "val/0000000000000009.jpg").unlink()
    assert "2 images are missing below" in (said := one_line("nocaps", nocaps, "--split", "val"))
    assert said.endswith("the first is 0000000000000005.jpg\n") and (data / "captions_val.json").read_text() == before
    elsewhere = nocaps.parent / "elsewhere"
    (nocaps / "val").rename(elsewhere)
    for name in ("0000000000000005.jpg", "0000000000000009.jpg"):
        (elsewhere / name).touch()
    assert "is a link to" in one_line("nocaps", nocaps, "--split", "val", "--images", str(elsewhere))
    (data / "images").unlink()
    run("nocaps", nocaps, "--split", "val", "--images", str(elsewhere))
    assert len(read_coco_captions(data / "captions_val.json", data / "images")) == 4500
    (data / "images").unlink()
    elsewhere.rename(data / "images")  # a folder of their own is used as it is
    run("nocaps", nocaps, "--split", "val")
    assert len(read_coco_captions(data / "captions_val.json", data / "images")) == 4500
    (nocaps / "again").symlink_to(nocaps)  # a link in a circle
    (data / "images/0000000000000007.jpg").rename(nocaps / "0000000000000007.jpg")
    (data / "images/copy").mkdir()
    for folder in ("", "copy"):
        (data / "images" / folder / "0000000000000007.jpg").touch()
    assert "0000000000000007.jpg stands twice below" in one_line("nocaps", nocaps, "--split", "val")


def whoops_rows() -> list[dict[str, str]]:
    words = ['An odd, "quoted" image', "Ein Bär", "two\nlines", "four", "five"]
    return [
        {
            "image_id": hashlib.md5(str(n).encode()).hexdigest(),
            "selected_caption": "odd",
            "crowd_captions": json.dumps([f"{word} {n}" for word in words]),
            "question_answering_pairs": '[["What?", "It"]]',
            "image_url": "https://example.org",
        }
        for n in range(500)
    ]


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize("layout", ["whoops_dataset.csv", "test/metadata.csv"])
def test_whoops(source, layout):
    rows = whoops_rows()
    touch(source / ("whoops_images" if layout == "whoops_dataset.csv" else "test"), [f"{r['image_id']}.png" for r in rows])
    if layout == "test/metadata.csv":
        rows = [{"file_name": f"{row['image_id']}.png"} | row for row in rows]
    write_table(source / layout, rows)
    assert "500 images, 2,500 captions" in run("whoops", source)
    data = source.parent / "data/whoops"
    records = read_coco_captions(data / "captions_test.json", data / "images")
    assert [r.path.stem for r in records] == [row["image_id"] for row in rows]
    assert [r.captions for r in records] == [json.loads(row["crowd_captions"]) for row in rows]
    assert [r.id for r in records] == list(range(500))


def test_what_is_wrong_with_a_table(source):
    rows = whoops_rows()
    touch(source / "whoops_images", [f"{row['image_id']}.png" for row in rows])
    path = source / "whoops_dataset.csv"
    for cell, message in {"[1, 2]": "row 3 cannot be used: crowd_captions is not a list of texts", "[": "row 3 cannot"}.items():
        write_table(path, [row | {"crowd_captions": cell} if n == 2 else row for n, row in enumerate(rows)])
        assert message in one_line("whoops", source)
    write_table(path, [{"image_id": row["image_id"]} for row in rows])
    assert "has no column 'crowd_captions'" in one_line("whoops", source)
    path.write_bytes(b"\xff\xfe\x00image_id")
    assert "is not a CSV file in UTF-8" in one_line("whoops", source)


def test_damaged_archive_is_named(source, monkeypatch):
    (source / "val2014.zip").write_bytes(b"half of it")
    wrong = one_line("coco-karpathy", source, "--split", "test")
    assert hashlib.md5(b"half of it").hexdigest() in wrong and "a3d79f5ed8d289b7a7554ce06a5782b3" in wrong
    md5 = hashlib.md5(b"half of it").hexdigest()
    monkeypatch.setitem(convert.ARCHIVES, "coco-karpathy", {"val2014.zip": md5})
    assert "there is no dataset_coco.json" in one_line("coco-karpathy", source, "--split", "test")


def test_what_is_asked_wrongly(source):
    assert "whoops has no split 'val', but test" in one_line("whoops", source, "--split", "val")
    assert "there is no folder" in one_line("whoops", source / "none")
    assert "there is no folder" in one_line("whoops", source, "--images", str(source / "none"))
    assert not (source.parent / "data").exists()


def test_files_are_found_by_name(tmp_path):
    touch(tmp_path / "a/b", ["x", "y"])
    touch(tmp_path / "c", ["x"])
    (tmp_path / "d").symlink_to(tmp_path / "a")  # what a link leads to is not found twice
    files = Files(tmp_path)
    assert files.find("y").resolve() == tmp_path / "a/b/y" and files.find("z") is None
    with pytest.raises(EvcapError, match="x stands twice below"):
        files.find("x")
    with pytest.raises(EvcapError, match="there is no z and no w below"):
        files.need("z", "w")
    assert files.need("z", "y").name == "y"
