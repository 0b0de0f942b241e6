"""Galleries: labels with labelled images, so that a phrase is looked for by what it looks like (ImageRAG, arXiv 2411.07688).

A gallery is a visual-name memory, on disk and in use: a label is a name, its images are the name's entries.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from evcap.errors import EvcapError
from evcap.language.sentences import cached_sentences
from evcap.memory.memory import VisualNameMemory

REDUCERS = ("mean", "cluster", "rerank")
DELTA = 0.5
SAME = 0.25  # squared distance below which a phrase is a label's name: "airplanes" is 0.22 from "airplane"
NEIGHBOURS = 3  # labels that one phrase can mean, as in ImageRAG
CLUSTER_DISTANCE, CLUSTER_FEWEST = 0.3, 2  # DBSCAN's, on unit vectors, as in ImageRAG
SHRUNKEN = 0.5  # of the covariance within labels; 0.2 and 0.35 do as well
RERANKED = 3  # images most like the phrase, as in ImageRAG
SHARED = 0.1  # of a label's images: labels that share so many are seen together, and do not exclude each other


class Gallery:
    """labels: the names of a memory, in the order of their first entries; each has a text embedding and a prototype.

    delta: squared distance within which a phrase means a label. Of unit vectors it is 2 - 2 x cosine, so 0.5 is a cosine of
    0.75 (ImageRAG's thresholds are such distances too, one for each gallery).
    """

    def __init__(self, memory: VisualNameMemory, delta: float = DELTA):
        if not len(memory):
            raise EvcapError("the gallery holds no images; build one with memory/build_gallery.py")
        self.memory, self.delta = memory, delta
        places = defaultdict(list)
        for place, name in enumerate(memory.names):
            places[name].append(place)
        self.labels = list(places)
        self._entries = {name: np.array(rows) for name, rows in places.items()}

    @classmethod
    def open(cls, named: str | Path, encoder: str) -> Gallery:
        """The gallery in a folder, named as FOLDER or, where another distance makes a phrase a label, as FOLDER=DELTA.

        Raises EvcapError with one line when it is missing, damaged, made by another encoder, or the distance is none.
        """
        folder, equals, delta = str(named).rpartition("=")
        if not equals or Path(named).is_dir():
            return cls(VisualNameMemory.open(named, encoder))
        try:
            distance = float(delta)
        except ValueError:
            distance = -1.0
        if not 0 <= distance <= 4:
            raise EvcapError(f"gallery {named}: what follows = must be a squared distance of 0 to 4, as in mine=0.5")
        return cls(VisualNameMemory.open(folder, encoder), distance)

    @cached_property
    def texts(self) -> np.ndarray:
        """(L,384) float32 unit vectors: the labels as sentences, by all-MiniLM-L6-v2, which ImageRAG keys its labels by too."""
        return cached_sentences(self.labels).numpy()

    def keys(self, label: str) -> np.ndarray:
        """(n,D) float32 unit vectors of a label's images."""
        return np.asarray(self.memory.keys[self._entries[label]], np.float32)

    @cached_property
    def prototypes(self) -> np.ndarray:
        """(L,D) float32 unit vectors: the mean of each label's images."""
        return _unit(np.stack([self.keys(label).mean(0) for label in self.labels]))

    def similarity(self, keys: np.ndarray, label_vectors: np.ndarray) -> np.ndarray:
        """(n,L) float32: how much tiles with these keys (n,D) look like each label (`label_vectors` (L,D)): cosines, from
        the middle of all labels, in the space where the images of a label spread alike in all directions (Fisher 1936).

        Of plain cosines most is light, season and sharpness, in which the images of a label differ as well.
        """
        return _product(self._whitened(keys), label_vectors.T)

    def label_vectors(self, how: str, phrases: np.ndarray | None = None) -> np.ndarray:
        """(L,D) float32 unit vectors, one for each label, see `reduce`, in the space of `similarity`.

        phrases (L,D): the labels, read by the tower.
        """
        rows = [None] * len(self.labels) if phrases is None else phrases
        return self._whitened(np.stack([self.reduce(label, how, row) for label, row in enumerate(rows)]))

    def _whitened(self, rows: np.ndarray) -> np.ndarray:
        return _unit(_product(rows - self._centre, self._whitening))

    @cached_property
    def _centre(self) -> np.ndarray:
        """(D,): the middle of the labels; of one label there is none."""
        return self.prototypes.mean(0) * (len(self.labels) > 1)

    @cached_property
    def _whitening(self) -> np.ndarray:
        """(D,D) float32: inverse root of the covariance within labels, half of it brought to its mean variance, for there are
        fewer images than would tell all of it."""
        rows = [self.keys(label) for label in self.labels]
        apart = np.concatenate([keys - keys.mean(0) for keys in rows])
        covariance = apart.T @ apart / len(apart)
        variance = np.trace(covariance) / len(covariance)
        if not variance:  # no label has two images
            return np.eye(len(covariance), dtype=np.float32)
        values, vectors = np.linalg.eigh((1 - SHRUNKEN) * covariance + SHRUNKEN * variance * np.eye(len(covariance)))
        return (vectors / np.sqrt(values) @ vectors.T).astype(np.float32)

    def match(self, phrase: np.ndarray) -> list[int]:
        """The labels that a phrase (384,) can mean, nearest first: at most three, whose squared distance is at most `delta`.

        A phrase that is a label's own name, or its plural, means that one only: not the other two kinds of "residential area".
        """
        distance = self._distance(phrase)
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        return [int(label) for label in nearest if distance[label] <= self._reach(distance)]

    def _distance(self, phrase: np.ndarray) -> np.ndarray:
        return 2 - 2 * self.texts @ phrase

    def _reach(self, distance: np.ndarray) -> float:
        return min(self.delta, SAME) if distance.min() <= SAME else self.delta

    def rivals(self, phrase: np.ndarray) -> np.ndarray:
        """(L,) bool: the labels that a tile of this phrase is not expected to show: not those it can mean, nor those of which
        the gallery says that they are seen together with them."""
        distance = self._distance(phrase)
        own = distance <= self._reach(distance)
        together = self._together[own].any(0) if own.any() else np.zeros(len(self.labels), bool)
        return ~(own | together)

    @cached_property
    def _together(self) -> np.ndarray:
        """(L,L) bool: whether two labels share images."""
        pictures = [{self.memory.images[i] for i in self._entries[label]} for label in self.labels]
        shared = np.array([[len(a & b) for b in pictures] for a in pictures])
        counts = np.diag(shared)
        return shared > SHARED * np.minimum(counts[:, None], counts[None, :])

    def reduce(self, label: int, how: str, phrase: np.ndarray | None = None) -> np.ndarray:
        """(D,) float32 unit vector that stands for a label. how: "mean" of its images; "cluster": mean of the largest cluster
        (DBSCAN), of all if there is none; "rerank": mean of the three images nearest to `phrase` (D,).

        Raises EvcapError for another word.
        """
        if how not in REDUCERS:
            raise EvcapError(f"unknown reduction '{how}' of a gallery, known: {', '.join(REDUCERS)}")
        if how == "mean":
            return self.prototypes[label]
        keys = self.keys(self.labels[label])
        kept = _largest_cluster(keys) if how == "cluster" else np.argsort(-(keys @ phrase), kind="stable")[:RERANKED]
        return _unit(keys[kept].mean(0))


def _largest_cluster(keys: np.ndarray) -> np.ndarray:
    """Numbers of the members of DBSCAN's largest cluster (Ester et al. 1996), of all if all are noise.

    By hand: scikit-learn would be 40 MB for the connected parts of one small matrix.
    """
    near = np.linalg.norm(keys[:, None] - keys[None], axis=-1) <= CLUSTER_DISTANCE
    core = near.sum(1) >= CLUSTER_FEWEST
    label = np.full(len(keys), -1)
    for seed in np.flatnonzero(core):
        if label[seed] < 0:
            members = np.zeros(len(keys), bool)
            members[seed], front = True, near[seed] & core
            while (front & ~members).any():
                members |= front
                front = near[members & core].any(0)
            label[members | near[members & core].any(0)] = seed
    found, sizes = np.unique(label[label >= 0], return_counts=True)
    return np.flatnonzero(label == found[np.argmax(sizes)]) if len(found) else np.arange(len(keys))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _product(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """By torch, as all products around it: in turn with NumPy's the threads of either library wait for the other's."""
    return (torch.from_numpy(rows) @ torch.from_numpy(columns)).numpy()
