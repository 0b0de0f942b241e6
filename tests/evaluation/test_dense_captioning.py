"""Dense captioning scores against the recording of the DynRefer release, and against the protocol written as plain loops."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN
from safetensors.numpy import load_file

from evcap.errors import EvcapError
from evcap.evaluation import caption_metrics
from evcap.evaluation.caption_metrics import meteor_each
from evcap.evaluation.dense_captioning import (
    IOU_THRESHOLDS,
    METEOR_THRESHOLDS,
    DenseImage,
    average_precisions,
    match,
    merge_boxes,
    score_dense_captions,
)


def test_the_release():
    folder = GOLDEN / "dynrefer_scores"
    recorded = load_file(folder / "tensors.safetensors")
    expected = json.loads((folder / "meta.json").read_text())["results"]["densecap"]
    names = sorted({key.rsplit(".", 1)[0] for key in recorded if key.startswith("densecap.img")})
    images = [{key: recorded[f"{name}.{key}"] for key in ("boxes", "scores", "meteor", "gt_boxes")} for name in names]
    matches = [match(one["boxes"], one["scores"], merge_boxes(one["gt_boxes"])[0]) for one in images]
    scores = average_precisions(matches, [one["meteor"][m.order] for one, m in zip(images, matches, strict=True)])
    assert scores.ap == pytest.approx(recorded["densecap.ap"], abs=1e-6)
    assert scores.detection_ap == pytest.approx(recorded["densecap.det_ap"], abs=1e-6)
    assert (scores.mean, scores.detection_mean) == pytest.approx((expected["map"], expected["detmap"]), abs=1e-6)
    assert scores.truths == expected["merged_gt_total"]


def overlap(a, b) -> float:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(area) - common) if common else 0.0


def merged_by_loops(boxes: list) -> list[list[int]]:
    left, groups = list(range(len(boxes))), []
    while left:
        near = [[j for j in left if i == j or overlap(boxes[i], boxes[j]) >= 0.7] for i in left]
        groups.append(max(near, key=len))
        left = [i for i in left if i not in groups[-1]]
    return groups


def by_loops(images, least_iou: float, least_meteor: float) -> float:
    """Average precision at one pair of thresholds. images: [(predictions [(score, box, meteor)], true boxes)]."""
    rows, truths = [], 0
    for predictions, truth in images:
        if not predictions:
            continue
        groups = merged_by_loops(truth)
        merged = [[sum(truth[i][k] for i in group) / len(group) for k in range(4)] for group in groups]
        truths += len(merged)
        used = set()
        for score, box, meteor in sorted(predictions, key=lambda row: -row[0]):
            overlaps = [overlap(box, other) for other in merged]
            best = max(range(len(merged)), key=overlaps.__getitem__, default=None)
            fits = best is not None and overlaps[best] > 0 and best not in used
            if fits:
                used.add(best)
            rows.append((score, fits and overlaps[best] >= least_iou and meteor > least_meteor))
    rows.sort(key=lambda row: -row[0])
    points, right = [], 0
    for taken, (_, ok) in enumerate(rows, 1):
        right += ok
        points.append((right / truths, right / taken))
    reached = [[precision for recall, precision in points if recall >= step / 100] for step in range(100)]
    return sum(max(values, default=0) for values in reached) / 100


BOX = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
PREDICTIONS = st.lists(st.tuples(st.integers(0, 4), BOX, st.sampled_from([0.0, 0.05, 0.07, 0.2, 0.9])), max_size=6)


@given(st.lists(st.tuples(PREDICTIONS, st.lists(BOX, max_size=5)), min_size=1, max_size=4))
def test_the_protocol_by_loops(images):
    given_images = [
        DenseImage(
            np.array([row[1] for row in predictions]).reshape(-1, 4),
            np.array([row[0] for row in predictions]),
            [str(row[2]) for row in predictions],
            np.array(truth).reshape(-1, 4),
            [[f"{number} {k}"] for k in range(len(truth))],
        )
        for number, (predictions, truth) in enumerate(images)
    ]

    def meteor(captions, references):
        for row in references:  # all of one image, as many as were merged
            assert row and len({text.split()[0] for text in row}) == 1
        return [float(caption) for caption in captions]

    if not any(predictions and truth for predictions, truth in images):
        with pytest.raises(EvcapError, match="nothing to score"):
            score_dense_captions(given_images, meteor)
        return
    scores = score_dense_captions(given_images, meteor)
    expected = [[by_loops(images, least, meteor) for meteor in METEOR_THRESHOLDS] for least in IOU_THRESHOLDS]
    assert scores.ap == pytest.approx(np.array(expected), abs=1e-12)
    assert scores.detection_ap == pytest.approx(np.array([by_loops(images, least, -1) for least in IOU_THRESHOLDS]), abs=1e-12)


def test_merged_boxes_pool_their_phrases():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 9], [5, 5, 5, 5]])
    merged, groups = merge_boxes(boxes)
    assert [group.tolist() for group in groups] == [[0, 2], [1], [3]]
    assert merged[0].tolist() == [0, 0, 10, 9.5]
    asked = []

    def meteor(captions, references):
        asked.extend(zip(captions, references, strict=True))
        return [0.3] * len(captions)

    phrases = [["a dog", "the dog"], ["a cat"], ["one dog"], ["a dot"]]
    predicted = [[50, 50, 60, 60], [0, 0, 10, 10]]
    image = DenseImage(predicted, [0.9, 0.1], ["nothing", "dog"], boxes, phrases)
    scores = score_dense_captions([image], meteor)
    assert asked == [("dog", ["a dog", "the dog", "one dog"])]
    assert scores.truths == 3
    # recall 1/3 is reached with precision 1/2: at 34 of 100 recalls
    assert (scores.mean, scores.detection_mean) == pytest.approx((0.17, 0.17))


def test_meteor_of_each_caption(monkeypatch):
    """By the Java program, called once; a caption equal to a reference is worth 1."""
    calls = []
    whole = caption_metrics._meteor_scores
    monkeypatch.setattr(caption_metrics, "_meteor_scores", lambda *texts: calls.append(1) or whole(*texts))
    values = meteor_each(["a brown dog", "a dog", "trees"], [["a brown dog", "an animal"], ["the lawn"], ["a tree"]])
    assert values[0] == pytest.approx(1) and values[1] < 0.3 and 0 < values[2] < 1 and calls == [1]
