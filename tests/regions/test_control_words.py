"""Control words and cleaned captions against the recording of the DynRefer release and by the rules, one by one."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN

from evcap.language.parts_of_speech import tag_words
from evcap.regions.control_words import caption_phrases, clean_caption, control_words, dropped, training_words

META = json.loads((GOLDEN / "dynrefer_scores/meta.json").read_text())
RECORDED = META["control_words"]
TAGGED = {row["caption"]: [tuple(pair) for pair in row["pos"]] for row in RECORDED["train"]}


def as_set(text: str) -> set[str]:
    assert text.endswith("|")
    return set(text.removesuffix("|").split(","))


@pytest.mark.parametrize("row", RECORDED["train"], ids=lambda row: row["caption"])
def test_training_words_of_the_release(row):
    tags = [META["strings"]["tags"][n] for n in (*row["tag_indices_set1"], *row["tag_indices_set2"])]
    words = training_words(row["caption"], tags, lambda words: TAGGED[" ".join(words)])
    assert sorted(words) == [word for word in row["words_before_dropping"] if word]
    assert as_set(control_words(words)) == as_set(row["raw_example"])


@pytest.mark.parametrize("row", RECORDED["eval"])
def test_evaluation_words_of_the_release(row):
    phrase = caption_phrases(TAGGED[row["caption"]])[0] if row["first_word_control"] else None
    found = control_words(row["predicted_tags"], row["user_controls"] or (), phrase)
    assert as_set(found) == set(row["words_as_set"]) == as_set(row["raw_example"])
    assert found.count(",") == len(row["words_as_set"]) - 1  # none stands twice


@pytest.mark.parametrize(("before", "after"), META["caption_cleaning"])
def test_cleaning_of_the_release(before, after):
    assert clean_caption(before) == after


@given(st.text(alphabet="aB .!\"()*#:;~,'\n\t", max_size=40))
def test_cleaning_is_done_once(caption):
    cleaned = clean_caption(caption)
    assert clean_caption(cleaned) == cleaned and not set(cleaned) & set('.!"()*#:;~\n\t')
    assert [c for c in cleaned if c.isalpha()] == [c for c in caption.lower() if c.isalpha()]


class Always(random.Random):
    """Draws one number again and again."""

    def __init__(self, number):
        super().__init__(0)
        self.number = number

    def random(self):
        return self.number


def test_what_is_dropped():
    words = ["a", "b c", "d"]
    assert dropped(words, Always(0.4)) == RECORDED["all_dropped"]

    class Second(Always):
        def random(self):
            self.number, now = 0.9, self.number
            return now

    assert dropped(words, Second(0.6)) == RECORDED["each_dropped"]
    draw, counts = random.Random(5), dict.fromkeys([*words, ""], 0)
    orders = set()
    for _ in range(4000):
        text = dropped(words, draw)
        found = text.removesuffix("|").split(",")
        orders.add(tuple(found))
        for word in found:
            counts[word] += 1
    assert all(0.22 < counts[word] / 4000 < 0.28 for word in words)  # kept with 1/2 in the half of cases that keep any
    assert 0.53 < counts[""] / 4000 < 0.60  # 1/2, and 1/8 of the other half
    assert len(orders) == 1 + 3 + 6 + 6  # any selection in any order


def test_the_same_draws_give_the_same_words():
    words = [str(n) for n in range(9)]
    first, again = random.Random(3), random.Random(3)
    assert [dropped(words, first) for _ in range(9)] == [dropped(words, again) for _ in range(9)]


def test_with_the_tagger_of_textblob():
    pytest.importorskip("textblob")
    assert tag_words([]) == []
    caption = clean_caption("A man in a red shirt on a brown horse.")
    words = training_words(caption, ["horse", "outdoors"])
    assert {"man", "red shirt", "shirt", "brown horse", "horse", "outdoors"} <= set(words)
    assert not {"a", "in"} & set(words) and len(words) == len(set(words))
