"""evcap/evaluation/places.py against the definitions, box by box."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.evaluation.places import accuracy, finds, mean_absolute_error, recall_at

BOX = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 40)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.integers(1, 6), st.lists(BOX, max_size=8), st.lists(BOX, min_size=1, max_size=5), st.integers(1, 1600))
def test_recall_box_by_box(k, boxes, targets, largest):
    found = 0
    for x1, y1, x2, y2 in targets:
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        hits = [b[0] <= x < b[2] and b[1] <= y < b[3] and (b[2] - b[0]) * (b[3] - b[1]) <= largest for b in boxes]
        found += any(hits[:k])
    most = min(k, len(targets))
    assert recall_at(k, boxes, targets, largest) == min(found, most) / most


def test_examples():
    target = (40, 40, 60, 60)
    assert recall_at(1, [(0, 0, 100, 100)], [target], 0.25 * 200 * 200)
    assert not recall_at(1, [(0, 0, 100, 101)], [target], 0.25 * 200 * 200)  # more than a quarter of the image
    assert not recall_at(1, [(0, 0, 50, 100)], [target], math.inf)  # the centre lies on its open side
    assert recall_at(2, [(0, 0, 9, 9), (50, 50, 60, 60)], target, math.inf) == 1  # a single target as it is
    assert recall_at(5, [(45, 45, 55, 55)] * 5, [target, (0, 0, 9, 9)], math.inf) == 0.5  # one target, found five times
    assert recall_at(5, [], [target], math.inf) == 0
    assert finds([], [target], 1).shape == (0, 1)


@pytest.mark.parametrize("k, targets", [(0, [(0, 0, 1, 1)]), (1, [])])
def test_recall_needs_a_target(k, targets):
    with pytest.raises(ValueError, match="a target"):
        recall_at(k, [(0, 0, 9, 9)], targets, 100)


def test_answers():
    assert accuracy([True, False, None, 3], [True, True, False, 3]) == 0.5
    assert mean_absolute_error([3, 0, 5.5], [4, 2, 5]) == pytest.approx((1 + 2 + 0.5) / 3)
    with pytest.raises(ValueError):
        accuracy([True], [True, False])
    assert isinstance(accuracy([1], [1]), float) and isinstance(mean_absolute_error(np.array([1]), np.array([1])), float)
