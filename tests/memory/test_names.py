"""Cleaning of names, plurals, and names found in captions."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.config import shipped_memory
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import NameFinder, clean_name, f1_scores, naming_statistics, pluralize, spoken_name

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


def test_f1_by_hand():
    """kite: said twice, once rightly, in the references of three: precision 1/2, recall 1/3, F1 2/5."""
    names = ["kite", "tennis ball", "sled"]
    references = [
        ["A kite flies.", "The sky."],
        ["Two Kites!", "Two kites"],
        ["A man.", "a woman", "a kite-surfer"],
        ["A dog with a tennis ball."],
        ["A kitchen."],
    ]
    captions = ["kites in the sky", "a ball", "a man", "a tennis player", "a kite"]
    scores = f1_scores(NameFinder(names), names, captions, references)
    assert scores["kite"] == {"f1": pytest.approx(40), "hits": 1, "said": 2, "in_references": 3}
    assert scores["tennis ball"] == {"f1": 0, "hits": 0, "said": 0, "in_references": 1}
    assert scores["sled"] == {"f1": 0, "hits": 0, "said": 0, "in_references": 0}
    right = ["a kite", "kites", "the kite", "tennis balls", "a room"]
    perfect = f1_scores(NameFinder(names), names[:2], right, references)
    assert [row["f1"] for row in perfect.values()] == pytest.approx([100, 100])


def test_naming_by_hand():
    """Three captions, two of which name what was found; F1 of dog 100, of wolf 0, of hot dog 2/3; no reference says a sled."""
    names = ["dog", "hot dog", "Wolf", "sled"]
    captions = ["a dog and a hot dog", "two hot dogs", "a sled"]
    retrieved = [["dog", "wolf"], ["hot dog"], ["dog"]]
    references = [["A dog.", "A pet."], ["A hot dog."], ["a wolf"]]
    stats = naming_statistics(names, captions, retrieved, references)
    assert stats["captions_naming_a_retrieved_object"] == pytest.approx(200 / 3)
    assert stats["retrieved_names_said"] == pytest.approx(100 * 2 / 4)
    assert stats["different_names_said"] == 3
    assert stats["object_f1"] == {"f1": pytest.approx((100 + 200 / 3 + 0) / 3), "names": 3}
    assert stats["agreed_names_found"] == 50  # hot dog, not wolf; "dog" is said by one reference of two
    assert stats["found_names_said_by_a_reference"] == 50
    assert stats["unfounded"]["names"] == pytest.approx({"hot dog": 100 / 3, "sled": 100 / 3})
    assert stats["unfounded"]["captions"] == pytest.approx(200 / 3)
    assert "held_out" not in stats
    held_out = naming_statistics(names, captions, retrieved, references, ["Dogs", "a man"])["held_out"]
    assert held_out["names"] == 2 and held_out["f1"] == pytest.approx(100 / 3)
    assert held_out["each"]["hot dog"] == {"f1": pytest.approx(200 / 3), "hits": 1, "said": 2, "in_references": 1}
    nothing = naming_statistics([], ["a dog"], [[]], [["a cat"]], [])
    assert nothing["object_f1"] == {"f1": None, "names": 0} == {k: nothing["held_out"][k] for k in ("f1", "names")}
    assert nothing["captions_naming_a_retrieved_object"] == nothing["retrieved_names_said"] == 0


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("a black dog in the snow", "dog"),
        ("A dog house", "dog house"),
        ("two men with hats", "man"),
        ("a group of dogs", "dog"),
        ("the man's dogs", "dog"),
        ("people", ""),
        ("", ""),
    ],
)
def test_what_a_phrase_is_about(phrase, name):
    assert NameFinder(["dog", "snow", "dog house", "man", "hat"]).about(phrase) == name


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("Cafe\u0301 \u212bngstro\u0308m", "caf\u00e9 \u00e5ngstr\u00f6m"),  # as macOS spells the names of folders
        ("red\x1b[31m panda\x07", "red [31m panda"),
        ("\x9b31mred\x00panda\x7f", "31mred panda"),
        ("\u202edog\u202c \u2066cat\u2069", "dog cat"),  # would be read from the right
        ("d\u200bo\u00adg\ufeff", "dog"),
        ("d\u200dog \u200c", "dog"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),  # Persian
        ("\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u0dc1\u0dca\u200d\u0dbb\u0dd3"),  # Sinhala: Sri
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),  # a family
        ("caf\udce9 \ud83d", "caf"),
        ("a\u037eb", "a b"),  # composed, it is a semicolon
        ("\x1b\u202e", ""),
    ],
)
def test_names_hold_only_what_is_seen(name, clean):
    assert clean_name(name) == clean


@given(st.text("e\u0308\u200d\u200c\u200b\u0928n\u0301_\ud800\x1b\u2003\u00f1\u0130\u03a3 ", max_size=12))
def test_cleaned_names_are_composed_and_stay(name):
    cleaned = clean_name(name)
    assert clean_name(cleaned) == cleaned == unicodedata.normalize("NFC", cleaned)
    assert not {unicodedata.category(letter) for letter in cleaned} & {"Cc", "Cs"}
    assert clean_name(unicodedata.normalize("NFD", cleaned)) == cleaned


def test_every_character_is_cleaned_for_good():
    letters = [chr(code) for code in range(0x30000)]  # behind these are the supplementary special-purpose and private planes
    cleaned = [clean_name(f"x{letter}y") for letter in letters]
    assert list(map(clean_name, cleaned)) == cleaned
    plain = [letter for letter in letters if 32 <= ord(letter) < 127]
    rule = str.maketrans(dict.fromkeys("_!,'\"()*#:;~", " "))
    assert [clean_name(f"x{c}y") for c in plain] == [" ".join(f"x{c}y".lower().translate(rule).split()) for c in plain]


def test_the_shipped_names_are_clean():
    names = VisualNameMemory.open(shipped_memory()).names
    assert len(names) > 5000 and list(map(clean_name, names)) == names


def test_captions_are_found_in_either_spelling():
    captions = ["a cafe\u0301 in Paris", "a caf\u00e9 in Paris"]
    row = f1_scores(NameFinder(["cafe\u0301"]), ["caf\u00e9"], captions, [[captions[1]], [captions[0]]])["caf\u00e9"]
    assert (row["hits"], row["f1"]) == (2, 100)
