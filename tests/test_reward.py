"""CIDEr as a reward against pycocoevalcap's CIDEr of a whole corpus."""

import pytest
import torch
from pycocoevalcap.cider.cider import Cider

from evcap.reward import CiderReward

CORPUS = [
    ["a dog runs over grass", "a brown dog runs", "dog on the grass"],
    ["two men ride bikes", "men on bikes in a street", "two cyclists on a road"],
    ["a child eats an apple", "a child with an apple", "the child is eating"],
    ["a red bus on a street", "the bus drives down the road", "a bus"],
]
CAPTIONS = ["a dog on the grass", "two men on bikes", "a man eats a dog", "a red bus on a street"]


def test_rewards_equal_the_corpus_score():
    """The document frequencies are the corpus's, though only a few pictures are scored at a time."""
    _, expected = Cider().compute_score(dict(enumerate(CORPUS)), {i: [c] for i, c in enumerate(CAPTIONS)})
    reward = CiderReward(CORPUS)
    found = [reward([[caption]], [truth]).item() for caption, truth in zip(CAPTIONS, CORPUS, strict=True)]
    assert found == pytest.approx(list(expected), rel=1e-5) and max(found) > 1
    together = reward([[c, "nothing"] for c in CAPTIONS], CORPUS)
    assert together.shape == (4, 2) and together.dtype == torch.float32
    assert together[:, 0].tolist() == pytest.approx(found) and not together[:, 1].any()


def test_case_and_punctuation_do_not_count():
    reward = CiderReward(CORPUS)
    plain, written = reward([["a dog runs over grass", "A dog, runs over grass."]], CORPUS[:1])[0].tolist()
    assert plain == pytest.approx(written) and plain > 1
