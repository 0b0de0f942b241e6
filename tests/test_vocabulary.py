"""Cleaning of names, plurals, and names found in captions."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcap.vocabulary import NameFinder, clean_name, pluralize, spoken_name

WORDS = ["dog", "hot dog", "dog house", "glass", "glasses", "bus", "fire hydrant", "wolf", "wolves", "man", "baby", "c++"]


@pytest.mark.parametrize(
    "name, clean",
    [
        ("Polo_Shirt", "polo shirt"),
        ("  bow_(weapon) ", "bow weapon"),
        ("a!b,c'd\"e(f)g*h#i:j;k~l", "a b c d e f g h i j k l"),
        ("t-shirt.", "t-shirt."),
        ("CAFÉ\tau\n lait", "café au lait"),
        ("_!,", ""),
        ("", ""),
    ],
)
def test_clean_name(name, clean):
    assert clean_name(name) == clean


@pytest.mark.parametrize(
    "name, said",
    [("bat_(animal)", "bat"), ("football_(American)", "football"), ("Hot_Dog", "hot dog"), ("(sic)", "sic"), ("()", "")],
)
def test_the_sense_in_parentheses_is_not_said(name, said):
    assert spoken_name(name) == said


@given(st.text())
def test_cleaning_twice_changes_nothing_more(name):
    clean = clean_name(name)
    assert clean_name(clean) == clean
    assert not set(clean) & set("_!,'\"()*#:;~\n\t") and "  " not in clean and clean.strip() == clean


@pytest.mark.parametrize(
    "singular, plural",
    [
        ("dog", "dogs"),
        ("polo shirt", "polo shirts"),
        ("wolf", "wolves"),
        ("fireman", "firemen"),
        ("police woman", "police women"),
        ("human", "humans"),
        ("bus", "buses"),
        ("box", "boxes"),
        ("bench", "benches"),
        ("dish", "dishes"),
        ("baby", "babies"),
        ("toy", "toys"),
        ("potato", "potatoes"),
        ("sheep", "sheep"),
        ("ox", "oxen"),
        ("fox", "foxes"),
        ("steak knife", "steak knives"),
        ("pocketknife", "pocketknives"),
        ("mongoose", "mongooses"),
        ("people", "people"),
        ("lens", "lenses"),
        ("sunglasses", "sunglasses"),
        ("sweat pants", "sweat pants"),
    ],
)
def test_pluralize(singular, plural):
    assert pluralize(singular) == plural


def test_the_longest_name_and_whole_words_only():
    found = NameFinder(["dog", "hot dog", "Fire_Hydrant"]).find("Hot dogs, a DOG, hotdogs and two fire hydrants; dogged.")
    assert [(m.name, m.surface, m.plural) for m in found] == [
        ("hot dog", "Hot dogs", True),
        ("dog", "DOG", False),
        ("fire hydrant", "fire hydrants", True),
    ]


def test_a_name_beats_the_plural_of_another():
    finder = NameFinder(["glass", "glasses"])
    assert [(m.name, m.plural) for m in finder.find("glasses of glass")] == [("glasses", False), ("glass", False)]


def test_names_with_edges_that_are_no_letters():
    assert [m.surface for m in NameFinder(["c++", ".net"]).find("C++ and .NET, not C++x")] == ["C++", ".NET"]


def test_names_without_letters_find_nothing():
    assert NameFinder([]).find("a dog") == []
    assert NameFinder(["!", ""]).find("s and es") == []


def test_letters_that_only_look_like_capitals_do_no_harm():
    assert NameFinder(["kiss", "pin"]).find("a ki\u017f\u017f and a p\u0130n") == []


def test_people_are_no_plural_of_person():
    assert [m.surface for m in NameFinder(["person"]).find("People and a person, persons")] == ["person", "persons"]
    assert [(m.name, m.plural) for m in NameFinder(["people"]).find("Two people")] == [("people", False)]


CAPTIONS = st.lists(st.sampled_from([*WORDS, *map(pluralize, WORDS), *map(str.upper, WORDS), "a", ",", "hot", "é"]))


@settings(max_examples=200)
@given(st.sets(st.sampled_from(WORDS)), st.one_of(CAPTIONS.map(" ".join), st.text(), CAPTIONS.map("".join)))
def test_matches_are_whole_words_in_order_and_nothing_is_overlooked(names, caption):
    found = NameFinder(names).find(caption)
    end = 0
    for match in found:
        assert match.start >= end and match.end > match.start
        end = match.end
        assert caption[match.start : match.end] == match.surface
        assert match.name in names
        assert match.surface.lower() == (pluralize(match.name) if match.plural else match.name)
        assert not re.match(r"\w\w", caption[match.start - 1 : match.start + 1]) or match.start == 0
        assert not re.match(r"\w\w", caption[match.end - 1 : match.end + 1])
    covered = {place for match in found for place in range(match.start, match.end)}
    for name in names:
        for form in (name, pluralize(name)):
            for place in range(len(caption)):
                around = caption[place - 1 : place] + " " + caption[place + len(form) : place + len(form) + 1]
                if caption[place : place + len(form)] == form and not re.search(r"\w", around):
                    assert covered & set(range(place, place + len(form))), (form, place)
