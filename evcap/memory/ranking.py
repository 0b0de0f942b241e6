"""From the hits of an image's queries to its names, by the EVCap release's rule or by votes; and which hits are its own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evcap.memory.names import clean_name


@dataclass(frozen=True)
class RetrievedName:
    """A name with the cosine similarity of its best hit and the query (0 to 31) that made it, or comes nearest to it."""

    name: str
    similarity: float
    query: int


def ranked_names(
    similarity: np.ndarray, entry: np.ndarray, names: Sequence[str], sub_top_k: int, limit: int
) -> list[RetrievedName]:
    """Names of one image from the hits (Q,h) of its queries, nearest first, in a memory whose entries bear `names`.

    Of all hits the `sub_top_k` most similar stay (ties: lower query, then nearer rank); names are cleaned, repeats dropped, the
    first `limit` returned. Entry -1 is no hit.
    """
    best = np.argsort(-similarity, axis=None, kind="stable")[:sub_top_k]
    kept: dict[str, RetrievedName] = {}
    hits = zip(
        (best // similarity.shape[1]).tolist(), similarity.ravel()[best].tolist(), entry.ravel()[best].tolist(), strict=True
    )
    for query, value, place in hits:
        name = clean_name(names[place])
        if name not in kept and place >= 0 and np.isfinite(value):  # -1: the index found nothing near a NaN
            kept[name] = RetrievedName(name, value, query)
    return list(kept.values())[:limit]


def voted_names(
    similarity: np.ndarray, entry: np.ndarray, names: Sequence[str], sharpness: float
) -> list[tuple[str, float, int]]:
    """Names that the entries (h,) nearest to an image vote for with exp(sharpness x similarity), most votes first.

    Each comes with the similarity of its nearest entry, and that entry. Entry -1 has no vote.
    """
    votes: dict[str, float] = {}
    nearest: dict[str, tuple[float, int]] = {}
    for value, place in zip(similarity.tolist(), entry.tolist(), strict=True):
        if place >= 0 and np.isfinite(value):  # -1: the index found nothing near a NaN, or no more
            name = clean_name(names[place])
            votes[name] = votes.get(name, 0.0) + math.exp(sharpness * value)
            nearest.setdefault(name, (value, place))
    return [(name, *nearest[name]) for name in sorted(votes, key=votes.__getitem__, reverse=True)]


def image_key(name: str) -> str:
    """What tells an image from others, however a set spells its file: COCO's is its id, 000000000009.jpg in LVIS,
    COCO_train2014_000000000009.jpg in the Karpathy splits; any other is its name."""
    coco = re.search(r"(?:^|/)(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.\w+$", name)
    return f"COCO {int(coco[1])}" if coco else name


class Owners:
    """Which of M entries come from which image, told once so that a search need not look at all of them."""

    def __init__(self, images: list[str]):
        """images: the image of each entry; the list is kept, to see whether it is still the memory's."""
        self.images, self._count = images, len(images)
        self._numbers: dict[str, int] = {}
        self._of_entry = np.array([self._numbers.setdefault(image_key(i), len(self._numbers)) for i in images], np.int64)
        self._entries = np.bincount(self._of_entry)

    def made_from(self, images: list[str]) -> bool:
        """Whether they were made from this list, and nothing was appended since."""
        return images is self.images and len(images) == self._count

    def most(self, images: Sequence[str]) -> int:
        """Entries of the one of these images that has most of them."""
        numbers = self._numbers_of(images)
        return int(self._entries[numbers[numbers >= 0]].max(initial=0))

    def others(
        self, similarity: np.ndarray, entry: np.ndarray, images: Sequence[str], top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the hits (B,Q,h) of B images the first `top_k` of each query that are none of the image's own entries.

        Where there are fewer, own ones follow with a similarity of -inf.
        """
        own = (self._of_entry[entry] == self._numbers_of(images)[:, None, None]) & (entry >= 0)
        order = np.argsort(own, axis=2, kind="stable")[..., :top_k]
        similarity = np.where(own, -np.inf, similarity)
        return np.take_along_axis(similarity, order, 2), np.take_along_axis(entry, order, 2)

    def _numbers_of(self, images: Sequence[str]) -> np.ndarray:
        """(B,) int64; -1 for an image that no entry comes from."""
        return np.array([self._numbers.get(image_key(image), -1) for image in images], np.int64)
