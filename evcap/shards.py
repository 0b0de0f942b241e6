"""Captions of a scored run on disk: JSON lines, a file for each process, from which a run that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from evcap.errors import EvcapError


def finished(folder: Path, settings: dict) -> dict[int, dict]:
    """{picture id: row} of what processes have written into `folder`, of an earlier run too if its settings were the same.

    A last line that was torn by a kill is cut off, so nobody may be writing meanwhile. Raises EvcapError for files of other
    settings or with damaged lines.
    """
    rows = {}
    for path in sorted(folder.glob("predictions*.jsonl")):
        rows.update(_rows(path, settings))
    return rows


def open_shard(folder: Path, process: int, settings: dict) -> TextIO:
    """The file that one process appends its rows to, `settings` in its first line."""
    file = (folder / ("predictions.jsonl" if process == 0 else f"predictions-{process}.jsonl")).open("a")
    if file.tell() == 0:
        file.write(json.dumps(settings) + "\n")
    return file


def _rows(path: Path, settings: dict) -> dict[int, dict]:
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:  # the line that was being written when the run was killed
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise EvcapError(f"{path} is damaged, cannot resume from it: delete it or choose another output") from None
    if lines and lines[0] != settings:
        different = [key for key in settings if lines[0].get(key) != settings[key]]
        raise EvcapError(f"{path} was made with other settings ({', '.join(different)}): delete it or choose another output")
    return {row["image_id"]: row for row in lines[1:]}
