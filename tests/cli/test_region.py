"""`evcap region`: ways to name regions, formats, where the images of a file of boxes are."""

import csv
import io
from pathlib import Path

import pytest
from cli_tools import jsonl, run
from PIL import Image
from region_tools import lines, write_coco, write_csv

import evcap
from evcap.cli.region import Task
from evcap.regions.views import TASK_RATIOS

KEYS = ["file", "id", "box", "caption", "captions", "names", "tags", "class", "views", "error"]


# ways to name regions


@pytest.mark.parametrize(
    "ways",
    [(), ("--all", "--grid", "2x2"), ("--box", "1,2,3,4", "--all"), ("--box", "1,2,3,4", "--boxes", "boxes.csv")],
)
def test_exactly_one_way(region, describer, ways):
    stderr = region("a.png", *ways, code=1).stderr
    assert "one of --box, --boxes, --grid and --all" in stderr and stderr.count("\n") == 1 and not describer.calls


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


def test_presets_without_regions_or_their_tensors(region, tmp_path, region_preset, monkeypatch):
    (tmp_path / "none.yaml").write_text("base: embedded\nregions: null\n")
    assert "says nothing of regions" in run("region", "a.png", "--grid", "1x1", "--preset", "none.yaml", code=1).stderr
    assets = tmp_path / "assets"
    assets.mkdir()
    for path in (region_preset.parent / "assets").iterdir():
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


def test_boxes_are_in_pixels_as_stored(region):
    """A phone stores a portrait as a landscape and says how to turn it: annotations are made of what is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("a.png") as landscape:
        landscape.save("turned.png", exif=exif)
    rows = lines(region, "turned.png", "--box", "0,0,20,30", "--box", "20,0,40,30")
    assert [row["caption"] for row in rows] == ["colour 250 0 0", "colour 0 250 0"]
    assert [row["box"] for row in rows] == [[0, 0, 20, 30], [20, 0, 40, 30]]
    cells = lines(region, "turned.png", "--grid", "2x1")
    assert [(row["box"], row["caption"]) for row in cells[1:]] == [
        ([0, 0, 20, 30], "colour 250 0 0"),
        ([20, 0, 40, 30], "colour 0 250 0"),
    ]


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


def test_own_words_tags_classes_and_tasks_arrive(region, describer):
    Path("tags.txt").write_text("green\nred/crimson\n\ngreen\n")
    Path("classes.txt").write_text("sky\nsea\n")
    args = ("--words", "red, shirt,", "--tags", "tags.txt", "--classes", "classes.txt", "--task", "caption", "--batch-size", 5)
    row = lines(region, "b.png", "--grid", "1x1", *args, "--beams", 2, "--num-captions", 3, "--max-length", 9)[0]
    assert row["tags"] == ["green", "red"] and row["class"] == "sky"
    assert (
        describer.options["words"] == ["red", "shirt"]
        and describer.options["task"] == "caption"
        and describer.options["batch_size"] == 5
    )
    assert (describer.options["decoding"].beams, describer.options["decoding"].max_length) == (3, 9)
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
    assert [row["file"] for row in jsonl(result.stdout)] == [
        "a.png"
    ] and "left out: 3 boxes of 2 images beside" in result.stderr
    Path("deep/er").mkdir(parents=True)
    Path("a.png").rename("deep/er/a.png")
    assert [row["file"] for row in lines(region, "deep/er/a.png", "--boxes", boxes)] == ["deep/er/a.png"]
    result = region("*/*/a.png", "c.png", "--boxes", write_csv([("er/a.png", 0, 0, 9, 9)]), "--format", "jsonl")
    assert [row["file"] for row in jsonl(result.stdout)] == [
        "deep/er/a.png"
    ] and "left out: 1 image without a box" in result.stderr
    assert "no boxes of the images" in region("c.png", "--boxes", "boxes.csv", code=1).stderr


def test_names_that_no_file_can_have(region):
    boxes = write_coco({1: "x" * 5000, 2: "n\0l.png", 3: "a.png"}, [(i, i, [0, 0, 9, 9]) for i in (1, 2, 3)])
    errors = [row["error"] for row in lines(region, ".", "--boxes", boxes, code=1)]
    assert "no file can have so long a name" in errors[0] and len(errors[0]) < 300
    assert "no file can have such a name" in errors[1] and errors[2] is None
