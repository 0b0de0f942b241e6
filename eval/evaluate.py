"""Caption a COCO-format set and score it.

    python eval/evaluate.py eval/configs/flickr8k-test.yaml --data DIR

Writes predictions.json (COCO results format), metrics.json and contact_sheet.png into the config's output folder. A run
that was stopped goes on where it was: captions are kept line by line in predictions.jsonl.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import evcap
from evcap.config import assets_folder, load_preset, load_yaml, preset_path
from evcap.console import DataFolder, NoBars, command
from evcap.contact_sheet import Scored, draw_contact_sheet
from evcap.datasets import CaptionedImage, read_coco_captions
from evcap.errors import EvcapError
from evcap.metrics import missing_spice, per_image_cider, score
from evcap.weights import fingerprint


@dataclass(frozen=True)
class Config:
    """What is captioned and how. Paths of sets are relative to --data."""

    captions: str
    images: str
    output: str
    preset: str = "embedded"
    memory: str | None = None  # folder of another memory than the preset's own
    beams: int = 5
    min_length: int = 0
    max_length: int = 32
    batch_size: int = 32
    limit: int | None = None  # the first so many pictures


def marks(config: Config, captioner) -> dict[str, str]:
    """Short hashes of what a caption depends on besides the config: the preset, its trained tensors and the memory."""
    assets = assets_folder(config.preset, load_preset(config.preset))
    files = [preset_path(config.preset), *sorted(assets.glob("*.safetensors"))]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}
    memory = captioner.memory
    keys = {"keys": torch.tensor(memory.keys)} if len(memory) else {}
    return hashes | {"memory": fingerprint(keys, {"names": memory.names})}


def finished(path: Path, settings: dict) -> dict[int, dict]:
    """{picture id: row} of an earlier run with the same settings, which stand in the file's first line."""
    if not path.exists():
        return {}
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


def caption_all(captioner, config: Config, settings: dict, records: list[CaptionedImage], path: Path, quiet: bool) -> dict:
    """{picture id: {image_id, caption, names}} for all records, appended to the file at `path` batch by batch."""
    rows = finished(path, settings)
    todo = [r for r in records if r.id not in rows]
    with path.open("a") as file, tqdm(total=len(records), initial=len(rows), unit="img", disable=quiet) as bar:
        if file.tell() == 0:
            file.write(json.dumps(settings) + "\n")
        for start in range(0, len(todo), config.batch_size):
            batch = todo[start : start + config.batch_size]
            captions = captioner.caption(
                [r.path for r in batch],
                beams=config.beams,
                min_length=config.min_length,
                max_length=config.max_length,
                batch_size=config.batch_size,
            )
            for record, said in zip(batch, captions, strict=True):
                names = [n.name for n in said.names]
                rows[record.id] = {"image_id": record.id, "caption": said.caption, "names": names}
                file.write(json.dumps(rows[record.id]) + "\n")
            file.flush()
            bar.update(len(batch))
    return rows


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, Config)
    if min(config.batch_size, config.limit or 1) < 1:
        raise EvcapError(f"{config_path}: batch_size and limit must be at least 1")
    records = read_coco_captions(data / config.captions, data / config.images)[: config.limit]
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)

    captioner = evcap.load(config.preset, config.memory)
    made_by = marks(config, captioner)
    settings = {key: value for key, value in vars(config).items() if key not in ("output", "limit")} | made_by
    rows = caption_all(captioner, config, settings, records, folder / "predictions.jsonl", quiet)
    predictions = {r.id: rows[r.id]["caption"] for r in records}
    references = {r.id: r.captions for r in records}
    results = [{"image_id": key, "caption": caption} for key, caption in predictions.items()]
    (folder / "predictions.json").write_text(json.dumps(results) + "\n")

    scores = score(predictions, references)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "pycocoevalcap")}
    about = {
        "scores": scores,
        "pictures": len(records),
        "command": shlex.join(["python", *sys.argv]),
        "config": dataclasses.asdict(config),
        "fingerprints": made_by,
        "versions": {"evcap": evcap.__version__, **versions},
    }
    (folder / "metrics.json").write_text(json.dumps(about, indent=1) + "\n")

    each = per_image_cider(predictions, references)
    sheet = [Scored(r.path, predictions[r.id], each[r.id], r.captions[0], rows[r.id]["names"]) for r in records]
    title = f"{config.captions}: CIDEr {scores['CIDEr']:.1f} over {len(records)} pictures"
    draw_contact_sheet(sheet, folder / "contact_sheet.png", title)

    table = Table(*scores, title=f"{config.captions}, {len(records)} pictures, beam {config.beams}")
    table.add_row(*(f"{value:.1f}" for value in scores.values()))
    Console().print(table)
    print(missing_spice() or "", f"wrote {folder}/metrics.json, predictions.json, contact_sheet.png", sep="\n")


if __name__ == "__main__":
    typer.run(command(main))
