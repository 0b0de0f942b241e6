"""Measures of what was found and answered in large images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def finds(boxes, targets, largest: float) -> np.ndarray:
    """Which box finds which target: (R,T) bool for boxes (R,4) and targets (T,4), x1,y1,x2,y2 in pixels, half-open.

    A box finds a target whose centre it contains, if its own area is at most `largest` square pixels: a box around
    everything shows nobody where to look.
    """
    boxes, targets = (np.asarray(rows, np.float64).reshape(-1, 4) for rows in (boxes, targets))
    centres = (targets[:, :2] + targets[:, 2:]) / 2
    inside = ((boxes[:, None, :2] <= centres) & (centres < boxes[:, None, 2:])).all(2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return inside & (area <= largest)[:, None]


def recall_at(k: int, boxes, targets, largest: float) -> float:
    """The share of targets that the first k boxes find (`finds`), of the k that k boxes can be expected to find: 0 to 1.

    boxes: (R,4), best first; R may be below k. With one target it is 1 or 0; of 7 targets 5 boxes that find one each have 1.
    """
    targets = np.asarray(targets, np.float64).reshape(-1, 4)
    most = min(k, len(targets))
    if most < 1:
        raise ValueError("recall needs k of 1 or more and a target")
    return min(int(finds(boxes, targets, largest)[:k].any(0).sum()), most) / most


def accuracy(answers: Sequence, truths: Sequence) -> float:
    """The share of answers that are the truth: 0 to 1. An answer None is wrong."""
    return float(np.mean([answer == truth for answer, truth in zip(answers, truths, strict=True)]))


def mean_absolute_error(counts: Sequence[float], truths: Sequence[float]) -> float:
    """The mean distance of counts from the true ones."""
    return float(np.mean([abs(count - truth) for count, truth in zip(counts, truths, strict=True)]))
