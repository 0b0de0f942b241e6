"""Does the captioner listen to its memory? Two experiments on one COCO-format set.

1. Scores with the shipped memory, with an empty one, and with the names shuffled over the entries.
2. Rename test: of the names said most often, rename the entries (dog -> wolf) and count how often the caption follows.

    python eval/memory_matters.py eval/configs/memory-matters.yaml --data DIR

Query features do not depend on the memory: they are computed once. Writes results.json, results.md and rename.png.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

import evcap
from evcap.config import load_yaml
from evcap.datasets import read_coco_captions
from evcap.errors import EvcapError
from evcap.memory import VisualNameMemory
from evcap.metrics import score
from evcap.predictor import Caption, Captioner
from evcap.vocabulary import NameFinder


@dataclass(frozen=True)
class Config:
    """Paths of sets are relative to --data."""

    captions: str
    images: str
    output: str
    renames: dict[str, str]  # what a name becomes; the most often said names are looked up here
    preset: str = "embedded"
    memory: str | None = None
    count: int = 15  # names renamed, one at a time
    beams: int = 5
    batch_size: int = 32
    limit: int = 0
    seed: int = 0


def changed(memory: VisualNameMemory, names: list[str]) -> VisualNameMemory:
    """A copy of the memory with other names on the same keys."""
    return VisualNameMemory(memory.keys, names, memory.sources, memory.images, memory.encoder)


def caption_with(captioner: Captioner, memory: VisualNameMemory, queries: torch.Tensor, config: Config) -> list[Caption]:
    captioner.memory = memory
    return captioner.caption_features(queries, beams=config.beams, batch_size=config.batch_size)


def rename_test(captioner: Captioner, memory: VisualNameMemory, queries, before: list[Caption], config: Config) -> dict:
    """Per name: pictures whose caption said it, how many then say the substitute, how many still say the old name."""
    finder = NameFinder(memory.counts())
    said = Counter(name for c in before for name in {m.name for m in finder.find(c.caption)})
    frequent = [name for name, _ in said.most_common() if name in config.renames][: config.count]
    results = {}
    for old in frequent:
        new = config.renames[old]
        if new in memory.counts():
            raise EvcapError(f"'{new}' stands in the memory already; choose another substitute for '{old}'")
        pictures = [i for i, c in enumerate(before) if any(m.name == old for m in finder.find(c.caption))]
        renamed = changed(memory, [new if n == old else n for n in memory.names])
        after = caption_with(captioner, renamed, queries[pictures], config)
        looks = NameFinder([old, new])
        mentions = [{m.name for m in looks.find(c.caption)} for c in after]
        retrieved = [old in {n.name for n in before[i].names} for i in pictures]
        results[old] = {
            "new": new,
            "said": len(pictures),
            "retrieved": sum(retrieved),
            "follows": sum(new in m for m in mentions),
            "follows_when_retrieved": sum(new in m for m, r in zip(mentions, retrieved, strict=True) if r),
            "keeps_old": sum(old in m and new not in m for m in mentions),
            "example": {"before": before[pictures[0]].caption, "after": after[0].caption},
        }
    return results


def overall(results: dict) -> dict[str, float]:
    """Rates in percent over all pictures of all names."""
    total = Counter()
    for row in results.values():
        total.update({k: v for k, v in row.items() if isinstance(v, int)})
    return {
        "follows": 100 * total["follows"] / max(total["said"], 1),
        "follows_when_retrieved": 100 * total["follows_when_retrieved"] / max(total["retrieved"], 1),
        "retrieved": 100 * total["retrieved"] / max(total["said"], 1),
        "mean_over_names": sum(100 * r["follows"] / r["said"] for r in results.values()) / max(len(results), 1),
    }


def draw(results: dict, path: Path) -> None:
    """Bars: share of captions that follow each renaming."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 0.36 * len(results) + 1.4), layout="constrained")
    labels = [f"{old} → {r['new']} ({r['said']})" for old, r in results.items()]
    axis.barh(labels, [100 * r["follows"] / r["said"] for r in results.values()], color="tab:green")
    axis.invert_yaxis()
    axis.axvline(50, color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 100), xlabel="% of captions that say the new name after the memory's entries were renamed")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def markdown(scores: dict, results: dict, rates: dict) -> str:
    metrics = list(next(iter(scores.values())))
    lines = ["| memory | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[m]:.1f}" for m in metrics) + " |" for name, row in scores.items()]
    lines += ["", "| renamed | captions that said it | follow | when it was retrieved |", "|---|---|---|---|"]
    for old, r in results.items():
        lines.append(
            f"| {old} → {r['new']} | {r['said']} | {100 * r['follows'] / r['said']:.0f} % "
            f"| {r['follows_when_retrieved']} of {r['retrieved']} |"
        )
    lines.append(f"| all | | {rates['follows']:.0f} % | {rates['follows_when_retrieved']:.0f} % |")
    return "\n".join(lines) + "\n"


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets, see data/README.md.")],
) -> None:
    config = load_yaml(config_path, Config)
    records = read_coco_captions(data / config.captions, data / config.images)
    records = records[: config.limit or len(records)]
    references = {i: r.captions for i, r in enumerate(records)}
    captioner = evcap.load(config.preset, config.memory)
    shipped = captioner.memory
    shuffled = random.Random(config.seed).sample(shipped.names, len(shipped))
    variants = {
        "as shipped": shipped,
        "empty": VisualNameMemory.empty(shipped.keys.shape[1], shipped.encoder),
        "names shuffled": changed(shipped, shuffled),
    }
    queries = captioner.query_features([r.path for r in records], config.batch_size)
    scores, before = {}, []
    for name, memory in variants.items():
        captions = caption_with(captioner, memory, queries, config)
        before = before or captions
        scores[name] = score({i: c.caption for i, c in enumerate(captions)}, references, spice=False)
        print(name, {k: round(v, 1) for k, v in scores[name].items()}, flush=True)
    results = rename_test(captioner, shipped, queries, before, config)
    rates = overall(results)
    print("rename", {k: round(v, 1) for k, v in rates.items()})

    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"config": dataclasses.asdict(config), "pictures": len(records), "scores": scores, "renames": results}
    (folder / "results.json").write_text(json.dumps({**report, "rates": rates}, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(scores, results, rates))
    draw(results, folder / "rename.png")


if __name__ == "__main__":
    try:
        typer.run(main)
    except EvcapError as error:
        raise SystemExit(f"error: {error}") from None
