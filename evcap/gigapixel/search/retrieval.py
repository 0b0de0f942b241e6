"""From phrases to places: how well each tile fits, and which tiles are taken.

Facts and first rules: ImageRAG (arXiv 2411.07688). Its fast path compares phrases with tiles, its slow path images of the
labels that a phrase can mean. Here one pass over a tile index serves both. Three things are ours: a tile is compared with what
else it may show (`contrasted`), thresholds grow with the number of tiles, and what looks promising is looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from PIL import Image

from evcap.config import RetrievalConfig
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.towers import Tower
from evcap.gigapixel.tiles.index import TileIndex
from evcap.language.sentences import sentence_embedder
from evcap.language.similarity import nearest_query
from evcap.memory.keys import mean_keys
from evcap.prefetch import prefetched
from evcap.raster.geo import suppress
from evcap.raster.raster import Raster

SHARPNESS = 10.0  # of the comparison of labels: a label 0.1 behind in cosine counts for a third
ROWS = 256  # tiles of one product: what stays in the cache
APART = 0.1  # share in which two places, each as large as a tile, may overlap: what lies on both is one thing
PLACES = 16  # of a phrase that are looked at again; a count cannot be higher
CLOSER, SHIFT = 0.78, 0.25  # side and displacement of the windows of a second look, in sides of the tile: 224 of 288 pixels
AROUND = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # to where they are displaced; corners and the middle add nothing

Way = Literal["fast", "slow", "both"]  # both: the sum of both scores, or the fast one where there is no other


@dataclass(frozen=True)
class Place:
    """A part of the image found for a phrase. box: x1,y1,x2,y2 in pixels. path: which comparison found it. sure: it counts as
    found (`Retriever.sure`)."""

    box: tuple[int, int, int, int]
    score: float
    phrase: str
    path: Literal["fast", "slow"]
    sure: bool


@dataclass(frozen=True)
class Scores:
    """Of n tiles for one phrase: fast (n,), and slow (n,), None if the phrase is no label of a gallery. float32."""

    fast: np.ndarray
    slow: np.ndarray | None

    def of(self, way: Way) -> np.ndarray | None:
        """The scores of one way; None if there are none."""
        if way == "slow":
            return self.slow
        return self.fast if way == "fast" or self.slow is None else self.fast + self.slow


def _grown(windows: np.ndarray) -> np.ndarray:
    """(n,4) float64: windows of a second look, as large as the tiles they come from."""
    middle, half = (windows[:, :2] + windows[:, 2:]) / 2, (windows[:, 2:] - windows[:, :2]) / (2 * CLOSER)
    return np.concatenate([middle - half, middle + half], axis=1)


def contrasted(own: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """How far a tile fits the phrase better than what else it may show: log of the softmax share of `own` (n,) among itself and
    the `rivals` (n,r), divided by the sharpness; in units of cosine, at most 0."""
    every = np.concatenate([own[:, None], rivals], axis=1) * SHARPNESS
    top = every.max(1)
    return own - (top + np.log(np.exp(every - top[:, None]).sum(1))) / SHARPNESS


class Retriever:
    """Finds phrases among the tiles of an index, with the help of galleries, asked in order: the first that knows a phrase
    answers for it."""

    def __init__(self, tower: Tower, galleries: Sequence[Gallery], rule: RetrievalConfig):
        self._tower, self._galleries, self.rule = tower, galleries, rule
        labels = [tower.read(gallery.labels) for gallery in galleries]
        self._labels = torch.cat([torch.zeros(0, tower.shape[1]), *labels])
        read = zip(galleries, labels, strict=True)
        self._label_vectors = [gallery.label_vectors(rule.reduce, texts.numpy()) for gallery, texts in read]
        self._kept: tuple[TileIndex, int, tuple[np.ndarray, np.ndarray]] | None = None

    def scores(self, rows: Sequence[np.ndarray] | TileIndex, phrases: Sequence[str]) -> list[Scores]:
        """Scores of the encoded tiles for each phrase. rows: an index, or arrays (n,Q,D) one after the other."""
        asked = self._tower.read(phrases)
        own = _of_each(rows, len(phrases), lambda queries: nearest_query(queries, asked).numpy())
        texts, pictures = self._of_labels(rows)
        embedded = sentence_embedder()(list(phrases)).numpy()
        return [self._scores(own[:, place], texts, pictures, vector) for place, vector in enumerate(embedded)]

    def _of_labels(self, rows: Sequence[np.ndarray] | TileIndex) -> tuple[np.ndarray, np.ndarray]:
        """Cosines of tiles with the galleries' labels, and with their images, (n,L) float32 both. Those of an index are kept:
        they are the same for the next question."""
        if not isinstance(rows, TileIndex):
            return self._compared(rows)
        encoded = len(rows.numbers())
        if self._kept is None or self._kept[:2] != (rows, encoded):
            self._kept = rows, encoded, self._compared(rows)
        return self._kept[2]

    def _compared(self, rows: Sequence[np.ndarray] | TileIndex) -> tuple[np.ndarray, np.ndarray]:
        def compare(queries: torch.Tensor) -> np.ndarray:
            keys, read = mean_keys(queries).numpy(), zip(self._galleries, self._label_vectors, strict=True)
            alike = [gallery.similarity(keys, label_vectors) for gallery, label_vectors in read]
            return np.concatenate([nearest_query(queries, self._labels).numpy(), *alike], axis=1)

        every = _of_each(rows, 2 * len(self._labels), compare)
        return every[:, : len(self._labels)], every[:, len(self._labels) :]

    def _scores(self, own_text: np.ndarray, texts: np.ndarray, pictures: np.ndarray, phrase: np.ndarray) -> Scores:
        """own_text (n,): cosines of the phrase; texts, images (n,L): of the labels and of their images."""
        rivals = [gallery.rivals(phrase) for gallery in self._galleries]
        fast, start = contrasted(own_text, texts[:, np.concatenate([[], *rivals]).astype(bool)]), 0
        for gallery, others in zip(self._galleries, rivals, strict=True):
            own = gallery.match(phrase)
            here = pictures[:, start : start + len(gallery.labels)]
            if own:
                best = here[:, own].max(1)
                return Scores(fast, best + contrasted(best, here[:, others]))
            start += len(gallery.labels)
        return Scores(fast, None)

    def threshold(self, way: Way, tiles: int) -> float:
        """The score above which a tile counts as found. Of n tiles that do not show a phrase the best scores higher the more
        there are: with a tail that falls exponentially, by slope x ln(n)."""
        return getattr(self.rule, way) + self.rule.slope * math.log(max(tiles, 1) / 1000)

    def sure(self, scores: np.ndarray, way: Way, tiles: int) -> np.ndarray:
        """Which of a phrase's places (n,), best first, count: those above the threshold, by both paths if the best leads.

        Two thresholds, as hysteresis has them: whether there is anything at all asks for more than whether there is one more.
        The fast path alone has one: its scores end at 0, which leaves no room for a lead.
        """
        level = self.threshold(way, tiles)
        return (scores > level) & (scores[:1] > level + (self.rule.lead if way == "both" else 0))

    def find(self, index: TileIndex, phrases: Sequence[str], way: Way = "both", most: int = PLACES) -> list[list[Place]]:
        """Places of each phrase, best first, at most `most`, of which those in front are `sure`, or none of them.

        A place is the best of the windows around a promising tile. Raises EvcapError when the image cannot be read.
        """
        boxes = index.plan.boxes(index.numbers())
        every = zip(phrases, self.scores(index, phrases), strict=True)
        return [self._look_again(index, boxes, phrase, scores, way, most) for phrase, scores in every]

    def survey(self, index: TileIndex, phrases: Sequence[str], most: int) -> list[Place]:
        """The best tile of each of these phrases that was found for sure; of those that overlap the surest, at most `most`."""
        boxes = index.plan.boxes(index.numbers())
        if not len(boxes):
            return []
        places = []
        for phrase, scores in zip(phrases, self.scores(index, phrases), strict=True):
            best, measured = int(scores.of("both").argmax()), _measured("both", scores)
            if self.sure(scores.of("both")[[best]], measured, len(boxes))[0]:
                place = self._place(boxes[best], scores, best, phrase, "both", len(boxes), True)
                places.append((place.score - self.threshold(measured, len(boxes)), place))
        if not places:
            return []
        kept = suppress(np.array([place.box for _, place in places]), np.array([lead for lead, _ in places]), APART, most)
        return [places[i][1] for i in kept]

    def _look_again(self, index: TileIndex, boxes: np.ndarray, phrase: str, scores: Scores, way: Way, most: int) -> list[Place]:
        """boxes (n,4), scores: of the encoded tiles."""
        if scores.of(way) is None or not len(boxes):
            return []
        kept = suppress(boxes, scores.of(way), APART, most)
        windows = np.concatenate([_windows(boxes[tile], index.plan.width, index.plan.height) for tile in kept])
        seen = self.scores(self._looked(index.raster, windows), [phrase])[0]
        every = np.concatenate([boxes[kept], windows])
        slow = None if scores.slow is None else np.concatenate([scores.slow[kept], seen.slow])
        both = Scores(np.concatenate([scores.fast[kept], seen.fast]), slow)
        apart = suppress(np.concatenate([boxes[kept], _grown(windows)]), both.of(way), APART, most)
        sure = self.sure(both.of(way)[apart], _measured(way, both), len(boxes))
        return [self._place(every[i], both, i, phrase, way, len(boxes), s) for i, s in zip(apart, sure, strict=True)]

    def _place(self, box: np.ndarray, scores: Scores, i: int, phrase: str, way: Way, tiles: int, sure: bool) -> Place:
        """Window i of those that were scored."""
        by_words = way == "fast" or (way == "both" and scores.fast[i] > self.threshold("fast", tiles))
        path = "fast" if by_words or scores.slow is None else "slow"
        return Place(tuple(box.tolist()), float(scores.of(way)[i]), phrase, path, bool(sure))

    def _looked(self, raster: Raster, windows: np.ndarray, batch: int = 16) -> Sequence[np.ndarray]:
        side = self._tower.image_size

        def read(box: list[int]) -> Image.Image:
            return Image.fromarray(raster.read(box, tuple(min(side, box[i + 2] - box[i]) for i in (0, 1)))[0])

        with closing(prefetched(read, windows.tolist(), 2 * batch, threads=1)) as pictures:
            parts = iter(lambda: list(islice(pictures, batch)), [])
            return [self._tower.query_features(part, batch).numpy() for part in parts]


def _measured(way: Way, scores: Scores) -> Way:
    """The way whose threshold fits the scores of `way`."""
    return "fast" if way == "both" and scores.slow is None else way


def _of_each(rows: Sequence[np.ndarray] | TileIndex, width: int, measure: Callable[[torch.Tensor], np.ndarray]) -> np.ndarray:
    """(n,width) float32: what is measured of n tiles, a few of which (m,Q,D) float32 are there at a time.

    Written into one array: small ones that stay, between large ones that come and go, would scatter the memory.
    """
    stored = isinstance(rows, TileIndex)
    found = np.empty((len(rows.numbers()) if stored else sum(map(len, rows)), width), np.float32)
    start = 0
    for part in (queries for _, queries in rows.chunks(ROWS)) if stored else rows:
        found[start : start + len(part)] = measure(torch.from_numpy(part).float())
        start += len(part)
    return found


def _windows(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """(4,4) int64: closer windows left, right, above and below the middle of a box, inside the image."""
    sides = np.maximum(1, np.rint((box[2:] - box[:2]) * CLOSER)).astype(np.int64)
    steps = AROUND * SHIFT * (box[2:] - box[:2])
    corners = np.rint((box[2:] + box[:2]) / 2 + steps - sides / 2).astype(np.int64)
    corners = np.clip(corners, 0, np.array([width, height]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def imagerag_selection(cosines: np.ndarray, scale: float = 100.0, threshold: float = 0.5) -> list[tuple[int, float]]:
    """The selection rule of the public ImageRAG release (facts of its code): tiles with confidences, highest first.

    cosines: (n,m) of n phrases with m tiles. Softmax over the tiles; of the two best of each phrase the two that occur most
    often (of equals the first seen) with their best probability, then each phrase's best if it is not among these; what
    exceeds the threshold stays. A tile may stand twice, as there.
    """
    shares = softmax(scale * cosines)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :2]
    seen: dict[int, int] = {}
    for tile in best.ravel().tolist():
        seen[tile] = seen.get(tile, 0) + 1
    common = sorted(seen, key=lambda tile: -seen[tile])[:2]
    chosen = common + [tile for tile in best[:, 0].tolist() if tile not in common]
    found = [(tile, float(shares[:, tile].max())) for tile in chosen]
    return sorted([item for item in found if item[1] > threshold], key=lambda item: -item[1])


def softmax(rows: np.ndarray) -> np.ndarray:
    """Each row (n,m) as shares that sum to 1."""
    shares = np.exp(rows - rows.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
