"""Captions and answers of a scored run on disk: JSON lines, from which a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from evcap.config import assets_folder, load_preset, preset_files
from evcap.errors import EvcapError

if TYPE_CHECKING:
    from evcap.captioner import Captioner


def marks(preset: str, captioner: Captioner) -> dict[str, str]:
    """Short hashes of what a reply depends on besides its settings: the preset, its tensors, the encoder and the memory."""
    assets = assets_folder(preset, load_preset(preset))
    files = [*preset_files(preset), *sorted(assets.glob("*.safetensors"))]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}
    return hashes | {"encoder": captioner.encoder_fingerprint, "memory": captioner.memory.fingerprint()}


def finished(folder: Path, settings: dict) -> dict[int, dict]:
    """{image id: row} of what processes have written into `folder`, a file each, of an earlier run too if its settings were
    the same.

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


def whole_lines(path: Path) -> list[dict]:
    """The objects that are the lines of a file. A last line that was torn by a kill is cut off, so nobody may be writing
    meanwhile. Raises EvcapError for a damaged file."""
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:  # the line that was being written when the run was killed
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError
    except ValueError:
        raise EvcapError(f"{path} is damaged, cannot resume from it: delete it or choose another output") from None
    return lines


def _rows(path: Path, settings: dict) -> dict[int, dict]:
    lines = whole_lines(path)
    if lines and lines[0] != settings:
        different = [key for key in settings if lines[0].get(key) != settings[key]]
        raise EvcapError(f"{path} was made with other settings ({', '.join(different)}): delete it or choose another output")
    return {row["image_id"]: row for row in lines[1:]}
