"""Scores of regions against the recording of the DynRefer release, formulas of their own and cases worked out by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from places import GOLDEN
from safetensors.numpy import load_file

from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import score
from evcap.evaluation.regions import (
    attribute_map,
    attribute_precisions,
    class_accuracy,
    class_box_ap,
    find_boxes,
    groups_of,
    means_by_type,
    score_region_captions,
)


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "dynrefer_scores/tensors.safetensors")


@pytest.fixture(scope="module")
def meta():
    return json.loads((GOLDEN / "dynrefer_scores/meta.json").read_text())


def test_attributes_of_the_release(recorded, meta):
    found = attribute_map(recorded["ovad.pred"], recorded["ovad.labels"], meta["strings"]["ovad_freq_set"])
    assert found == pytest.approx(meta["results"]["ovad_map_percent"], abs=1e-6)


def test_classes_of_the_release(recorded, meta):
    image, x, y, width, height = recorded["region_acc.boxes"].T
    logits, labels = recorded["region_acc.logits"], recorded["region_acc.labels"]
    expected = meta["results"]["region_acc"]
    assert class_accuracy(logits, labels, width * height)["all"] == pytest.approx(expected["accuracy"], abs=1e-6)
    boxes = np.stack([x, y, x + width, y + height], 1)
    assert class_box_ap(boxes, image, logits, labels) == pytest.approx(expected["box_ap"], abs=1e-6)


def area_under_steps(scores, positive) -> float:
    """Average precision as the sum of precision times the step of recall over falling thresholds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        recall = sum(taken) / sum(positive)
        total += sum(taken) / len(taken) * (recall - before)
        before = recall
    return total


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(
    arrays(np.float64, (n, 3), elements=st.integers(-3, 3)), arrays(np.int64, (n, 3), elements=st.integers(-1, 1))
)))  # fmt: skip
def test_average_precision_step_by_step(case):
    scores, labels = case
    found = attribute_precisions(scores, labels)
    expected = []
    for column in range(3):
        known = labels[:, column] >= 0
        positive = (labels[known, column] == 1).tolist()
        expected.append(area_under_steps(scores[known, column].tolist(), positive) if any(positive) else math.nan)
    assert found == pytest.approx(np.array(expected), abs=1e-12, nan_ok=True)
    means = attribute_map(scores, labels, ["head", "tail", "head"])
    assert means["all"] == pytest.approx(100 * np.mean([e for e in expected if e == e] or [math.nan]), nan_ok=True)
    assert means["tail"] == pytest.approx(100 * expected[1], nan_ok=True)
    assert list(means) == ["all", "head", "tail"]


def test_attribute_scores_must_be_numbers():
    with pytest.raises(EvcapError, match="not numbers"):
        attribute_precisions(np.array([[math.nan]]), np.array([[1]]))
    with pytest.raises(ValueError, match="expected the same"):
        attribute_precisions(np.zeros((2, 3)), np.zeros((3, 2)))


def test_accuracy_by_size():
    logits = np.eye(3)[[0, 1, 2, 0]]
    found = class_accuracy(logits, np.array([0, 1, 0, 0]), np.array([31.0**2, 32.0**2, 96.0**2, 10.0]))
    assert found == {"all": 0.75, "small": 1.0, "large": 0.0, "medium": 1.0}
    assert list(class_accuracy(logits[:1], [0], [4.0])) == ["all", "small"]


def test_box_ap_by_hand():
    """Two classes, two boxes each: one class all right; of the other only the lower-scored box is, after a wrong one."""
    boxes = np.array([[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50], [300, 0, 350, 50]])
    logits = np.array([[5, 0], [4, 0], [9, 0], [0, 1]])
    # class 0: 9 wrong, 5 and 4 right -> precision 1/2, 2/3 -> at all recalls 2/3; class 1: recall 1/2 at precision 1
    expected = (2 / 3 + 51 / 101) / 2
    assert class_box_ap(boxes, [7] * 4, logits, [0, 0, 1, 1]) == pytest.approx(expected, abs=1e-9)
    assert class_box_ap(boxes, [1, 2, 3, 4], np.eye(4), [0, 1, 2, 3]) == pytest.approx(1)


BOX = st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.lists(st.tuples(st.lists(st.tuples(st.integers(0, 2), BOX), min_size=1, max_size=5), BOX), min_size=1, max_size=4))
def test_boxes_found_by_a_phrase(phrases):
    scores = [np.array([score for score, _ in rows], float) for rows, _ in phrases]
    boxes = [np.array([box for _, box in rows], float) for rows, _ in phrases]
    right, chance = find_boxes(scores, boxes, [np.array([truth], float) for _, truth in phrases])

    def fits(a, b):
        common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        return 2 * common >= (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common

    for number, (rows, truth) in enumerate(phrases):
        best = [fits(box, truth) for score, box in rows if score == max(s for s, _ in rows)]
        assert right[number] == pytest.approx(sum(best) / len(best))
        assert chance[number] == pytest.approx(sum(fits(box, truth) for _, box in rows) / len(rows))
    flat = find_boxes([np.zeros(len(s)) for s in scores], boxes, [np.array([t], float) for _, t in phrases])
    assert flat[0] == pytest.approx(flat[1])  # a model that tells nothing apart


def test_a_phrase_of_several_boxes():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 0, 50, 10]])
    right, chance = find_boxes([[0.1, 0.9, 0.3, 0.2]], [boxes], [boxes[:2]])
    assert (right.tolist(), chance.tolist()) == ([1.0], [0.5])
    for scores in ([0.1, 0.9], [0.1, 0.9, math.nan, 0.2]):
        with pytest.raises(ValueError, match="phrase 0: expected a number for each of 4 boxes"):
            find_boxes([scores], [boxes], [boxes])


def test_by_type():
    types = [("people", "other"), (), ("people", "people"), ("animals",)]
    assert groups_of(types) == {"animals": [3], "other": [0], "people": [0, 2]}
    assert means_by_type([1.0, 0.0, 0.5, 0.5], types) == {"overall": 0.5, "animals": 0.5, "other": 1.0, "people": 0.75}


def test_captions_of_regions(without_meteor):
    """Two regions of one image are scored apart; a type is a set of its own."""
    captions = ["a man in a red shirt", "a dog", "two women"]
    references = [["a man", "a man in a red shirt"], ["a brown dog"], ["two women talking"]]
    found = score_region_captions(captions, references, [["people", "clothing"], ["animals"], ["people"]])
    assert list(found) == ["overall", "animals", "clothing", "people"]
    assert [row.pop("regions") for row in found.values()] == [3, 1, 1, 2]
    assert found["overall"] == score(dict(enumerate(captions)), dict(enumerate(references)))
    assert found["people"] == score({0: captions[0], 2: captions[2]}, {0: references[0], 2: references[2]})
    assert list(score_region_captions(captions, references)) == ["overall"]
    with pytest.raises(ValueError, match="2 captions, 3 references"):
        score_region_captions(captions[:2], references)
    with pytest.raises(EvcapError, match="1 predictions have no reference caption"):
        score_region_captions(captions, [*references[:2], []])
