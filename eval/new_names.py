"""New-name test: can names that no caption and no memory entry ever held be taught by entries alone?

The captioner of CONFIG was trained without images whose captions say the names. Its memory first lacks them, then gets
up to `per_name` images of each, from the train split. Score: F1 per name of "the caption says it" against "a reference
says it", as in held-out COCO (Hendricks et al. 2016).

    python eval/new_names.py eval/configs/new-names.yaml --data DIR
"""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from evcap.captioner import Captioner
from evcap.cli.console import caption_with_bar, command
from evcap.cli.options import DataFolder
from evcap.datasets.coco import CaptionedImage, read_coco_captions
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import cider
from evcap.files import write_text
from evcap.memory.names import NameFinder, clean_name, f1_scores
from evcap.yaml_files import load_yaml


@dataclass(frozen=True)
class Config:
    """Paths of sets are relative to --data."""

    trained: str  # tensors trained without the names
    memory: str  # memory folder without the names
    names: list[str]
    set: str
    splits: list[str]  # scored together
    output: str
    agree: int = 3  # captions of a train image that must say the name for it to become an entry
    per_name: int = 10
    preset: str = "embedded"
    beams: int = 5
    seed: int = 0


def read(config: Config, data: Path, split: str) -> list[CaptionedImage]:
    return read_coco_captions(data / config.set / f"captions_{split}.json", data / config.set / "images")


def entries(config: Config, finder: NameFinder, records: list[CaptionedImage]) -> list[tuple[str, Path]]:
    """(name, image) pairs to add, drawn at random from the images whose captions agree."""
    draw, chosen = random.Random(config.seed), []
    for name in config.names:
        votes = ((r, sum(any(m.name == name for m in finder.find(c)) for c in r.captions)) for r in records)
        fitting = [r.path for r, count in votes if count >= config.agree]
        chosen += [(name, p) for p in draw.sample(fitting, min(config.per_name, len(fitting)))]
    return chosen


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
) -> None:
    """Can new names be taught by entries alone? F1 before and after."""
    config = load_yaml(config_path, Config)
    if not config.names:
        raise EvcapError(f"{config_path}: names is empty")
    for name in config.names:
        if name != clean_name(name):
            raise EvcapError(f"{config_path}: write the name '{name}' as '{clean_name(name)}'")
    finder = NameFinder(config.names)
    captioner = Captioner.load(config.preset, config.memory, config.trained)
    records = [r for split in config.splits for r in read(config, data, split)]
    references = {i: r.captions for i, r in enumerate(records)}
    queries = captioner.query_features([r.path for r in records], batch_size=32)

    new = entries(config, finder, read(config, data, "train"))
    result = {"config": dataclasses.asdict(config), "images": len(records), "entries_added": len(new)}
    for stage in ("before", "after"):
        if stage == "after":
            keys = captioner.keys([path for _, path in new]).astype(np.float16)
            captioner.memory.add(keys, [n for n, _ in new], ["new name"] * len(new), [p.name for _, p in new])
        captions = [c.caption for c in caption_with_bar(captioner, queries, config.beams, 32, f"{stage} the new entries")]
        scores = f1_scores(finder, config.names, captions, list(references.values()))
        result[stage] = {"names": scores, "mean_f1": sum(s["f1"] for s in scores.values()) / len(scores)}
        result[stage]["cider"] = cider(dict(enumerate(captions)), references)
        print(stage, json.dumps(result[stage]))
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(config.output), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(command(main))
