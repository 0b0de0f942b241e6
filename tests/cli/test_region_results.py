"""`evcap region`: bad boxes and images, --output and --resume, drawings."""

import os
from pathlib import Path

import pytest
from cli_tools import jsonl
from PIL import Image
from region_tools import lines, write_coco, write_csv

import evcap

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
def test_each_bad_box_has_its_line_and_the_others_are_done(region, describer, by_file):
    boxes = [*BAD.values(), *GOOD.values()]
    if by_file:
        args = ["--boxes", write_csv([("a.png", *box) for box in boxes])]
    else:
        args = ["a.png", *(part for box in boxes for part in ("--box", ",".join(box)))]
    result = region(*args, "--format", "jsonl", code=1)
    rows = jsonl(result.stdout)
    assert [row["id"] for row in rows] == list(range(1, 9)) and describer.calls == [3]
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


def test_images_that_vanished_or_are_damaged(region, describer):
    rows = [(file, 0, 0, side, side) for side in (5, 9) for file in ("a.png", "b.png", "gone.png", "c.png")]
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:60])
    result = region("--boxes", write_csv(rows), "--format", "jsonl", code=1)
    told = jsonl(result.stdout)
    files = ["a.png"] * 2 + ["b.png"] * 2 + ["gone.png"] * 2 + ["c.png"] * 2
    assert [row["file"] for row in told] == files and [row["id"] for row in told] == [1, 5, 2, 6, 3, 7, 4, 8]
    assert [row["error"] is None for row in told] == [True] * 2 + [False] * 4 + [True] * 2 and describer.calls == [2, 2]
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
def test_resume_wherever_the_lines_end(region, boxes, describer, form):
    """Cut at any place, the rest is done: no line twice, none missing, whole images not again."""
    whole = region("--boxes", boxes, "--format", form, "--quiet").stdout
    ends = [end for end in range(len(whole)) if whole[end - 1 : end] == "\n"] + list(range(70, len(whole), 97))
    for cut in ends:
        Path("out.part").write_text(whole[:cut])
        describer.calls.clear()
        region("--boxes", boxes, "--format", form, "--output", "out", "--resume", "--quiet")
        assert Path("out").read_text() == whole
        complete = sum(whole[:cut].count(f"{file},") + whole[:cut].count(f'"{file}"') == 3 for file in ("a.png", "b.png"))
        assert len(describer.calls) in (3 - complete, 3 - complete + 1)  # the last line of an image may be torn
        os.remove("out")


def test_resume_does_images_with_failed_or_missing_lines_again(region, boxes, describer):
    args = ("--boxes", boxes, "--format", "jsonl", "--output", "out.jsonl")
    Path("b.png").rename("away")
    region(*args, code=1)
    kept = Path("out.jsonl").read_text().splitlines(keepends=True)
    Path("out.jsonl").write_text("".join(kept[:-2] + kept[-1:]))  # the second line of c.png
    Path("away").rename("b.png")
    describer.calls.clear()
    assert "1 of 3 images were finished before" in region(*args, "--resume").stderr
    rows = jsonl(Path("out.jsonl").read_text())
    assert describer.calls == [3, 3] and [(row["file"], row["id"]) for row in rows] == [
        (file, id) for n, file in enumerate(("a.png", "b.png", "c.png"), 1) for id in (n, n + 3, n + 6)
    ]
    assert not any(row["error"] for row in rows)


def test_resume_of_windows_distrusts_the_last_image(region, describer):
    """Nobody knows how many windows an image has before it was looked at."""
    args = ("a.png", "b.png", "--all", "--most", "4", "--format", "jsonl", "--output", "out.jsonl")
    region(*args)
    whole = Path("out.jsonl").read_text()
    for text, again in ((whole[: whole.index("b.png")].rsplit("\n", 1)[0] + "\n", 2), (whole[: whole.rindex("{")], 1)):
        Path("out.jsonl").rename("out.jsonl.part")
        Path("out.jsonl.part").write_text(text)
        describer.calls.clear()
        region(*args, "--resume")
        assert Path("out.jsonl").read_text() == whole and len(describer.calls) == again
    describer.calls.clear()
    region(*args, "--resume")
    assert describer.calls == []


@pytest.mark.parametrize("other", ["task", "words", "boxes", "classes"])
def test_resume_refuses_other_settings(region, boxes, describer, monkeypatch, other):
    args = ["--boxes", boxes, "--format", "jsonl", "--output", "out.jsonl"]
    describe = describer.describe

    def stopped(*given, **options):
        if describer.calls:
            raise KeyboardInterrupt
        return describe(*given, **options)

    monkeypatch.setattr(describer, "describe", stopped)
    assert "which goes on with --resume" in region(*args, code=130).stderr
    monkeypatch.setattr(describer, "describe", describe)
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
