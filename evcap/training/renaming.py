"""Renaming augmentation: a retrieved name and the caption words it stands for become another name, together."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from evcap.datasets.coco import read_name_list
from evcap.errors import EvcapError
from evcap.language.sentences import SentenceEmbedder
from evcap.memory.names import NameFinder, clean_name, pluralize

SPARE = 6  # names beside those that a caption is written from, to take the places of hidden ones


class Renamer:
    """Draws substitutes for the memory's names; plural words get plural substitutes.

    embed: texts -> (N,d) unit vectors. With it every second substitute is one of the `near` likest in meaning: a model that
    has only seen dogs become teapots takes a wolf in the list for a mistake and says "dog".
    """

    def __init__(
        self,
        names: Iterable[str],
        substitutes: Iterable[str],
        embed: Callable[[list[str]], torch.Tensor] | None = None,
        near: int = 30,
    ):
        names = sorted(set(names))
        self._finder = NameFinder(names)
        plain = (clean_name(s.split("(")[0]) for s in substitutes)
        self._substitutes = sorted({s for s in plain if s and len(s.split()) <= 2})
        self._near: dict[str, list[str]] = {}
        if embed:
            strangers = [s for s in self._substitutes if s not in set(names)]
            likest = (embed(names) @ embed(strangers).T).topk(min(near, len(strangers))).indices.tolist()
            self._near = {name: [strangers[i] for i in row] for name, row in zip(names, likest, strict=True)}

    def _substitute(self, name: str, draw: random.Random) -> str:
        near = self._near.get(name)
        return draw.choice(near if near and draw.random() < 0.5 else self._substitutes)

    def mentioned(self, caption: str) -> list[str]:
        """Names the caption says."""
        return [m.name for m in self._finder.find(caption)]

    def _said(self, captions: Sequence[str]) -> set[str]:
        return {name for caption in captions for name in self.mentioned(caption)}

    def unsaid(self, names: Sequence[str], captions: Sequence[str]) -> list[str]:
        """The names that no caption says."""
        said = self._said(captions)
        return [name for name in names if name not in said]

    def drop(self, names: Sequence[str], share: float, draw: random.Random) -> list[str]:
        """Leave out each name with probability `share`, and all of them with probability `share` / 2."""
        if draw.random() < share / 2:
            return []
        return [n for n in names if draw.random() >= share]

    def table(self, names: Sequence[str], captions: Sequence[str], draw: random.Random, each: float = 0.7) -> dict[str, str]:
        """Name -> substitute for each retrieved name that a caption says, with probability `each`."""
        said = self._said(captions)
        return {n: self._substitute(n, draw) for n in names if n in said and draw.random() < each}

    def replace(self, caption: str, table: dict[str, str]) -> str:
        """The caption with the table's names replaced, in number and with their article, and the sentence's capital kept."""
        if not table:
            return caption
        pieces, place = [], 0
        for match in self._finder.find(caption):
            if match.name in table:
                word = table[match.name]
                before = caption[place : match.start]
                if not match.plural:
                    before = re.sub(r"\b([Aa])n? $", r"\1n " if word[0] in "aeiou" else r"\1 ", before)
                pieces += [before, pluralize(word) if match.plural else word]
                place = match.end
        text = "".join(pieces) + caption[place:]
        return text[:1].upper() + text[1:]


class Changes(Protocol):
    """Settings of a recipe. substitutes: list of names below the data folder, "" = nothing is renamed. wrong_names: share of
    images that lose all names which their captions say. drop_names: share of names left out. rename: share of images whose
    matched names are renamed."""

    substitutes: str
    wrong_names: float
    drop_names: float
    rename: float


def make_renamer(config: Changes, data: Path, own: Path, names: Iterable[str]) -> Renamer | None:
    """The renamer of a memory's names that settings ask for, if any. own: file of further substitutes."""
    if not config.substitutes:
        if config.wrong_names:
            raise EvcapError("wrong_names needs `substitutes`, as all changes of names do")
        return None
    lists = (data / config.substitutes, own)
    return Renamer(names, [row[0] for path in lists for row in read_name_list(path)], SentenceEmbedder())


def noisy(queries: torch.Tensor, most: float) -> torch.Tensor:
    """Q (B,32,W) and normal noise of 0 to `most` standard deviations of Q, as large for all queries of an image."""
    if not most:
        return queries
    deviations = most * torch.rand(len(queries), 1, 1, device=queries.device)
    return queries + deviations * queries.std() * torch.randn_like(queries)


def retold(
    names: list[str], captions: list[str], renamer: Renamer | None, config: Changes, count: int, draw: random.Random
) -> tuple[list[str], list[str]]:
    """At most `count` names and the captions of one image as this step tells them: some names dropped, some renamed in both."""
    said = draw.sample(captions, len(captions))
    if renamer is None:
        return names[:count], said
    if config.wrong_names and draw.random() < config.wrong_names:
        names = renamer.unsaid(names, captions)
    kept = renamer.drop(names[:count], config.drop_names, draw)
    table = renamer.table(kept, said, draw) if draw.random() < config.rename else {}
    return [table.get(name, name) for name in kept], [renamer.replace(caption, table) for caption in said]
