"""`evcap region`: ways to name regions, formats, bad boxes, resuming, drawings; the shipped spine at the end."""

import csv
import io
import json
import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import jsonl, run
from PIL import Image

import evcap
from evcap.cli.region import Task
from evcap.config import assets_folder, load_preset
from evcap.errors import EvcapError
from evcap.regions.describe import RegionDescriber, RegionDescription
from evcap.regions.model import open_regions
from evcap.regions.views import TASK_RATIOS, checked_regions
from evcap.weights.wheels import write_safetensors

KEYS = ["file", "id", "box", "caption", "captions", "names", "tags", "class", "views", "error"]
Hit = namedtuple("Hit", "name similarity query")


class FakeDescriber:
    """Tells the colour in the middle of a box. An image 13 pixels wide is too much for it. calls: boxes of each."""

    def __init__(self):
        self.calls, self.tags, self.classes, self.options = [], ["blue"], ["thing"], {}

    def set_tags(self, tags):
        self.tags = tags

    def set_classes(self, classes):
        self.classes = classes

    def describe(self, image, boxes, **options):
        self.calls.append(len(boxes))
        self.options = options
        if image.width == 13:
            raise RuntimeError("the model\nchoked")
        count = options["num_captions"]
        return [self._said(image, box, count) for box in checked_regions(boxes, *image.size).tolist()]

    def _said(self, image, box, count):
        centre = (int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2))
        texts = [seen(image, centre), *["again"] * (count - 1)]
        return RegionDescription(tuple(box), texts, [Hit("sky", 0.61234567, 3)], self.tags, self.classes[0], [0.0, 0.1, 0.2])

    def certainty(self, image, boxes, batch_size=32):
        return np.arange(len(boxes), dtype=np.float32)


def seen(image, centre) -> str:
    return "colour {} {} {}".format(*image.getpixel(centre))


@pytest.fixture
def fake(monkeypatch):
    describer = FakeDescriber()
    captioner = namedtuple("Captioner", "region_describer")(describer)
    monkeypatch.setattr(evcap, "load", lambda preset="embedded", memory=None: captioner)
    return describer


def with_regions(folder: Path, tensors: dict) -> Path:
    """The YAML of a preset that has these tensors of regions, and all else of the shipped one."""
    assets = folder / "assets"
    assets.mkdir()
    for path in assets_folder("embedded", load_preset("embedded")).iterdir():
        if path.name != "regions.safetensors":
            (assets / path.name).symlink_to(path)
    write_safetensors(tensors, assets / "regions.safetensors")
    (folder / "preset.yaml").write_text("base: embedded\nassets: assets\n")
    return folder / "preset.yaml"


@pytest.fixture(scope="session")
def preset(tmp_path_factory) -> Path:
    """For a fake describer: nothing but the header of the tensors is read."""
    return with_regions(tmp_path_factory.mktemp("fake"), {"nothing": torch.zeros(1)})


@pytest.fixture
def region(fake, preset, tmp_path, monkeypatch):
    """Runs the command in a folder with a.png, 40 x 30, its left half red, and b.png and c.png, 20 x 20, blue and grey."""
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (40, 30), (0, 250, 0))
    picture.paste((250, 0, 0), (0, 0, 20, 30))
    picture.save("a.png")
    Image.new("RGB", (20, 20), (0, 0, 250)).save("b.png")
    Image.new("RGB", (20, 20), (90, 90, 90)).save("c.png")
    return lambda *args, code=0: run("region", *args, "--preset", preset, code=code)


def lines(region, *args, code=0) -> list[dict]:
    return jsonl(region(*args, "--format", "jsonl", code=code).stdout)


def write_csv(rows, path="boxes.csv", columns="file,x1,y1,x2,y2") -> Path:
    Path(path).write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return Path(path)


def write_coco(images, annotations, path="boxes.json") -> Path:
    """images: {id: file}. annotations: (id, image's id, bbox)."""
    content = {
        "images": [{"id": key, "file_name": file} for key, file in images.items()],
        "annotations": [{"id": key, "image_id": image, "bbox": bbox} for key, image, bbox in annotations],
    }
    Path(path).write_text(json.dumps(content))
    return Path(path)


