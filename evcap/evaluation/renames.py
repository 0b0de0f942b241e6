"""The rename test: entries of the memory get another name, and captions that said the old one should say the new one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from evcap.captioner import Caption as Captioned
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import NameFinder, clean_name

OUTCOMES = ("follows", "neither", "keeps")


Caption = Callable[[VisualNameMemory, Sequence[int], str], Sequence[Captioned]]


def with_names(memory: VisualNameMemory, names: list[str]) -> VisualNameMemory:
    """The memory's keys under other names."""
    return VisualNameMemory(memory.keys, names, memory.sources, memory.images, memory.encoder)


def frequent_names(
    said: Counter, memory: VisualNameMemory, renames: Mapping[str, str], count: int
) -> tuple[list[str], dict[str, str]]:
    """The `count` names said most often that can be renamed, and why more frequent ones cannot."""
    chosen, passed_over = [], {}
    for name, _ in said.most_common():
        if len(chosen) == count:
            break
        if name not in renames:
            passed_over[name] = "has no substitute in the config"
        elif clean_name(renames[name]) in memory.counts():
            passed_over[name] = f"its substitute '{renames[name]}' stands in the memory already"
        else:
            chosen.append(name)
    return chosen, passed_over


def rename_test(
    caption: Caption,
    memory: VisualNameMemory,
    before: Sequence[Captioned],
    renames: Mapping[str, str],
    count: int,
    report: Callable[[str], None],
) -> tuple[dict, dict[str, str]]:
    """Per renamed name, counts over the images whose caption said it; and the names passed over, with reasons.

    caption: (memory, which images, title) -> their captions with that memory. before: of all images, with `memory`. renames:
    what a name becomes; of those said most often, `count` are renamed, one at a time. report: is told of each.
    follows: the caption says the new name and did not before; keeps: it says the old one only; neither: the rest.
    """
    finder = NameFinder(memory.counts())
    said_before = [{m.name for m in finder.find(c.caption)} for c in before]
    chosen, passed_over = frequent_names(Counter(name for said in said_before for name in sorted(said)), memory, renames, count)
    results = {}
    for old in chosen:
        new = clean_name(renames[old])
        pictures = [i for i, said in enumerate(said_before) if old in said]
        renamed = with_names(memory, [new if name == old else name for name in memory.names])
        after = caption(renamed, pictures, f"{old} -> {new}")
        finder_after = NameFinder([*memory.counts(), new])
        outcomes = Counter()
        for i, now in zip(pictures, after, strict=True):
            said = {m.name for m in finder_after.find(now.caption)}
            said_new_before = any(m.name == new for m in finder_after.find(before[i].caption))
            outcome = "follows" if new in said and not said_new_before else "keeps" if old in said else "neither"
            retrieved = int(old in {n.name for n in before[i].names})  # an empty Counter would keep a bool
            outcomes.update({outcome: 1, f"{outcome}_retrieved": retrieved, "retrieved": retrieved})
        row = {key: outcomes[key] for key in ("retrieved", *OUTCOMES, *(f"{o}_retrieved" for o in OUTCOMES))}
        example = {"before": before[pictures[0]].caption, "after": after[0].caption}
        results[old] = {"new": new, "said": len(pictures), **row, "example": example}
        report(f"{old} -> {new}: {row['follows']} of {len(pictures)} follow, {row['keeps']} keep")
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
