"""Does the captioner listen to its memory? Two experiments on one COCO-format set.

1. Scores with the memory as it is, with an empty one, and with its names shuffled over its entries.
2. Rename test: of the names said most often, one after the other, rename the entries (dog -> wolf), caption the images
   again whose caption said the name, and count how many captions now say the new one.

    python eval/memory_matters.py eval/configs/memory-matters.yaml --data DIR [--preset NAME]

Query features do not depend on the memory: they are computed once. Writes results.json, results.md and memory_matters.png
into the folder of the preset's name below the config's output folder.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

import evcap
from evcap.captioner import Caption, Captioner
from evcap.cli.console import caption_with_bar, command
from evcap.cli.options import DataFolder
from evcap.datasets.coco import read_coco_captions
from evcap.evaluation import renames
from evcap.evaluation.caption_metrics import per_image_cider, score
from evcap.evaluation.renames import rates, with_names
from evcap.files import write_text
from evcap.memory.memory import VisualNameMemory
from evcap.yaml_files import load_yaml

COLOURS = {"follows": "tab:green", "neither": "lightgrey", "keeps": "tab:orange"}


@dataclass(frozen=True)
class Config:
    """Paths of sets are relative to --data."""

    captions: str
    images: str
    output: str
    renames: dict[str, str]  # what a name becomes; the names said most often are looked up here
    preset: str = "embedded"
    memory: str | None = None  # folder; null = the preset's own
    count: int = 15  # names renamed, one at a time
    beams: int = 5
    batch_size: int = 32
    limit: int | None = None  # the first so many images
    seed: int = 0  # of the shuffle


def caption_with(captioner: Captioner, memory: VisualNameMemory, queries: torch.Tensor, config: Config, title: str):
    """Captions of N images from their query features (N,32,W) with another memory in place: list[Caption]."""
    captioner.memory = memory
    return caption_with_bar(captioner, queries, config.beams, config.batch_size, title)


def rename_test(captioner: Captioner, memory: VisualNameMemory, queries, before: list[Caption], config: Config):
    """`renames.rename_test` of images, from their query features (N,32,W)."""

    def caption(renamed: VisualNameMemory, rows: Sequence[int], title: str) -> list[Caption]:
        return caption_with(captioner, renamed, queries[rows], config, title)

    return renames.rename_test(caption, memory, before, config.renames, config.count, partial(print, flush=True))


def paired_difference(each: dict[int, float], base: dict[int, float]) -> dict[str, float]:
    """Mean of the images' differences in CIDEr and its standard error."""
    differences = [each[key] - base[key] for key in base]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return {"CIDEr difference": statistics.fmean(differences), "standard error": error}


