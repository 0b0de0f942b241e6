"""A sheet to judge by eye: which images are drawn, what is written, what the tally takes."""

import csv
import json

import pytest
from cli_tools import run_recipe
from PIL import Image

from eval import judge_sheet
from evcap.evaluation.predictions import open_shard


@pytest.fixture
def run(tmp_path):
    """Five images in sets, captioned by two processes; as eval/evaluate.py leaves them."""
    images = tmp_path / "data" / "set" / "images"
    images.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (60, 40), (40 * number, 90, 90)).save(images / f"{number}.png")
    listed = [{"id": n, "file_name": f"{n}.png"} for n in range(5)]
    texts = [{"image_id": n, "caption": f"people see {n}"} for n in range(5)]
    (images.parent / "captions.json").write_text(json.dumps({"images": listed, "annotations": texts}))
    folder = tmp_path / "run"
    folder.mkdir()
    for process, numbers in enumerate([(0, 2, 4), (1, 3)]):
        with open_shard(folder, process, {"beams": 5}) as file:
            for n in numbers:
                file.write(json.dumps({"image_id": n, "caption": f'a "picture", {n}', "names": ["square"]}) + "\n")
    config = {"captions": "set/captions.json", "images": "set/images"}
    (folder / "metrics.json").write_text(json.dumps({"config": config}))
    return folder


def sheet(run, *arguments, code=0):
    return run_recipe(judge_sheet.main, run, "--data", run.parent / "data", *arguments, code=code)


def test_sheet_and_tally(run):
    sheet(run, "--count", 3, "--seed", 7)
    rows = list(csv.DictReader((run / "judge.csv").open(newline="")))
    drawn = [int(row["image_id"]) for row in rows]
    assert drawn == judge_sheet.drawn([4, 3, 2, 1, 0], 3, 7) and len(set(drawn)) == 3
    assert [row["caption"] for row in rows] == [f'a "picture", {n}' for n in drawn]
    assert [row["number"] for row in rows] == ["1", "2", "3"] and {row["verdict"] for row in rows} == {""}
    with Image.open(run / "judge.png") as picture:
        colours = picture.convert("RGB").getcolors(2**24)
    assert {(40 * n, 90, 90) for n in drawn} <= {colour for _, colour in colours}

    assert "line 2: the verdict is ''" in sheet(run, "--tally", code=1).output
    text = (run / "judge.csv").read_text().splitlines()
    (run / "judge.csv").write_text("\n".join([text[0], text[1] + "right", text[2] + " Wrong ", text[3] + "wrong"]))
    assert sheet(run, "--tally").output == "3 captions: right 1 (33 %), partly 0 (0 %), wrong 2 (67 %)\n"
    assert "may hold verdicts" in sheet(run, code=1).output  # nothing that somebody filled in is lost


def test_other_seeds_draw_others():
    ids = list(range(100))
    assert judge_sheet.drawn(ids, 60, 0) == judge_sheet.drawn(ids[::-1], 60, 0) != judge_sheet.drawn(ids, 60, 1)
    assert sorted(judge_sheet.drawn(ids, 200, 0)) == ids


def test_a_folder_without_a_run(run):
    (run / "metrics.json").unlink()
    assert "no finished run" in sheet(run, code=1).output
