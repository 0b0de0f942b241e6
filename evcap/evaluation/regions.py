"""Scores of what is said about given regions: captions, classes, attributes; and of regions found by a phrase.

Boxes are (n,4) float, x1, y1, x2, y2 in pixels. Dense captioning, where boxes are predicted too, is in `dense_captioning`.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import score
from evcap.raster.geo import areas, iou

OVERALL = "overall"
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's bounds of small, medium and large objects
FOUND = 0.5  # IoU from which a box is the one that was meant


def score_region_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], types: Sequence[Sequence[str]] | None = None
) -> dict[str, dict[str, float]]:
    """Scores in percent, as `caption_metrics.score` has them, and the number of "regions": {"overall" or type: scores}.

    Each region is scored as if it were an image, against its own references. types: the kinds of thing that each region
    is said to be, of which it may have several or none; each type is scored as if it were a set of its own. Raises
    EvcapError as `caption_metrics.score` does.
    """
    rows = {OVERALL: list(range(len(captions)))} | groups_of(types or ())
    texts = dict(enumerate(references))
    if len(captions) != len(texts) or types is not None and len(types) != len(texts):
        raise ValueError(f"{len(captions)} captions, {len(texts)} references, {len(types or texts)} types")
    scores = {name: score({row: captions[row] for row in numbers}, texts) for name, numbers in rows.items()}
    return {name: scores[name] | {"regions": float(len(numbers))} for name, numbers in rows.items()}


def groups_of(types: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """{type: the numbers of the regions that have it}, types in alphabetical order."""
    groups = defaultdict(list)
    for number, row in enumerate(types):
        for name in dict.fromkeys(row):
            groups[name].append(number)
    return dict(sorted(groups.items()))


def attribute_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each attribute, 0 to 1: (A,), nan for one that no region is known to have.

    scores (N,A): the higher, the more likely. labels (N,A): 1 has it, 0 has it not, -1 unknown, which is left out.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores are {scores.shape}, labels {labels.shape}, expected the same (regions, attributes)")
    if np.isnan(scores).any():
        raise EvcapError("attributes cannot be ranked: some scores are not numbers")
    columns = [
        _average_precision(s[known], y[known] == 1) for s, y, known in zip(scores.T, labels.T, labels.T >= 0, strict=True)
    ]
    return np.array(columns)


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean over the positives of the precision among all that score at least as high: of equal scores none comes first."""
    if not positive.any():
        return float("nan")
    ranked, ranked_positive = np.sort(scores), np.sort(scores[positive])
    right = len(ranked_positive) - np.searchsorted(ranked_positive, ranked_positive)
    taken = len(ranked) - np.searchsorted(ranked, ranked_positive)
    return float((right / taken).mean())


def attribute_map(scores: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Mean average precision in percent over all attributes ("all") and those of each group: OVAD's head, medium and tail.

    scores, labels: as in `attribute_precisions`; groups: (A,) the group of each attribute. Attributes that no region is
    known to have do not count; a group of such alone has nan.
    """
    precisions, groups = attribute_precisions(scores, labels), np.asarray(groups)
    counted = ~np.isnan(precisions)
    parts = {"all": counted} | {str(name): counted & (groups == name) for name in dict.fromkeys(groups)}
    return {name: 100 * float(precisions[part].mean()) if part.any() else float("nan") for name, part in parts.items()}


def class_accuracy(logits: np.ndarray, labels: np.ndarray, box_areas: np.ndarray) -> dict[str, float]:
    """The share, 0 to 1, of regions whose highest logit is that of their class: "all", and by COCO's sizes of objects.

    logits (N,C), labels (N,) int, box_areas (N,) in square pixels of the photo as it was taken. A size that no region has is
    left out.
    """
    right = np.asarray(logits).argmax(1) == np.asarray(labels)
    box_areas = np.asarray(box_areas)
    sizes = {"all": box_areas >= 0, "small": box_areas < SMALL, "large": box_areas >= LARGE}
    sizes["medium"] = ~sizes["small"] & ~sizes["large"]
    return {name: float(right[chosen].mean()) for name, chosen in sizes.items() if chosen.any()}


def class_box_ap(boxes: np.ndarray, images: Sequence[int], logits: np.ndarray, labels: np.ndarray) -> float:
    """COCO's box AP, 0 to 1, by pycocotools, of classes predicted for given boxes.

    boxes (N,4), images (N,): the id of each box's image, logits (N,C), labels (N,) int. Every box is predicted once, as the
    class of its highest logit, with that logit as its score.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes, logits = np.asarray(boxes, np.float64), np.asarray(logits, np.float64)
    rows = [
        {"id": number, "image_id": int(image), "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0}
        for number, (image, (x1, y1, x2, y2), area) in enumerate(
            zip(images, boxes.tolist(), areas(boxes).tolist(), strict=True), start=1
        )  # from 1: COCOeval takes 0 for "no match"
    ]
    truth, predicted = COCO(), COCO()
    shared = {"images": [{"id": image} for image in sorted({row["image_id"] for row in rows})]}
    shared["categories"] = [{"id": number} for number in range(logits.shape[1])]
    truths = [row | {"category_id": int(label)} for row, label in zip(rows, labels, strict=True)]
    said = zip(rows, logits.argmax(1), logits.max(1), strict=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth.dataset = shared | {"annotations": truths}
        predicted.dataset = shared | {
            "annotations": [row | {"category_id": int(best), "score": float(top)} for row, best, top in said]
        }
        truth.createIndex()
        predicted.createIndex()
        evaluation = COCOeval(truth, predicted, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def find_boxes(
    scores: Sequence[np.ndarray], boxes: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How well phrases find their box among those of their image: (right (P,), by chance (P,)), 0 to 1 each.

    Of each phrase: scores (n,) of the image's boxes (n,4), and its true boxes (m,4). The box of the highest score is right if
    its IoU with a true one is at least FOUND; of k boxes that share the highest score each counts for 1/k, so that a model
    that tells nothing apart does as well as chance. Means over phrases, or over those of a type, are the accuracies.
    """
    right, chance = [], []
    for row, (values, choices, meant) in enumerate(zip(scores, boxes, truths, strict=True)):
        values = np.asarray(values, np.float64)
        hits = (iou(choices, meant) >= FOUND).any(1)
        if values.shape != hits.shape or not len(hits) or np.isnan(values).any():
            raise ValueError(f"phrase {row}: expected a number for each of {len(hits)} boxes, found {values.shape}")
        right.append(hits[values == values.max()].mean())
        chance.append(hits.mean())
    return np.array(right), np.array(chance)


def means_by_type(values: np.ndarray, types: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """The mean of values (N,) over all ("overall") and over those of each type, of which each may have several."""
    values = np.asarray(values, np.float64)
    rows = {OVERALL: list(range(len(values)))} | groups_of(types)
    return {name: float(values[numbers].mean()) for name, numbers in rows.items()}