def draw(scores: dict, differences: dict, results: dict, path: Path) -> None:
    """Left: CIDEr with each memory. Right: what captions say after each renaming."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 1.8 + 0.32 * max(len(results), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.4))
    bars = left.bar(list(scores), [row["CIDEr"] for row in scores.values()], color=["tab:green", "silver", "tab:orange"])
    left.bar_label(bars, fmt="%.1f", label_type="center", fontweight="bold")
    left.errorbar(
        list(differences),
        [scores[name]["CIDEr"] for name in differences],
        [row["standard error"] for row in differences.values()],
        fmt="none",
        color="black",
        capsize=4,
    )
    left.set(ylabel="CIDEr", title="by memory; error of the paired difference")
    labels = [f"{old} → {row['new']} ({row['said']})" for old, row in results.items()]
    start = [0.0] * len(results)
    words = {"follows": "new name", "neither": "neither", "keeps": "old name only"}
    for outcome, colour in COLOURS.items():
        shares = [100 * row[outcome] / row["said"] for row in results.values()]
        right.barh(labels, shares, left=start, color=colour, label=words[outcome])
        start = [a + b for a, b in zip(start, shares, strict=True)]
    right.axvline(50, color="black", linewidth=0.8, linestyle=":")
    right.invert_yaxis()
    right.set(xlim=(0, 100), xlabel="% of the captions that said the name (their number)", title="said after renaming")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def markdown(scores: dict, differences: dict, results: dict, overall: dict) -> str:
    metrics = list(next(iter(scores.values())))
    lines = [f"| memory | {' | '.join(metrics)} | CIDEr difference ± standard error |", "|---" * (len(metrics) + 2) + "|"]
    for name, row in scores.items():
        d = differences.get(name)
        cell = f"{d['CIDEr difference']:+.1f} ± {d['standard error']:.1f}" if d else ""
        lines.append(f"| {name} | {' | '.join(f'{row[m]:.1f}' for m in metrics)} | {cell} |")
    lines += ["", "| renamed | captions that said it | say the new name | the old name only | new, where it was retrieved |"]
    lines.append("|---" * 5 + "|")
    for old, r in results.items():
        share, kept = 100 * r["follows"] / r["said"], 100 * r["keeps"] / r["said"]
        when = f"{r['follows_retrieved']} of {r['retrieved']}"
        lines.append(f"| {old} → {r['new']} | {r['said']} | {share:.0f} % | {kept:.0f} % | {when} |")
    said, when = sum(r["said"] for r in results.values()), overall["follows_when_retrieved"]
    lines.append(f"| all | {said} | {overall['follows']:.0f} % | {overall['keeps']:.0f} % | {when:.0f} % |")
    return "\n".join(lines) + "\n"


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    preset: Annotated[str | None, typer.Option(help="Another preset than the config's: a name or a YAML file.")] = None,
) -> None:
    """Does the captioner listen to its memory? Score it with others, and rename entries."""
    config = load_yaml(config_path, Config)
    config = dataclasses.replace(config, preset=preset or config.preset)
    records = read_coco_captions(data / config.captions, data / config.images)[: config.limit]
    references = {i: r.captions for i, r in enumerate(records)}
    captioner = evcap.load(config.preset, config.memory)
    folder = Path(config.output) / captioner.preset.name
    folder.mkdir(parents=True, exist_ok=True)
    own = captioner.memory
    variants = {
        "as it is": own,
        "empty": VisualNameMemory.empty(own.keys.shape[1], own.encoder),
        "names shuffled": with_names(own, random.Random(config.seed).sample(own.names, len(own))),
    }
    queries = captioner.query_features([r.path for r in records], config.batch_size)

    captions, scores, each = {}, {}, {}
    for name, memory in variants.items():
        captions[name] = caption_with(captioner, memory, queries, config, name)
        predictions = {i: c.caption for i, c in enumerate(captions[name])}
        scores[name] = score(predictions, references)
        each[name] = per_image_cider(predictions, references)
        print(f"memory {name}:", ", ".join(f"{metric} {value:.1f}" for metric, value in scores[name].items()), flush=True)
    differences = {name: paired_difference(each[name], each["as it is"]) for name in ("empty", "names shuffled")}
    results, passed_over = rename_test(captioner, own, queries, captions["as it is"], config)
    overall = rates(results)
    for name, reason in passed_over.items():
        print(f"passed over: {name} {reason}")

    report = {
        "command": shlex.join(["python", *sys.argv]),
        "config": dataclasses.asdict(config),
        "images": len(records),
        "names_in_prompt": captioner.preset.language.names_in_prompt,
        "scores": scores,
        "against_as_it_is": differences,
        "renames": results,
        "rates": overall,
        "passed_over": passed_over,
    }
    write_text(folder / "results.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / "results.md", markdown(scores, differences, results, overall))
    draw(scores, differences, results, folder / "memory_matters.png")
    print(
        f"{overall['follows']:.1f} % of captions follow a renaming; wrote {folder}/results.json, results.md, memory_matters.png"
    )


if __name__ == "__main__":
    typer.run(command(main))
