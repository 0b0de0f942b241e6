"""Score answers to MME-RealWorld-RS: accuracy of the letters, and whether the boxes looked at hold what was asked about.

    python eval/mme_realworld.py predictions.jsonl --data MME_RealWorld_RS.json
    python eval/mme_realworld.py predictions.jsonl --data MME_RealWorld_RS.json --parity   # letters by the reference's rule

eval/mme_predictions.py writes evcap's own predictions. A line of them is {"Question_id": ..., "output": the reply, "boxes":
[[x1, y1, x2, y2], ...]}: boxes in pixels of the image, best first, or none; other fields are passed over. A question without
a line counts as wrong. Writes metrics.json and results.md into the folder of --output and prints the same table.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import evcap
from evcap.cli.console import command
from evcap.evaluation.mme_realworld import Prediction, Question, read_predictions, read_questions, read_reply
from evcap.evaluation.places import recall_at
from evcap.files import write_text

RANKS = (1, 5, 10)
LARGEST = 0.25  # of the image; a larger box is not counted as found
THIRDS = ("smallest third", "middle third", "largest third")
RULES = {
    False: "Letters are read by evcap's rule (`evcap/evaluation/mme_realworld.py`).",
    True: 'Letters are read by the reference\'s rule and faults, with introductions ("The answer is") of our own wording.',
}


def score(questions: list[Question], letters: dict[str, str]) -> dict[str, dict[str, float]]:
    """Scores of each task, subtask and category, "task / subtask / category", and "overall", last.

    letters: question id -> letter, "" where none was read; a question that is not in it counts as wrong. Each row holds
    questions, correct, accuracy in percent, and how often E ("not in the image") was the answer and was right.
    """
    rows: dict[str, dict[str, float]] = {}
    for question in questions:
        path = (question.task, question.subtask, question.category)
        letter = letters.get(question.id, "")
        for name in [" / ".join(path[:depth]) for depth in (1, 2, 3)] + ["overall"]:
            row = rows.setdefault(name, {"questions": 0, "correct": 0, "accuracy": 0.0, "said E": 0, "true E": 0})
            row["questions"] += 1
            row["correct"] += letter in question.truths
            row["said E"] += letter == "E"
            row["true E"] += "E" in question.truths
            row["accuracy"] = 100 * row["correct"] / row["questions"]
    return {name: rows[name] for name in [*sorted(rows.keys() - {"overall"}), "overall"]}


def retrieval(questions: list[Question], predictions: dict[str, Prediction]) -> dict[str, dict[str, float]]:
    """Recall of the targets, in percent, by thirds of their area and over all; {} if the file tells no targets.

    Each row holds targets, the range of their areas in pixels, the questions with boxes, and recall@1, @5 and @10.
    """
    told = [q for q in questions if q.target and q.size]
    told.sort(key=_area)
    parts = dict(zip(THIRDS, (list(part) for part in np.array_split(np.array(told, object), 3)), strict=True)) if told else {}
    return {name: _recall_row(part, predictions) for name, part in [*parts.items(), ("all", told)] if part}


def _recall_row(questions: list[Question], predictions: dict[str, Prediction]) -> dict[str, float]:
    areas = [_area(question) for question in questions]
    looked = [predictions[q.id].boxes if q.id in predictions else () for q in questions]
    row = {"targets": len(questions), "area from": min(areas), "area to": max(areas), "with boxes": sum(map(bool, looked))}
    for k in RANKS:
        limits = [LARGEST * q.size[0] * q.size[1] for q in questions]
        found = [recall_at(k, boxes, q.target, most) for boxes, q, most in zip(looked, questions, limits, strict=True)]
        row[f"recall@{k}"] = 100 * float(np.mean(found))
    return row


def _area(question: Question) -> float:
    x1, y1, x2, y2 = question.target
    return abs((x2 - x1) * (y2 - y1))


def cells(row: dict[str, float]) -> list[str]:
    return [f"{value:.1f}" if isinstance(value, float) and key[:4] != "area" else f"{value:,.0f}" for key, value in row.items()]


def markdown(head: str, rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| {head} | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells(row))} |" for name, row in rows.items())])


def show(head: str, rows: dict[str, dict[str, float]]) -> None:
    """The same on the terminal."""
    table = Table(head)
    for column in next(iter(rows.values())):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *cells(row))
    Console().print(table)


def remarks(questions: list[Question], letters: dict[str, str], parity: bool) -> Iterable[str]:
    """What a reader of the scores must know."""
    yield RULES[parity]
    if unread := sum(not letter for letter in letters.values()):
        yield f"In {unread:,} of {len(letters):,} replies no letter was read."
    if missing := len(questions) - len(letters):
        yield f"{missing:,} of {len(questions):,} questions have no prediction and count as wrong."


def main(
    predictions_path: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="JSON lines, see above.")],
    data: Annotated[Path, typer.Option(help="The questions: a JSON list or JSON lines.")],
    output: Annotated[Path, typer.Option(help="Folder for metrics.json and results.md.")] = Path("runs/eval/mme-realworld-rs"),
    parity: Annotated[bool, typer.Option("--parity", help="Read letters by the reference's rule, faults included.")] = False,
) -> None:
    questions = read_questions(data)
    predictions = read_predictions(predictions_path, questions)
    asked = [question for question in questions if question.id in predictions]
    letters = {q.id: read_reply(predictions[q.id].output, q.choices, parity) for q in asked}
    scores, recall = score(questions, letters), retrieval(questions, predictions)
    notes = list(remarks(questions, letters, parity))
    about = {
        "scores": scores,
        "retrieval": recall,
        "notes": notes,
        "parity": parity,
        "command": shlex.join(["python", *sys.argv]),
        "version": evcap.__version__,
    }
    tables = [markdown("answers", scores)] + ([markdown("targets", recall)] if recall else [])
    title = f"# MME-RealWorld-RS, {len(questions):,} questions"
    rule = (
        f"Accuracy and recall in percent. A box finds a target if it holds its centre and at most {LARGEST:.0%} of the image."
    )
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "metrics.json", json.dumps(about, indent=1) + "\n")
    write_text(output / "results.md", "\n\n".join([title, rule, *notes, *tables]) + "\n")
    show("answers", scores)
    if recall:
        show("targets", recall)
    print(*notes, f"wrote {output}/metrics.json, results.md", sep="\n")


if __name__ == "__main__":
    typer.run(command(main))
