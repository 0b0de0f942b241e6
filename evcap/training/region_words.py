"""The words of regions: control words of each, which tags of a vocabulary hold, and phrases in other colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from evcap.progress import Progress, silent
from evcap.regions.control_words import caption_phrases, clean_caption
from evcap.training.region_data import Sample

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "pink", "purple", "brown", "gray")


def words_of(samples: Sequence[Sample], progress: Progress = silent) -> list[list[str]]:
    """What the phrases of each sample name, each word once; of a class its name."""
    from evcap.language.parts_of_speech import tag_words  # slow import

    known: dict[str, list[str]] = {}
    with progress(len(samples), "words", "region") as advance:
        rows = []
        for sample in samples:
            phrases = sample.region.phrases
            for phrase in phrases:
                if phrase not in known:
                    known[phrase] = [phrase] if sample.in_class else caption_phrases(tag_words(clean_caption(phrase).split()))
            rows.append(list(dict.fromkeys(word for phrase in phrases for word in known[phrase])))
            advance()
    return rows


def vocabulary(words: Sequence[Sequence[str]], least: int) -> list[str]:
    """The words that at least so many samples have, the most frequent first."""
    counts = Counter(word for row in words for word in _named(row))
    ranked = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return [word for word, count in ranked if count >= least and len(word) > 1]


def _named(words: Sequence[str]) -> set[str]:
    """Phrases and each word of them: "red shirt" holds where "red" and "shirt" do."""
    return {part for word in words for part in (word, *word.split())}


def tag_targets(
    samples: Sequence[Sample], words: Sequence[Sequence[str]], tags: Sequence[str], classes: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tags hold (N,T) bool, and of which it is known whether they do (N,T) bool: of a class sample those of classes."""
    place = {tag: number for number, tag in enumerate(tags)}
    holds = torch.zeros(len(samples), len(tags), dtype=torch.bool)
    for row, own in enumerate(words):
        holds[row, [place[word] for word in _named(own) if word in place]] = True
    of_classes = torch.tensor([tag in set(classes) for tag in tags])
    known = torch.tensor([[not sample.in_class] for sample in samples]) | of_classes
    return holds, known


def colour_choice(sample: Sample, phrase: str) -> tuple[int, list[str]] | None:
    """`in_each_colour` of a phrase of a region, None for a class and for people, whose colours are those of what they wear."""
    return None if sample.in_class or "people" in sample.region.types else in_each_colour(phrase)


def in_each_colour(phrase: str) -> tuple[int, list[str]] | None:
    """A cleaned phrase in each of COLOURS, and the place among them of its own; None for one that names none or several."""
    words = ["gray" if word == "grey" else word for word in phrase.split()]
    told = set(words) & set(COLOURS)
    if len(told) != 1:
        return None
    (own,) = told
    return COLOURS.index(own), [" ".join(colour if word == own else word for word in words) for colour in COLOURS]


def tags_of_step(holds: torch.Tensor, most: int) -> torch.Tensor:
    """The tags (n,) that hold for some region of a step, holds (R,T), and others at random: at most `most`."""
    order = holds.any(0).float() + torch.rand(holds.shape[1])
    return order.topk(min(most, holds.shape[1])).indices
