"""Caption a COCO-format set and score it.

    python eval/evaluate.py eval/configs/flickr8k-test.yaml --data DIR

Writes predictions.json (COCO results format), metrics.json and contact_sheet.png into the config's output folder. A run
that was stopped goes on where it was: captions are kept line by line in captions.jsonl.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import evcap
from evcap.config import load_preset, load_yaml, preset_path
from evcap.contact_sheet import Scored, draw_contact_sheet
from evcap.datasets import CaptionedImage, read_coco_captions
from evcap.errors import EvcapError
from evcap.metrics import per_image_cider, score, spice_is_available


@dataclass(frozen=True)
class Config:
    """What is captioned and how. Paths of sets are relative to --data."""

    captions: str
    images: str
    output: str
    preset: str = "embedded"
    memory: str | None = None  # folder; null = the preset's own
    beams: int = 5
    min_length: int = 0
    max_length: int = 32
    batch_size: int = 32
    limit: int = 0  # the first so many pictures; 0 = all


def finished_captions(path: Path, settings: dict) -> dict[int, dict]:
    """Lines of an earlier run with the same settings; a torn last line is dropped."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    if not lines or json.loads(lines[0]) != settings:
        raise EvcapError(f"{path} comes from other settings; delete it or choose another output folder")
    rows = []
    for line in lines[1:]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    path.write_text("".join(json.dumps(row) + "\n" for row in [settings, *rows]))
    return {row["image_id"]: row for row in rows}


def trained_sha256(preset: str) -> str:
    """Which tensors made these captions."""
    path = preset_path(preset).parent / load_preset(preset).assets / "trained.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def caption_all(config: Config, records: list[CaptionedImage], folder: Path, quiet: bool) -> dict[int, dict]:
    """{picture id: {image_id, caption, names}} for all records; appended to captions.jsonl batch by batch."""
    captioner = evcap.load(config.preset, config.memory)
    settings = {**dataclasses.asdict(config), "trained": trained_sha256(config.preset)}
    path = folder / "captions.jsonl"
    done = finished_captions(path, settings)
    todo = [r for r in records if r.id not in done]
    with path.open("a") as file, tqdm(total=len(todo), unit="img", disable=quiet) as bar:
        if not done:
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
                row = {"image_id": record.id, "caption": said.caption, "names": [n.name for n in said.names]}
                done[record.id] = row
                file.write(json.dumps(row) + "\n")
            file.flush()
            bar.update(len(batch))
    return done


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets, see data/README.md.")],
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    config = load_yaml(config_path, Config)
    records = read_coco_captions(data / config.captions, data / config.images)
    records = records[: config.limit or len(records)]
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = caption_all(config, records, folder, quiet)

    predictions = {r.id: rows[r.id]["caption"] for r in records}
    references = {r.id: r.captions for r in records}
    scores = score(predictions, references)
    results = [{"image_id": key, "caption": caption} for key, caption in predictions.items()]
    (folder / "predictions.json").write_text(json.dumps(results))
    about = {"config": dataclasses.asdict(config), "pictures": len(records), "trained": trained_sha256(config.preset)}
    (folder / "metrics.json").write_text(json.dumps({"scores": scores, **about}, indent=1) + "\n")
    each = per_image_cider(predictions, references)
    sheet = [Scored(r.path, rows[r.id]["caption"], each[r.id], r.captions[0], rows[r.id]["names"]) for r in records]
    draw_contact_sheet(sheet, folder / "contact_sheet.png", f"{config.captions}: CIDEr {scores['CIDEr']:.1f}")

    table = Table(title=f"{config.captions}, {len(records)} pictures, beam {config.beams}")
    for name in scores:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.1f}" for value in scores.values()))
    Console().print(table)
    if not spice_is_available():
        print("SPICE left out: its CoreNLP models are not installed beside pycocoevalcap", file=sys.stderr)
    print(f"wrote {folder}/metrics.json, predictions.json, contact_sheet.png")


if __name__ == "__main__":
    try:
        typer.run(main)
    except EvcapError as error:
        raise SystemExit(f"error: {error}") from None