# ways to name regions


@pytest.mark.parametrize(
    "ways",
    [(), ("--all", "--grid", "2x2"), ("--box", "1,2,3,4", "--all"), ("--box", "1,2,3,4", "--boxes", "boxes.csv")],
)
def test_exactly_one_way(region, fake, ways):
    stderr = region("a.png", *ways, code=1).stderr
    assert "one of --box, --boxes, --grid and --all" in stderr and stderr.count("\n") == 1 and not fake.calls


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("a.png", "--box", "1,2,3"), "is not four numbers"),
        (("a.png", "--box", "1,2,3,x"), "is not four numbers"),
        (("a.png", "--grid", "0x3"), "rows x columns"),
        (("a.png", "--grid", "65x1"), "rows x columns"),
        (("--grid", "2x3"), "name some"),
        (("a.png", "--grid", "2x3", "--most", "3"), "--most is about the windows"),
        (("a.png", "--grid", "2x3", "--tags", "empty.txt"), "empty.txt holds nothing"),
        (("a.png", "--grid", "2x3", "--classes", "none.txt"), "cannot read none.txt"),
        (("--boxes", "none.csv"), "cannot read none.csv"),
        (("a.png", "b.png", "--grid", "2x3", "--overlay", "x.png"), "draws one image, 2 were named"),
        (("a.png", "--grid", "2x3", "--overlay", "b.png"), "is no earlier result of evcap"),
        (("a.png", "--grid", "2x3", "--output", "a.png"), "which would be lost"),
    ],
)
def test_what_is_told_before_the_model_is_loaded(region, monkeypatch, args, told):
    monkeypatch.setattr(evcap, "load", lambda *_: pytest.fail("the model was loaded"))
    Path("empty.txt").write_text("\n\n")
    stderr = region(*args, code=1).stderr
    assert told in stderr and stderr.count("\n") == 1


def test_presets_without_regions_or_their_tensors(region, tmp_path, preset, monkeypatch):
    (tmp_path / "none.yaml").write_text("base: embedded\nregions: null\n")
    assert "says nothing of regions" in run("region", "a.png", "--grid", "1x1", "--preset", "none.yaml", code=1).stderr
    assets = tmp_path / "assets"
    assets.mkdir()
    for path in (preset.parent / "assets").iterdir():
        if path.name != "regions.safetensors":
            (assets / path.name).symlink_to(path)
    (tmp_path / "without.yaml").write_text("base: embedded\nassets: assets\n")
    stderr = run("region", "a.png", "--grid", "1x1", "--preset", "without.yaml", code=1).stderr
    assert "regions.safetensors does not exist" in stderr and stderr.count("\n") == 1


def test_boxes_of_the_command_line(region):
    rows = lines(region, "a.png", "b.png", "--box", "0,0,10,10", "--box", "25.5,0,1000000,20", "--num-captions", 2, code=1)
    assert [list(row) for row in rows] == [KEYS] * 4
    assert [(row["file"], row["id"], row["caption"]) for row in rows[:2]] == [
        ("a.png", 1, "colour 250 0 0"),
        ("a.png", 2, "colour 0 250 0"),
    ]
    assert rows[0]["box"] == [0, 0, 10, 10] and rows[1]["box"] == [25.5, 0, 1000000, 20]  # as asked for, not cut
    assert rows[0] == {
        "file": "a.png",
        "id": 1,
        "box": [0, 0, 10, 10],
        "caption": "colour 250 0 0",
        "captions": ["colour 250 0 0", "again"],
        "names": [{"name": "sky", "similarity": 0.6123}],
        "tags": ["blue"],
        "class": "thing",
        "views": [0.0, 0.1, 0.2],
        "error": None,
    }
    assert [row["error"] is None for row in rows] == [True, True, True, False]  # b.png ends before the second box


def test_boxes_of_the_command_line_that_start_with_a_minus(region):
    assert lines(region, "a.png", "--box", "-5,-5,10,10")[0]["box"] == [-5, -5, 10, 10]


