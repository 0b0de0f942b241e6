"""Draw some images of a scored run by lot, to be judged by eye: are the captions right?

    python eval/judge_sheet.py runs/eval/coco-plus-test --data DIR [--count 60] [--seed 0]
    python eval/judge_sheet.py runs/eval/coco-plus-test --data DIR --tally

The first writes judge.png into the folder of a run that eval/evaluate.py has finished: numbered images, each with its caption,
its names and one reference; and judge.csv, where somebody fills in the column `verdict`: right, partly or wrong. The second
counts the verdicts. A caption is right if all that it says can be seen, partly if its main thing or its scene is, else wrong.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.cli.options import DataFolder
from evcap.datasets.coco import read_coco_captions
from evcap.errors import EvcapError
from evcap.evaluation.predictions import whole_lines
from evcap.files import replacing
from evcap.plots.contact_sheet import Scored, draw_numbered_sheet
from evcap.text_files import read_json, read_table

VERDICTS = ("right", "partly", "wrong")


def drawn(ids: list[int], count: int, seed: int) -> list[int]:
    """`count` of the images, in the order in which they are drawn."""
    return random.Random(seed).sample(sorted(ids), min(count, len(ids)))


def tally(path: Path) -> Counter:
    """How often each verdict was given. Raises EvcapError for a row without one."""
    found = Counter()
    for line, row in read_table(path, {"number", "verdict"}, "number,image_id,caption,verdict"):
        verdict = (row["verdict"] or "").strip().lower()
        if verdict not in VERDICTS:
            raise EvcapError(f"{path}, line {line}: the verdict is '{verdict}'; fill in {', '.join(VERDICTS)}")
        found[verdict] += 1
    return found


def main(
    folder: Annotated[Path, typer.Argument(help="Output of eval/evaluate.py.")],
    data: DataFolder,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the lot.")] = 0,
    counted: Annotated[bool, typer.Option("--tally", help="Count the verdicts of judge.csv.")] = False,
) -> None:
    """A sheet of captions to judge by eye, and the tally."""
    table = folder / "judge.csv"
    if counted:
        found = tally(table)
        total = found.total()
        print(f"{total} captions: " + ", ".join(f"{v} {found[v]} ({100 * found[v] / total:.0f} %)" for v in VERDICTS))
        return
    if not (folder / "metrics.json").exists():
        raise EvcapError(f"{folder} holds no finished run of eval/evaluate.py")
    if table.exists():
        raise EvcapError(f"{table} is there and may hold verdicts; move it away first")
    config = read_json(folder / "metrics.json")["config"]
    rows = {r["image_id"]: r for p in sorted(folder.glob("predictions*.jsonl")) for r in whole_lines(p) if "image_id" in r}
    records = {r.id: r for r in read_coco_captions(data / config["captions"], data / config["images"]) if r.id in rows}
    chosen = drawn(list(records), count, seed)
    sheet = [Scored(records[i].path, rows[i]["caption"], 0.0, records[i].captions[0], rows[i]["names"]) for i in chosen]
    draw_numbered_sheet(
        sheet, folder / "judge.png", f"{config['captions']}: {len(sheet)} of {len(records)} images, seed {seed}"
    )
    lines = [(number, i, rows[i]["caption"], "") for number, i in enumerate(chosen, 1)]
    with replacing(table) as file, open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("number", "image_id", "caption", "verdict"), *lines])
    print(f"wrote {folder}/judge.png and judge.csv; fill in {', '.join(VERDICTS)} and run this again with --tally")


if __name__ == "__main__":
    typer.run(command(main))
