"""Dense captioning: the mean average precision over thresholds of IoU and of METEOR, as Visual Genome's protocol has it.

Ground truth whose boxes overlap is merged first, its phrases are references of one box then. Boxes are x1, y1, x2, y2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evcap.errors import EvcapError
from evcap.raster.geo import iou

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MERGED = 0.7  # IoU from which boxes of the ground truth are one
RECALLS = np.arange(100) / 100

# METEOR, 0 to 1, of each caption against its own references
Meteor = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]


@dataclass(frozen=True)
class Matches:
    """The predictions of one image, best first, against its merged ground truth.

    order (n,): where each stood in what was given. scores (n,). iou (n,): with the truth of largest IoU. truth (n,): the
    number of that truth, -1 where none is touched. free (n,) bool: no better prediction had taken that truth.
    truths: how many there are.
    """

    order: np.ndarray
    scores: np.ndarray
    iou: np.ndarray
    truth: np.ndarray
    free: np.ndarray
    truths: int


@dataclass(frozen=True)
class DenseImage:
    """One image: predicted boxes (n,4), their scores (n,) and captions (n), true boxes (m,4) and the phrases of each (m)."""

    boxes: np.ndarray
    scores: np.ndarray
    captions: Sequence[str]
    truth_boxes: np.ndarray
    truth_phrases: Sequence[Sequence[str]]


@dataclass(frozen=True)
class DenseScores:
    """ap (5,6): average precision, 0 to 1, by IOU_THRESHOLDS and METEOR_THRESHOLDS. detection_ap (5,): whatever the captions
    say. truths: the merged boxes that were to be found."""

    ap: np.ndarray
    detection_ap: np.ndarray
    truths: int

    @property
    def mean(self) -> float:
        """The mean of `ap`: what is published as dense captioning mAP."""
        return float(self.ap.mean())

    @property
    def detection_mean(self) -> float:
        """The mean of `detection_ap`."""
        return float(self.detection_ap.mean())


def score_dense_captions(images: Sequence[DenseImage], meteor: Meteor) -> DenseScores:
    """Scores of the captions and boxes predicted for images.

    meteor: (captions, references of each) -> a value each, called once with all that have a reference, as
    `evcap.evaluation.caption_metrics.meteor_each` is. Images without a prediction are left out with their truth, as in
    the published protocol. Raises EvcapError when no image has both a prediction and a true box.
    """
    images = [image for image in images if len(image.boxes)]
    matches, values, said, references, places = [], [], [], [], []
    for number, image in enumerate(images):
        merged, groups = merge_boxes(image.truth_boxes)
        found = match(image.boxes, image.scores, merged)
        phrases = [[phrase for member in group for phrase in image.truth_phrases[member]] for group in groups]
        matches.append(found)
        values.append(np.zeros(len(found.order)))
        for row in np.flatnonzero(found.free):
            said.append(image.captions[found.order[row]])
            references.append(phrases[found.truth[row]])
            places.append((number, row))
    for (number, row), value in zip(places, meteor(said, references) if said else (), strict=True):
        values[number][row] = value
    return average_precisions(matches, values)


def merge_boxes(boxes: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Boxes (m,4) merged where their IoU is at least MERGED: (merged boxes (k,4), the members of each by their numbers).

    Again and again the box with most others near it is taken with them, out of those that are left; the merged box is their
    mean.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    near = iou(boxes, boxes) >= MERGED
    np.fill_diagonal(near, True)  # a box without area too is its own neighbour
    merged, groups = [], []
    while near.any():
        members = np.flatnonzero(near[near.sum(1).argmax()])
        merged.append(boxes[members].mean(0))
        groups.append(members)
        near[members] = False
        near[:, members] = False
    return np.array(merged).reshape(-1, 4), groups


def match(boxes: np.ndarray, scores: np.ndarray, truth_boxes: np.ndarray) -> Matches:
    """Predictions (n,4) with scores (n,) against (merged) true boxes (m,4), one truth for one prediction, best score first."""
    boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)
    order = np.argsort(-scores, kind="stable")
    overlaps = iou(boxes[order], np.asarray(truth_boxes, np.float64).reshape(-1, 4))
    if not overlaps.shape[1]:
        overlaps = np.zeros((len(order), 1))  # nothing is there to be touched
    best = overlaps.max(1)
    truth = np.where(best > 0, overlaps.argmax(1), -1)
    free = np.zeros(len(order), bool)
    free[np.unique(truth, return_index=True)[1]] = True  # the first, that is the best, of those with the same truth
    return Matches(order, scores[order], best, truth, free & (truth >= 0), len(truth_boxes))


def average_precisions(matches: Sequence[Matches], meteor: Sequence[np.ndarray]) -> DenseScores:
    """Scores from the matches of all images and METEOR, 0 to 1, of each prediction (n,), in the order of its match."""
    truths = sum(one.truths for one in matches)
    if not truths:
        raise EvcapError("there is nothing to score: no image has both a predicted and a true box")
    order = np.argsort(-np.concatenate([one.scores for one in matches]), kind="stable")
    free, overlap = (np.concatenate([getattr(one, key) for one in matches])[order] for key in ("free", "iou"))
    value = np.concatenate([np.asarray(one, np.float64) for one in meteor])[order]
    located = [free & (overlap >= least) for least in IOU_THRESHOLDS]
    ap = [[_average_precision(right & (value > least), truths) for least in METEOR_THRESHOLDS] for right in located]
    return DenseScores(np.array(ap), np.array([_average_precision(right, truths) for right in located]), truths)


def _average_precision(right: np.ndarray, truths: int) -> float:
    """The mean over RECALLS of the best precision at that recall or more; `right` (n,) bool, best score first."""
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(found / truths, RECALLS)  # the first prediction with which the recall is reached
    return float(np.append(best, 0.0)[first].mean())
