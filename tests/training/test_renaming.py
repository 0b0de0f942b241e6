"""Renaming augmentation: list and captions change together, in number, and nothing else changes."""

import random

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from places import REPOSITORY

from evcap.datasets.coco import read_name_list
from evcap.memory.names import clean_name, pluralize
from evcap.training.renaming import Renamer, retold
from train.train import Config

NAMES = ["dog", "hot dog", "man", "frisbee", "bus", "fire hydrant", "grass"]
SUBSTITUTES = ["wolf", "teapot", "Stop_Sign", "fly (insect)", "very long name", "pony", ""]
PLAIN = ["fly", "pony", "stop sign", "teapot", "wolf"]  # cleaned, without remarks, at most two words


@pytest.fixture
def renamer():
    return Renamer(NAMES, SUBSTITUTES)


class Dice:
    """Draws that a test decides: always the same chance, always the choice of this place."""

    def __init__(self, chance=0.0, place=-1):
        self.chance, self.place, self.offered = chance, place, None

    def random(self):
        return self.chance

    def choice(self, options):
        self.offered = list(options)
        return options[self.place]


def rename(renamer, names, captions, draw, **options):
    """A list of names and its captions, changed as training changes them."""
    table = renamer.table(names, captions, draw, **options)
    return [table.get(n, n) for n in names], [renamer.replace(c, table) for c in captions]


def test_list_and_captions_change_together(renamer):
    dice = Dice()
    names, captions = rename(renamer, ["dog", "grass", "bus"], ["A dog runs on grass", "Two dogs and a Dog", "Nothing"], dice)
    assert dice.offered == PLAIN
    assert names == ["wolf", "wolf", "bus"]  # a name that no caption says stays
    assert captions == ["A wolf runs on wolf", "Two wolves and a wolf", "Nothing"]


@pytest.mark.parametrize(
    "caption, table, expected",
    [
        ("Dogs run", {"dog": "pony"}, "Ponies run"),
        ("dogs, dogs!", {"dog": "wolf"}, "Wolves, wolves!"),
        ("A hot dog for the dog", {"dog": "wolf"}, "A hot dog for the wolf"),  # the longest name is what is said
        ("A hot dog for the dog", {"hot dog": "teapot"}, "A teapot for the dog"),
        ("Two men by fire hydrants", {"man": "pirate", "fire hydrant": "stop sign"}, "Two pirates by stop signs"),
        ("A dogged doggy's hotdog", {"dog": "wolf"}, "A dogged doggy's hotdog"),  # whole words only
        ("The dog's bus", {"dog": "wolf", "bus": "fly"}, "The wolf's fly"),
        ("A dog by a bus", {"dog": "elephant", "bus": "wolf"}, "An elephant by a wolf"),
        ("Nothing here", {"dog": "wolf"}, "Nothing here"),
        ("", {"dog": "wolf"}, ""),
    ],
)
def test_replace(renamer, caption, table, expected):
    assert renamer.replace(caption, table) == expected


def test_mentioned(renamer):
    assert renamer.mentioned("Men throw a frisbee to dogs") == ["man", "frisbee", "dog"]


def test_a_name_must_be_retrieved_and_said_and_lucky(renamer):
    captions = ["A dog and a man"]
    assert rename(renamer, ["bus"], captions, Dice()) == (["bus"], captions)
    assert rename(renamer, [], captions, Dice()) == ([], captions)
    assert rename(renamer, ["dog"], captions, Dice(chance=0.7)) == (["dog"], captions)
    assert rename(renamer, ["dog"], captions, Dice(chance=0.69))[0] == ["wolf"]


NAMING = {"output": "", "start_from": "", "memory": "", "sets": [], "epochs": 1, "batch": 1, "learning_rate": 1.0}


def test_some_images_are_left_with_wrong_names_alone(renamer):
    names, captions = ["dog", "bus", "man", "frisbee", "grass"], ["Two dogs", "A dog beside a man"]
    config = Config(**NAMING, rename=0.0, drop_names=0.0, wrong_names=0.3)
    told = [retold(names, captions, renamer, config, 3, random.Random(seed)) for seed in range(1000)]
    assert {tuple(kept) for kept, _ in told} == {("dog", "bus", "man"), ("bus", "frisbee", "grass")}
    assert all(sorted(said) == sorted(captions) for _, said in told)
    assert 0.25 < sum(kept[0] == "bus" for kept, _ in told) / 1000 < 0.35
    assert retold(names, captions, None, config, 3, random.Random(0))[0] == ["dog", "bus", "man"]


