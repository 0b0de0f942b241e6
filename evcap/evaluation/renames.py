"""The rename test: entries of the memory get another name, and captions that said the old one should say the new one."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Protocol

import torch

from evcap.captioner import Caption, Captioner
from evcap.cli.console import caption_with_bar
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import NameFinder, clean_name

OUTCOMES = ("follows", "neither", "keeps")


class Renames(Protocol):
    """renames: what a name becomes. count: names renamed, one at a time. beams, batch_size: of the captions."""

    renames: dict[str, str]
    count: int
    beams: int
    batch_size: int


def with_names(memory: VisualNameMemory, names: list[str]) -> VisualNameMemory:
    """The memory's keys under other names."""
    return VisualNameMemory(memory.keys, names, memory.sources, memory.images, memory.encoder)


def caption_with(captioner: Captioner, memory: VisualNameMemory, queries: torch.Tensor, config: Renames, title: str):
    """Captions of N images from their query features (N,32,W) with another memory in place: list[Caption]."""
    captioner.memory = memory
    return caption_with_bar(captioner, queries, config.beams, config.batch_size, title)


def frequent_names(said: Counter, memory: VisualNameMemory, config: Renames) -> tuple[list[str], dict[str, str]]:
    """The `count` names said most often that can be renamed, and why more frequent ones cannot."""
    chosen, passed_over = [], {}
    for name, _ in said.most_common():
        if len(chosen) == config.count:
            break
        if name not in config.renames:
            passed_over[name] = "has no substitute in the config"
        elif clean_name(config.renames[name]) in memory.counts():
            passed_over[name] = f"its substitute '{config.renames[name]}' stands in the memory already"
        else:
            chosen.append(name)
    return chosen, passed_over


def rename_test(captioner: Captioner, memory: VisualNameMemory, queries, before: list[Caption], config: Renames):
    """Per renamed name, counts over the images whose caption said it; and the names passed over, with reasons.

    follows: the caption says the new name and did not before; keeps: it says the old one only; neither: the rest.
    """
    finder = NameFinder(memory.counts())
    said_before = [{m.name for m in finder.find(c.caption)} for c in before]
    chosen, passed_over = frequent_names(Counter(name for said in said_before for name in sorted(said)), memory, config)
    results = {}
    for old in chosen:
        new = clean_name(config.renames[old])
        pictures = [i for i, said in enumerate(said_before) if old in said]
        renamed = with_names(memory, [new if name == old else name for name in memory.names])
        after = caption_with(captioner, renamed, queries[pictures], config, f"{old} -> {new}")
        finder_after = NameFinder([*memory.counts(), new])
        counts = Counter()
        for i, caption in zip(pictures, after, strict=True):
            said = {m.name for m in finder_after.find(caption.caption)}
            said_new_before = any(m.name == new for m in finder_after.find(before[i].caption))
            outcome = "follows" if new in said and not said_new_before else "keeps" if old in said else "neither"
            retrieved = int(old in {n.name for n in before[i].names})  # an empty Counter would keep a bool
            counts.update({outcome: 1, f"{outcome}_retrieved": retrieved, "retrieved": retrieved})
        row = {key: counts[key] for key in ("retrieved", *OUTCOMES, *(f"{o}_retrieved" for o in OUTCOMES))}
        example = {"before": before[pictures[0]].caption, "after": after[0].caption}
        results[old] = {"new": new, "said": len(pictures), **row, "example": example}
        print(f"{old} -> {new}: {row['follows']} of {len(pictures)} follow, {row['keeps']} keep", flush=True)
    return results, passed_over


def rates(results: dict) -> dict[str, float]:
    """Percent over all images of all names, and the mean of the names' own rates."""
    total = Counter()
    for row in results.values():
        total.update({key: value for key, value in row.items() if isinstance(value, int)})
    return {
        "follows": 100 * total["follows"] / max(total["said"], 1),
        "follows_when_retrieved": 100 * total["follows_retrieved"] / max(total["retrieved"], 1),
        "keeps": 100 * total["keeps"] / max(total["said"], 1),
        "retrieved": 100 * total["retrieved"] / max(total["said"], 1),
        "mean_over_names": statistics.fmean([100 * r["follows"] / r["said"] for r in results.values()] or [0]),
    }
