"""eval/mme_realworld.py on a small file of every kind of item, with the scores counted by hand."""

import json

import pytest
from cli_tools import run_recipe
from test_mme import ROW, written

from eval import mme_realworld

# id, task, category, truth, reply; and which rule reads the right letter
ITEMS = [
    ("1", "Perception", "color", "C", "C"),  # both
    ("2", "Perception", "color", "C", "Based on the roof: C"),  # ours
    ("3", "Perception", "color", ["A", "C"], "(A)"),  # both
    ("4", "Perception", "count", "E", "E"),  # both
    ("5", "Perception", "count", "B", "(E)"),  # none
    ("6", "Reasoning", "count", "B", "Best answer: D"),  # the reference, by accident
    ("7", "Reasoning", "count", "A", ""),  # the reference, by accident
    ("8", "Reasoning", "count", "A", None),  # no prediction
]
TARGETS = {"1": [0, 0, 10, 10], "2": [0, 0, 50, 50], "3": [100, 100, 300, 300], "4": [0, 0, 500, 500]}
BOXES = {
    "1": [[0, 0, 20, 20]],  # found at once
    "2": [[500, 500, 520, 520], [0, 0, 600, 600], [20, 20, 40, 40]],  # the second is too large, the third finds it
    "3": [[0, 0, 1000, 1000]],  # too large
    "4": [],
}


@pytest.fixture
def files(tmp_path):
    rows = [
        {**ROW, "Question_id": key, "Task": task, "Category": category, "Ground truth": truth, "img_size": [1000, 1000]}
        | {"gt_toi": TARGETS.get(key)}
        for key, task, category, truth, _ in ITEMS
    ]
    replies = [{"Question_id": key, "output": reply, "boxes": BOXES.get(key)} for key, *_, reply in ITEMS if reply is not None]
    return written(tmp_path / "predictions.jsonl", replies, lines=True), written(tmp_path / "questions.json", rows)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return lambda files, *options, code=0: run_recipe(mme_realworld.main, files[0], "--data", files[1], *options, code=code)


def test_scores_of_both_rules(run, tmp_path, files):
    printed = run(files).stdout
    metrics = json.loads((tmp_path / "runs" / "eval" / "mme-realworld-rs" / "metrics.json").read_text())
    accuracies = {name: row["accuracy"] for name, row in metrics["scores"].items()}
    assert accuracies == {
        "Perception": 80.0,
        "Perception / Remote Sensing": 80.0,
        "Perception / Remote Sensing / color": 100.0,
        "Perception / Remote Sensing / count": 50.0,
        "Reasoning": 0.0,
        "Reasoning / Remote Sensing": 0.0,
        "Reasoning / Remote Sensing / count": 0.0,
        "overall": 50.0,
    }
    overall = metrics["scores"]["overall"]
    assert (overall["questions"], overall["correct"], overall["said E"], overall["true E"]) == (8, 4, 2, 1)
    assert "In 1 of 7 replies no letter was read." in printed and "1 of 8 questions have no prediction" in printed
    page = (tmp_path / "runs" / "eval" / "mme-realworld-rs" / "results.md").read_text()
    assert "| overall | 8 | 4 | 50.0 | 2 | 1 |" in page and "overall" in printed

    run(files, "--parity", "--output", "parity")
    metrics = json.loads((tmp_path / "parity" / "metrics.json").read_text())
    assert metrics["parity"] and metrics["scores"]["overall"]["correct"] == 5  # 2 is lost, 6 and 7 are won
    assert metrics["scores"]["Reasoning"]["correct"] == 2


def test_retrieval_by_thirds_of_the_area(run, tmp_path, files):
    run(files, "--output", ".")
    rows = json.loads((tmp_path / "metrics.json").read_text())["retrieval"]
    assert {name: row["targets"] for name, row in rows.items()} == {
        "smallest third": 2,
        "middle third": 1,
        "largest third": 1,
        "all": 4,
    }
    small = rows["smallest third"]
    assert (small["area from"], small["area to"], small["recall@1"], small["recall@5"]) == (100, 2500, 50.0, 100.0)
    assert rows["middle third"]["recall@10"] == rows["largest third"]["recall@10"] == 0.0
    assert (rows["all"]["recall@1"], rows["all"]["recall@10"], rows["all"]["with boxes"]) == (25.0, 50.0, 3)


def test_file_without_targets_has_no_retrieval(run, tmp_path, files):
    rows = [{key: value for key, value in ROW.items() if key not in ("gt_toi", "img_size")}]
    written(files[1], rows)
    written(files[0], [{"Question_id": "q1", "output": "C"}], lines=True)
    run(files, "--output", ".")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["retrieval"] == {} and metrics["scores"]["overall"]["accuracy"] == 100.0
    assert "targets" not in (tmp_path / "results.md").read_text()


def test_predictions_for_another_file_are_refused(run, tmp_path, files):
    written(files[1], [ROW])
    error = run(files, code=1).stderr
    assert error.count("\n") == 1 and "there is no question '1'" in error
    assert not (tmp_path / "runs").exists()