def test_shares(renamer):
    """0.7 of the said names are renamed; of 4 names each is dropped in 20 % and, apart from that, all in 10 %."""
    draw, rounds = random.Random(0), 4000
    renamed = sum(rename(renamer, ["dog"], ["A dog"], draw)[1] != ["A dog"] for _ in range(rounds)) / rounds
    assert abs(renamed - 0.7) < 0.03
    kept = [renamer.drop(NAMES[:4], 0.2, draw) for _ in range(rounds)]
    assert abs(sum(map(len, kept)) / (4 * rounds) - 0.9 * 0.8) < 0.02
    assert abs(sum(not row for row in kept) / rounds - (0.1 + 0.9 * 0.2**4)) < 0.02
    assert renamer.drop(NAMES, 0.0, draw) == NAMES


@given(
    st.lists(st.sampled_from([*NAMES, *(n + "s" for n in NAMES), "on", "A", "zebra", ","]), max_size=10),
    st.lists(st.sampled_from(NAMES), unique=True),
    st.integers(0, 2**32),
)
def test_draws_repeat_and_other_words_stay(words, names, seed):
    renamer, caption = Renamer(NAMES, SUBSTITUTES), " ".join(words)
    first, second = (rename(renamer, names, [caption], random.Random(seed)) for _ in range(2))
    assert first == second
    listed, (text,) = first
    assert len(listed) == len(names)
    gone = {old for old, new in zip(names, listed, strict=True) if new != old}
    assert gone <= set(renamer.mentioned(caption)) and gone.isdisjoint(renamer.mentioned(text))
    assert text.lower().count("zebra") == caption.lower().count("zebra")


def on_a_circle(texts):
    """Every text a unit vector; likeness falls with the distance of the places below."""
    places = {"dog": 0.0, "man": 2.0, "wolf": 0.1, "pony": 0.3, "nun": 2.1, "teapot": 4.0}
    angles = torch.tensor([places[t] for t in texts])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_every_second_substitute_is_near_in_meaning_and_no_name_of_the_memory():
    renamer = Renamer(["man", "dog"], ["wolf", "pony", "nun", "teapot", "man"], on_a_circle, near=2)
    for chance, name, offered in (
        (0.49, "dog", ["wolf", "pony"]),
        (0.49, "man", ["nun", "pony"]),  # 0.1 and 1.7 away; itself, though among the substitutes, is no stranger
        (0.51, "dog", ["man", "nun", "pony", "teapot", "wolf"]),
    ):
        dice = Dice(chance)
        rename(renamer, [name], [f"A {name}"], dice)
        assert dice.offered == offered


def test_half_of_the_substitutes_are_near():
    """Of 5 substitutes wolf and pony are near: wolf comes in 1/4 + 1/10 of the draws, teapot in 1/10."""
    renamer = Renamer(["man", "dog"], ["wolf", "pony", "nun", "teapot", "man"], on_a_circle, near=2)
    draw, rounds = random.Random(0), 4000
    found = [rename(renamer, ["dog"], ["A dog"], draw, each=1.0)[0][0] for _ in range(rounds)]
    assert abs(found.count("wolf") / rounds - 0.35) < 0.03
    assert abs(found.count("teapot") / rounds - 0.1) < 0.02


def test_more_near_names_asked_for_than_there_are():
    dice = Dice()
    Renamer(["dog"], ["wolf", "dog", "teapot"], on_a_circle, near=30).table(["dog"], ["A dog"], dice)
    assert dice.offered == ["wolf", "teapot"]


@pytest.mark.parametrize("seed", range(5))
def test_without_embeddings_nothing_is_drawn_but_chance_and_substitute(renamer, seed):
    draw, same = random.Random(seed), random.Random(seed)
    names, _ = rename(renamer, ["dog"], ["A dog"], draw, each=1.0)
    same.random()
    assert names == [same.choice(PLAIN)] and draw.getstate() == same.getstate()


def test_the_rename_test_asks_for_names_that_training_did_not_draw():
    repository = REPOSITORY
    drawn = {row[0] for row in read_name_list(repository / "train" / "substitutes.txt")}
    asked = set(yaml.safe_load((repository / "eval" / "configs" / "memory-matters.yaml").read_text())["renames"].values())
    assert len(drawn) > 300 and len(asked) > 50

    def forms(names):
        return {form for name in map(clean_name, names) for form in (name, pluralize(name))}

    assert forms(drawn).isdisjoint(forms(asked))