def test_text_and_csv(region):
    text = region("a.png", "--box", "0,0,10,10", "--box", "90,0,95,9", code=1).stdout
    assert text == (
        "a.png\n  1  [0, 0, 10, 10]\n    colour 250 0 0\n    class: thing\n    tags: blue\n    names: sky 0.61\n"
        "  2  [90, 0, 95, 9]\n    error: a.png: box 90,0,95,9 lies outside the image, which is 40 x 30 pixels\n"
    )
    rows = list(csv.reader(io.StringIO(region("a.png", "--box", "0,0,10,10.5", "--format", "csv").stdout)))
    assert rows[0] == ["file", "id", "x1", "y1", "x2", "y2", *KEYS[3:]]
    assert rows[1] == [
        "a.png",
        "1",
        "0",
        "0",
        "10",
        "10.5",
        "colour 250 0 0",
        "colour 250 0 0",
        "sky 0.61",
        "blue",
        "thing",
        "0 0.1 0.2",
        "",
    ]


def test_boxes_are_in_pixels_of_the_upright_image(region):
    """A phone stores a portrait as a landscape and says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("a.png") as landscape:
        landscape.save("turned.png", exif=exif)
    rows = lines(region, "turned.png", "--box", "0,0,30,20", "--box", "0,20,30,40")
    assert [row["caption"] for row in rows] == ["colour 250 0 0", "colour 0 250 0"]


def test_coco_keeps_ids_and_turns_sides_into_corners(region):
    boxes = write_coco({7: "b.png", 5: "a.png"}, [(900, 5, [0, 0, 10, 5]), ("x", 7, [1, 2, 3, 4.5]), (800, 5, [30, 0, 10, 5])])
    rows = lines(region, "--boxes", boxes)
    told = [(row["file"], row["id"], row["box"]) for row in rows]
    assert told == [("a.png", 900, [0, 0, 10, 5]), ("a.png", 800, [30, 0, 40, 5]), ("b.png", "x", [1, 2, 4, 6.5])]
    assert [row["caption"] for row in rows] == ["colour 250 0 0", "colour 0 250 0", "colour 0 0 250"]


def test_csv_numbers_its_rows_or_names_them(region):
    rows = [("b.png", 0, 0, 9, 9), ("a.png", 0, 0, 9, 9), ("b.png", 5, 5, 9, 9)]
    told = [(row["file"], row["id"]) for row in lines(region, "--boxes", write_csv(rows))]
    assert told == [("b.png", 1), ("b.png", 3), ("a.png", 2)]
    named = write_csv([(*row, f"n{i}") for i, row in enumerate(rows)], columns="file,x1,y1,x2,y2,id")
    assert [row["id"] for row in lines(region, "--boxes", named)] == ["n0", "n2", "n1"]


def test_the_grid_is_the_image_and_its_cells(region):
    rows = lines(region, "a.png", "--grid", "2x4")
    cells = [[x, y, x + 10, y + 15] for y in (0, 15) for x in (0, 10, 20, 30)]
    assert [row["box"] for row in rows] == [[0, 0, 40, 30], *cells] and [row["id"] for row in rows] == list(range(1, 10))
    assert [row["caption"] for row in rows[1:5]] == ["colour 250 0 0"] * 2 + ["colour 0 250 0"] * 2


def test_windows_are_chosen_best_first(region):
    rows = lines(region, "a.png", "--all", "--most", "3")
    assert 1 <= len(rows) <= 3 and [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["box"][2:] == [40, 30]  # the fake is surest of the last window


def test_own_words_tags_classes_and_tasks_arrive(region, fake):
    Path("tags.txt").write_text("green\nred/crimson\n\ngreen\n")
    Path("classes.txt").write_text("sky\nsea\n")
    args = ("--words", "red, shirt,", "--tags", "tags.txt", "--classes", "classes.txt", "--task", "caption", "--batch-size", 5)
    row = lines(region, "b.png", "--grid", "1x1", *args, "--beams", 2, "--num-captions", 3, "--max-length", 9)[0]
    assert row["tags"] == ["green", "red"] and row["class"] == "sky"
    assert fake.options["words"] == ["red", "shirt"] and fake.options["task"] == "caption" and fake.options["batch_size"] == 5
    assert (fake.options["decoding"].beams, fake.options["decoding"].max_length) == (3, 9)
    assert set(Task) == set(TASK_RATIOS)


# where the images of a file of boxes are


def test_images_are_looked_for_beside_the_file_then_in_folders(region):
    for folder, colour in (("list", (1, 1, 1)), ("one", (2, 2, 2)), ("two", (3, 3, 3))):
        Path(folder).mkdir()
        Image.new("RGB", (20, 20), colour).save(f"{folder}/{folder}.png")
        Image.new("RGB", (20, 20), colour).save(f"{folder}/all.png")
    boxes = write_csv([(f"{name}.png", 0, 0, 9, 9) for name in ("all", "one", "two", "gone")], "list/boxes.csv")
    rows = lines(region, "two", "one", "--boxes", boxes, code=1)
    assert [row["file"] for row in rows] == ["list/all.png", "one/one.png", "two/two.png", "list/gone.png"]
    assert rows[0]["caption"] == "colour 1 1 1" and "there is no such file" in rows[3]["error"]


def test_named_images_are_meant_and_no_others(region):
    boxes = write_csv([("a.png", 0, 0, 9, 9), ("b.png", 0, 0, 9, 9), ("b.png", 0, 0, 5, 5), ("c.png", 0, 0, 9, 9)])
    result = region("a.png", "--boxes", boxes, "--format", "jsonl")
    assert [row["file"] for row in jsonl(result.stdout)] == ["a.png"] and "3 boxes of 2 images" in result.stderr
    Path("deep/er").mkdir(parents=True)
    Path("a.png").rename("deep/er/a.png")
    assert [row["file"] for row in lines(region, "deep/er/a.png", "--boxes", boxes)] == ["deep/er/a.png"]
    result = region("*/*/a.png", "c.png", "--boxes", write_csv([("er/a.png", 0, 0, 9, 9)]), "--format", "jsonl")
    assert [row["file"] for row in jsonl(result.stdout)] == ["deep/er/a.png"] and "1 image named here without" in result.stderr
    assert "no boxes of the images" in region("c.png", "--boxes", "boxes.csv", code=1).stderr


def test_names_that_no_file_can_have(region):
    boxes = write_coco({1: "x" * 5000, 2: "n\0l.png", 3: "a.png"}, [(i, i, [0, 0, 9, 9]) for i in (1, 2, 3)])
    errors = [row["error"] for row in lines(region, ".", "--boxes", boxes, code=1)]
    assert "no file can have so long a name" in errors[0] and len(errors[0]) < 300
    assert "no file can have such a name" in errors[1] and errors[2] is None


# bad boxes

BAD = {
    "outside": ("100", "0", "120", "10"),
    "empty": ("5", "5", "5", "9"),
    "swapped": ("9", "0", "2", "10"),
    "no number": ("nan", "0", "2", "10"),
    "endless": ("0", "0", "inf", "10"),
}
GOOD = {"one pixel": ("3", "3", "4", "4"), "less": ("3.2", "3.2", "3.4", "3.4"), "huge": ("5", "5", "1000000", "1000000")}


@pytest.mark.parametrize("by_file", [True, False])
def test_each_bad_box_has_its_line_and_the_others_are_done(region, fake, by_file):
    boxes = [*BAD.values(), *GOOD.values()]
    if by_file:
        args = ["--boxes", write_csv([("a.png", *box) for box in boxes])]
    else:
        args = ["a.png", *(part for box in boxes for part in ("--box", ",".join(box)))]
    result = region(*args, "--format", "jsonl", code=1)
    rows = jsonl(result.stdout)
    assert [row["id"] for row in rows] == list(range(1, 9)) and fake.calls == [3]
    assert all(row["error"] and "\n" not in row["error"] and row["caption"] is None for row in rows[:5])
    assert all(row["error"] is None and row["caption"] for row in rows[5:])
    assert "5 of 8 regions failed:" in result.stderr and all(row["error"] in result.stderr for row in rows[:5])
    assert "NaN" not in result.stdout and "Infinity" not in result.stdout


def test_wrong_rows_and_annotations(region):
    Path("boxes.csv").write_text("file,x1,y1,x2,y2\na.png,0,0,9\na.png,0,0,9,9\n,0,0,9,9\na.png,0,0,9,9,9\n")
    rows = lines(region, "--boxes", "boxes.csv", code=1)
    assert [(row["file"], row["id"], row["error"] is None) for row in rows] == [
        ("a.png", 1, False),
        ("a.png", 2, True),
        ("a.png", 4, False),
        ("", 3, False),
    ]
    boxes = write_coco({1: "a.png"}, [(1, 1, [0, 0, -4, 4]), (2, 9, [0, 0, 4, 4]), (3, 1, "no"), (4, 1, [0, 0, 4, 4])])
    rows = lines(region, "--boxes", boxes, code=1)
    assert [(row["id"], row["box"], row["error"] is None) for row in rows] == [
        (1, None, False),
        (3, None, False),
        (4, [0, 0, 4, 4], True),
        (2, None, False),
    ]


def test_images_that_vanished_or_are_damaged(region, fake):
    rows = [(file, 0, 0, side, side) for side in (5, 9) for file in ("a.png", "b.png", "gone.png", "c.png")]
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:60])
    result = region("--boxes", write_csv(rows), "--format", "jsonl", code=1)
    told = jsonl(result.stdout)
    files = ["a.png"] * 2 + ["b.png"] * 2 + ["gone.png"] * 2 + ["c.png"] * 2
    assert [row["file"] for row in told] == files and [row["id"] for row in told] == [1, 5, 2, 6, 3, 7, 4, 8]
    assert [row["error"] is None for row in told] == [True] * 2 + [False] * 4 + [True] * 2 and fake.calls == [2, 2]
    assert told[2]["box"] == [0, 0, 5, 5]
    assert "4 of 8 regions failed" in result.stderr and result.stderr.count("there is no such file") == 1


def test_grid_of_a_damaged_image_has_one_line(region):
    Path("b.png").write_bytes(b"x")
    rows = lines(region, "b.png", "c.png", "--grid", "1x1", code=1)
    assert [(row["file"], row["id"], row["error"] is None) for row in rows] == [("b.png", None, False), ("c.png", 1, True)]


def test_an_image_that_is_too_much_for_the_model_fails_alone(region):
    Image.new("RGB", (13, 20)).save("b.png")
    rows = lines(region, "a.png", "b.png", "c.png", "--box", "0,0,5,5", "--box", "1,1,5,5", code=1)
    assert [row["error"] for row in rows] == [None] * 2 + ["b.png: RuntimeError: the model choked"] * 2 + [None] * 2


def test_where_no_box_can_be_described_no_model_is_loaded(region, monkeypatch):
    monkeypatch.setattr(evcap, "load", lambda *_: pytest.fail("the model was loaded"))
    lines(region, "a.png", "--box", "50,50,60,60", code=1)


# --output and --resume


@pytest.fixture
def boxes(region) -> Path:
    return write_csv([(file, side, 0, 9, 9) for side in (0, 1, 2) for file in ("a.png", "b.png", "c.png")])


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_resume_wherever_the_lines_end(region, boxes, fake, form):
    """Cut at any place, the rest is done: no line twice, none missing, whole images not again."""
    whole = region("--boxes", boxes, "--format", form, "--quiet").stdout
    ends = [end for end in range(len(whole)) if whole[end - 1 : end] == "\n"] + list(range(70, len(whole), 97))
    for cut in ends:
        Path("out.part").write_text(whole[:cut])
        fake.calls.clear()
        region("--boxes", boxes, "--format", form, "--output", "out", "--resume", "--quiet")
        assert Path("out").read_text() == whole
        complete = sum(whole[:cut].count(f"{file},") + whole[:cut].count(f'"{file}"') == 3 for file in ("a.png", "b.png"))
        assert len(fake.calls) in (3 - complete, 3 - complete + 1)  # the last line of an image may be torn
        os.remove("out")


def test_resume_does_images_with_failed_or_missing_lines_again(region, boxes, fake):
    args = ("--boxes", boxes, "--format", "jsonl", "--output", "out.jsonl")
    Path("b.png").rename("away")
    region(*args, code=1)
    kept = Path("out.jsonl").read_text().splitlines(keepends=True)
    Path("out.jsonl").write_text("".join(kept[:-2] + kept[-1:]))  # the second line of c.png
    Path("away").rename("b.png")
    fake.calls.clear()
    assert "1 of 3 images were finished before" in region(*args, "--resume").stderr
    rows = jsonl(Path("out.jsonl").read_text())
    assert fake.calls == [3, 3] and [(row["file"], row["id"]) for row in rows] == [
        (file, id) for n, file in enumerate(("a.png", "b.png", "c.png"), 1) for id in (n, n + 3, n + 6)
    ]
    assert not any(row["error"] for row in rows)


def test_resume_of_windows_distrusts_the_last_image(region, fake):
    """Nobody knows how many windows an image has before it was looked at."""
    args = ("a.png", "b.png", "--all", "--most", "4", "--format", "jsonl", "--output", "out.jsonl")
    region(*args)
    whole = Path("out.jsonl").read_text()
    for text, again in ((whole[: whole.index("b.png")].rsplit("\n", 1)[0] + "\n", 2), (whole[: whole.rindex("{")], 1)):
        Path("out.jsonl").rename("out.jsonl.part")
        Path("out.jsonl.part").write_text(text)
        fake.calls.clear()
        region(*args, "--resume")
        assert Path("out.jsonl").read_text() == whole and len(fake.calls) == again
    fake.calls.clear()
    region(*args, "--resume")
    assert fake.calls == []


@pytest.mark.parametrize("other", ["task", "words", "boxes", "classes"])
def test_resume_refuses_other_settings(region, boxes, fake, monkeypatch, other):
    args = ["--boxes", boxes, "--format", "jsonl", "--output", "out.jsonl"]
    describe = fake.describe

    def stopped(*given, **options):
        if fake.calls:
            raise KeyboardInterrupt
        return describe(*given, **options)

    monkeypatch.setattr(fake, "describe", stopped)
    assert "which goes on with --resume" in region(*args, code=130).stderr
    monkeypatch.setattr(fake, "describe", describe)
    Path("own.txt").write_text("sky\n")
    more = {"task": ["--task", "caption"], "words": ["--words", "red"], "classes": ["--classes", "own.txt"], "boxes": []}[other]
    before = boxes.read_text()
    if other == "boxes":
        boxes.write_text(before + "a.png,1,2,3,4\n")
    name = "regions" if other == "boxes" else other
    stderr = region(*args, *more, "--resume", code=1).stderr
    assert f"were made with another {name} (" in stderr and Path("out.jsonl.part").exists()
    boxes.write_text(before)
    region(*args, "--resume")
    assert len(jsonl(Path("out.jsonl").read_text())) == 9


# --overlay


def test_overlay_draws_one_image_or_a_folder(region):
    region("a.png", "--box", "0,0,10,10", "--overlay", "drawn.png", "--quiet")
    with Image.open("drawn.png") as drawn:
        assert drawn.format == "PNG" and drawn.info["Software"] == "evcap"
    region("a.png", "--box", "0,0,10,10", "--overlay", "drawn.png")  # an earlier drawing is replaced
    region("a.png", "b.png", "--box", "0,0,10,10", "--box", "30,0,35,5", "--overlay", "new/", code=1)
    assert sorted(os.listdir("new")) == ["a.png.png", "b.png.png"]
    Path("new/c.png.png").write_bytes(Path("c.png").read_bytes())  # somebody's image
    before = Path("new/c.png.png").read_bytes()
    assert "is no earlier result" in region("c.png", "--box", "0,0,10,10", "--overlay", "new", code=1).stderr
    assert Path("new/c.png.png").read_bytes() == before


def test_drawings_of_two_images_of_one_name(region):
    Path("more").mkdir()
    Path("more/a.png").write_bytes(Path("a.png").read_bytes())
    assert "would overwrite" in region("a.png", "more/a.png", "--grid", "1x1", "--overlay", "new/", code=1).stderr
    result = region("a.png", "--grid", "1x1", "--overlay", "more/", "--output", "more/a.png.png", code=1)
    assert "a file of this run too" in result.stderr


# the shipped spine


def test_the_command_says_what_the_describer_says(captioner, tmp_path, examples, monkeypatch):
    """With tensors as they are drawn: what counts is that everything reaches the model and comes back."""
    torch.manual_seed(0)
    model = open_regions(captioner.model, captioner.model.language, None)
    preset = with_regions(tmp_path, model.trained())
    own = RegionDescriber(captioner, model, ["red", "dog"], ["cat", "bus"])
    with Image.open(examples[0]) as image:
        image = image.convert("RGB")
    boxes = [(10, 20, image.width / 2, image.height / 2), (0, 0, image.width, image.height)]
    decoding = replace(captioner.preset.regions.decoding, beams=2, max_length=5)
    expected = own.describe(image, boxes, "caption", ["red"], 2, decoding)
    (tmp_path / "tags.txt").write_text("red\ndog\n")
    (tmp_path / "classes.txt").write_text("cat\nbus\n")
    args = [part for box in boxes for part in ("--box", ",".join(map(str, box)))]
    args += ["--task", "caption", "--words", "red", "--num-captions", 2, "--beams", 2, "--max-length", 5]
    args += ["--tags", tmp_path / "tags.txt", "--classes", tmp_path / "classes.txt", "--preset", preset]
    rows = jsonl(run("region", examples[0], *args, "--format", "jsonl").stdout)
    for row, box, said in zip(rows, boxes, expected, strict=True):
        assert row["box"] == list(box) and row["captions"] == said.captions and row["class"] == said.class_name
        assert [name["name"] for name in row["names"]] == [name.name for name in said.names]
        assert row["tags"] == said.tags and row["views"] == [round(t, 2) for t in said.views] and row["error"] is None


def test_certainty_is_that_of_classes_else_of_tags(captioner, monkeypatch):
    torch.manual_seed(0)
    model = open_regions(captioner.model, captioner.model.language, None)
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    boxes = [(0, 0, 30, 30), (10, 10, 60, 40), (5, 5, 20, 40)]
    describer = RegionDescriber(captioner, model, ["red", "dog"], ["cat", "bus", "sky"])
    looked, tokens = [], describer._tokens
    monkeypatch.setattr(describer, "_tokens", lambda image, crops: looked.extend(crops.tolist()) or tokens(image, crops))
    by_class = describer.certainty(image, boxes, batch_size=2)
    assert sorted(looked) == sorted([*map(list, boxes), [0, 0, 60, 40]])  # the whole image once
    describer.set_classes([])
    by_tag = describer.certainty(image, boxes)
    assert by_class.shape == by_tag.shape == (3,) and ((by_tag > 0) & (by_tag < 1)).all()
    describer.set_classes(["cat", "bus", "sky"])
    for box, of_class, of_tag in zip(boxes, by_class, by_tag, strict=True):
        region = checked_regions([box], *image.size)
        (_, queries), *_ = describer.query_features(image, region, np.array([[0.0, 1.0, 1.0]]))
        with torch.inference_mode():
            tags = model.tag_head(queries, describer.tags.features).sigmoid().max().item()
        assert of_class == pytest.approx(describer.scores(queries, describer.classes.features).max().item(), abs=1e-4)
        assert of_tag == pytest.approx(tags, abs=1e-4)
    describer.set_classes([])
    describer.set_tags([])
    with pytest.raises(EvcapError, match="by classes or tags"):
        describer.certainty(image, boxes)
