"""Caption a COCO-format set and score it.

    python eval/evaluate.py eval/configs/flickr8k-test.yaml --data DIR
    torchrun --nproc_per_node 4 eval/evaluate.py eval/configs/nocaps-val.yaml --data DIR

Writes predictions.json (COCO results format, which EvalAI takes too), metrics.json, results.md and contact_sheet.png into
the config's output folder. Several processes share the images batch by batch; their captions and scores are those of
one. A run that was stopped goes on where it was: captions are kept line by line in predictions*.jsonl.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import evcap
from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import tqdm
from evcap.config import load_preset
from evcap.datasets.benchmarks import PAPER
from evcap.datasets.coco import CaptionedImage, read_caption_texts, read_coco_captions
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import missing_spice, per_image_cider, score, score_domains, spice_models
from evcap.evaluation.predictions import finished, marks, open_shard
from evcap.evaluation.report import results_markdown
from evcap.files import write_text
from evcap.memory.names import naming_statistics
from evcap.plots.contact_sheet import Scored, draw_contact_sheet
from evcap.runtime import processes, use_all_cores
from evcap.yaml_files import load_yaml


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
    cut_at: str | None = None  # captions end before this text
    limit: int | None = None  # the first so many images
    scored: bool = True  # false: the set has no references, predictions.json is all
    benchmark: str | None = None  # whose published scores stand beside ours, see evcap/datasets/benchmarks.py
    seen: str | None = None  # captions that the model was trained on; F1 is also taken over the names they do not say


AFTERWARDS = ("output", "limit", "scored", "benchmark", "seen")  # what no caption depends on


def caption_all(captioner, config: Config, batches: list[list[CaptionedImage]], file, quiet: bool) -> None:
    """Append {image_id, caption, names} of each image to the open `file`, batch by batch."""
    with tqdm(total=sum(map(len, batches)), unit="img", disable=quiet) as bar:
        for batch in batches:
            captions = captioner.caption(
                [r.path for r in batch],
                beams=config.beams,
                min_length=config.min_length,
                max_length=config.max_length,
                batch_size=config.batch_size,
            )
            for record, said in zip(batch, captions, strict=True):
                text = said.caption.split(config.cut_at)[0].strip() if config.cut_at else said.caption
                row = {"image_id": record.id, "caption": text, "names": [n.name for n in said.names]}
                file.write(json.dumps(row) + "\n")
            file.flush()
            bar.update(len(batch))


def score_all(records: list[CaptionedImage], predictions: dict[int, str], models: Path) -> dict[str, dict[str, float]]:
    """{"overall": scores}, before it those of each domain where the images have one. models: see `score`."""
    references = {r.id: r.captions for r in records}
    domains = {r.id: r.domain for r in records if r.domain}
    parts = score_domains(predictions, references, domains, models) if len(domains) == len(records) else {}
    return parts | {"overall": score(predictions, references, models)}


def draw_sheet(config: Config, records: list[CaptionedImage], rows: list[dict], cider: float, path: Path) -> None:
    """The best, median and worst images."""
    each = per_image_cider({row["image_id"]: row["caption"] for row in rows}, {r.id: r.captions for r in records})
    pairs = zip(records, rows, strict=True)
    sheet = [Scored(r.path, row["caption"], each[r.id], r.captions[0], row["names"]) for r, row in pairs]
    draw_contact_sheet(sheet, path, f"{config.captions}: CIDEr {cider:.1f} over {len(records)} images")


def show(config: Config, scores: dict[str, dict[str, float]], pictures: int) -> None:
    """The scores as a table on the terminal."""
    table = Table("", *scores["overall"], title=f"{config.captions}, {pictures} images, beam {config.beams}")
    for part, row in scores.items():
        table.add_row(part, *(f"{value:.1f}" for value in row.values()))
    Console().print(table)


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    preset: Annotated[str | None, typer.Option(help="Another preset than the config's: a name or a YAML file.")] = None,
    spice: Annotated[Path | None, typer.Option(help="Folder with the Stanford CoreNLP 3.6.0 jars that SPICE needs.")] = None,
    quiet: NoBars = False,
) -> None:
    """Caption a set and score it."""
    config = load_yaml(config_path, Config)
    folder = Path(config.output)
    if preset:  # beside the results of the config's own
        folder = folder / load_preset(preset).name
        config = dataclasses.replace(config, preset=preset)
    if min(config.batch_size, config.limit or 1) < 1:
        raise EvcapError(f"{config_path}: batch_size and limit must be at least 1")
    if config.benchmark and config.benchmark not in PAPER:
        raise EvcapError(f"{config_path}: there is no benchmark '{config.benchmark}', but {', '.join(PAPER)}")
    if spice and (absent := missing_spice(spice)):
        raise EvcapError(absent)
    records = read_coco_captions(data / config.captions, data / config.images, config.scored)[: config.limit]
    training_captions = read_caption_texts(data / config.seen) if config.seen else None
    folder.mkdir(parents=True, exist_ok=True)

    state = processes()
    use_all_cores(state.device, state.num_processes)
    captioner = evcap.load(config.preset, config.memory, str(state.device))
    made_by = marks(config.preset, captioner)
    settings = {key: value for key, value in vars(config).items() if key not in AFTERWARDS} | made_by
    with state.main_process_first():  # it mends a torn line
        done = finished(folder, settings)
    state.wait_for_everyone()  # nobody writes before all have read
    batches = [records[start : start + config.batch_size] for start in range(0, len(records), config.batch_size)]
    todo = [left for batch in batches if (left := [r for r in batch if r.id not in done])]
    with state.split_between_processes(todo) as share, open_shard(folder, state.process_index, settings) as file:
        caption_all(captioner, config, share, file, quiet or not state.is_main_process)
    state.wait_for_everyone()
    state.destroy_process_group()
    if not state.is_main_process:
        return

    done = finished(folder, settings)
    rows = [done[r.id] for r in records]
    predictions = {row["image_id"]: row["caption"] for row in rows}
    results = [{"image_id": key, "caption": caption} for key, caption in predictions.items()]
    write_text(folder / "predictions.json", json.dumps(results) + "\n")
    if not config.scored:
        print(f"wrote {folder}/predictions.json, in the format that EvalAI takes; nothing is scored: the set has no references")
        return

    models = spice or spice_models()
    scores = score_all(records, predictions, models)
    retrieved, references = [row["names"] for row in rows], [r.captions for r in records]
    naming = naming_statistics(captioner.memory.counts(), list(predictions.values()), retrieved, references, training_captions)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "pycocoevalcap")}
    about = {
        "scores": scores["overall"],
        "domains": {part: row for part, row in scores.items() if part != "overall"},
        "naming": naming,
        "images": len(records),
        "command": shlex.join(["python", *sys.argv]),
        "config": dataclasses.asdict(config),
        "fingerprints": made_by,
        "versions": {"evcap": evcap.__version__, **versions},
    }
    write_text(folder / "metrics.json", json.dumps(about, indent=1) + "\n")
    setting = f"Preset `{config.preset}`, beam {config.beams}, {len(records):,} images; scores by pycocoevalcap, in percent."
    notes = ["SPICE is left out: its models were not given."] if "SPICE" not in scores["overall"] else []
    notes += [f"Only the first {len(records):,} images of the set: do not compare."] if config.limit else []
    page = results_markdown(config.captions, setting, scores, naming, config.benchmark, notes)
    write_text(folder / "results.md", page)
    draw_sheet(config, records, rows, scores["overall"]["CIDEr"], folder / "contact_sheet.png")
    show(config, scores, len(records))
    if absent := missing_spice(models):
        print(absent)
    print(f"wrote {folder}/metrics.json, results.md, predictions.json, contact_sheet.png")


if __name__ == "__main__":
    typer.run(command(main))
