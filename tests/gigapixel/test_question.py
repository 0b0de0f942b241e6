"""Questions taken apart: kind, phrases, choices. The phrases expected here were written by hand."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evcap.errors import EvcapError
from evcap.gigapixel.ask.chunks import LONGEST, MOST_PHRASES, seems_english
from evcap.gigapixel.ask.question import NoPhrases, Question, analyse, kind_of, split_choices

# question | kind | phrases
TABLE = """
Is there an airplane? | presence | airplane
Is there a plane on the runway? | presence | plane; runway
Are there any tennis courts or baseball diamonds near the river? | presence | tennis courts; baseball diamonds; river
Does the image contain a roundabout? | presence | roundabout
Does this satellite image show a forest? | presence | forest
Can you see any swimming pools? | presence | swimming pools
Do you see a golf course in the top right? | presence | golf course
Is a large building present? | presence | large building
Is the runway visible? | presence | runway
In this picture, is there a shed next to the pond? | presence | shed; pond
Please tell me whether there is a landing strip in the desert. | presence | landing strip; desert
Are there buildings damaged by the flood? | presence | buildings; flood
Is there snow on the mountains? | presence | snow; mountains
IS THERE A SHIP AT THE PIER? | presence | ship; pier
How many storage tanks are next to the harbor? | count | storage tanks; harbor
How many red cars are parked in the parking lot by the lake on the right of the picture? | count | red cars; parking lot; lake
How many rows of ships are parked at the shipyard shown in the picture? | count | ships; shipyard
How many white and gray houses are on the green lawn in the center of the picture? | count | white and gray houses; green lawn
How many orange sunshades are there in front of the pointed building? | count | orange sunshades; pointed building
How many zebra crossings are there? | count | zebra crossings
How many 4-lane roads lead to the airport? | count | 4-lane roads; airport
How many cars are parking in front of the square building? | count | cars; square building
What is the number of residential buildings next to a farmland in the image? | count | residential buildings; farmland
Count the wind turbines. | count | wind turbines
On the lower right side of the picture, how many tributaries does the river have? | count | tributaries; river
Where are the shipping containers? | where | shipping containers
Where is the house with a yellow roof in the picture? | where | house; yellow roof
Where can I land a helicopter? | where | helicopter
In which area is the semi-circular elevated bridge located in the picture? | where | semi-circular elevated bridge
What is the location of the tallest building? | where | tallest building
Locate every ship docked in the harbour. | where | ship; harbour
Show me where the stadium is. | where | stadium
What colour is the roof of the large building in the upper left corner? | open | roof; large building
In the picture, what is the color of the ship docked at the pier on the right side? | open | ship; pier
What color is the top car on the road along the river in the picture? | open | car; road; river
What color is the hexagonal roof by the water's edge? | open | hexagonal roof; water
What color are the containers being pulled by the ship moving on the water? | open | containers; ship; water
What color is the big car parked on the tree lined avenue at the top of the picture? | open | big car; tree lined avenue
What shape is the swimming pool beside the house with solar panels? | open | swimming pool; house; solar panels
What type of vehicles are parked in the lot? | open | vehicles; lot
Which direction is the plane facing? | open | plane
Is the river wide? | open | river
Is there a bridge crossing the river? | presence | bridge; river
Are there more water areas than residential buildings in the image? | open | water areas; residential buildings
Are there at least two ships at sea? | open | ships; sea
Is it a rural or an urban area? | open | urban area
Are the storage tanks arranged in rows? | open | storage tanks
What is to the left of the baseball diamond? | open | baseball diamond
airplane | open | airplane
swimming pools near tennis courts | open | swimming pools; tennis courts
Where is the light blue roof? | where | light blue roof
How many playgrounds with running tracks are there? | count | playgrounds; running tracks
What is in this picture? | open |
What do you see? | open |
How many are there? | count |
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]

# classes of aerial data sets, as a noun after an article
CLASSES = """
airport; baseball diamond; basketball court; beach; bridge; chaparral; commercial area; construction site; container
crane; cooling tower; dense residential area; dump truck; football field; freeway; golf course; ground track field; harbor;
helipad; industrial area; intersection; medium residential area; mobile home park; overpass; parking lot; pedestrian bridge;
railway station; river; roundabout; runway; school; shed; ship; solar farm; stadium; storage tank; swimming pool; tennis
court; thermal power station; tower crane; train; viaduct; wastewater plant; water tower; wind turbine; zebra crossing"""


@pytest.mark.parametrize(("text", "kind", "phrases"), ROWS, ids=[row[0] for row in ROWS])
def test_table(text, kind, phrases):
    asked = analyse(text)
    assert (asked.kind, asked.phrases) == (kind, [phrase.strip() for phrase in phrases.split(";") if phrase])
    assert asked.text == text and asked.choices == [] and asked.note == ""


@pytest.mark.parametrize("name", [" ".join(name.split()) for name in CLASSES.strip().split(";")])
def test_names_of_classes(name):
    for text in (f"Is there a {name}?", f"What colour is the {name} in the upper left corner?", f"Where is the {name}?"):
        assert analyse(text).phrases == [name]


def test_phrases_are_few_and_different():
    things = ["ships", "boats", "cars", "ships", "trucks", "trains", "planes", "buses"]
    assert analyse(f"Are there {', '.join(things)}?").phrases == ["ships", "boats", "cars", "trucks", "trains"]


def test_other_languages_are_not_understood():
    for text, phrase in [("Wo ist das Flugzeug?", "das flugzeug"), ("¿Dónde está el barco rojo?", "dónde está el barco rojo")]:
        asked = analyse(text)
        assert asked.phrases == [phrase] and "does not seem to be English" in asked.doubt
    assert analyse("飞机在哪里？").phrases == ["飞机在哪里"]
    assert len(analyse("la " + "barco " * 50).phrases[0].split()) == LONGEST
    assert seems_english("red cars") and not seems_english("Gibt es hier einen Hafen")


@pytest.mark.parametrize("text", ["", "  \n", "?", "... !", "(A) red (B) blue"])
def test_empty_question(text):
    with pytest.raises(EvcapError, match="the question is empty; ask something like"):
        analyse(text)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def is_subsequence(short: list[str], long: list[str]) -> bool:
    rest = iter(long)
    return all(word in rest for word in short)


SAID = st.lists(
    st.sampled_from(" ".join(row[0] for row in ROWS).split()) | st.sampled_from([",", "-", "'s", "and", "3", "(A)", "/", "of"]),
    max_size=20,
)


@given(st.text(max_size=80) | SAID.map(" ".join))
@example("a/b \\ c's 'd \x00 e_f ’s")
@example("the İ of the ŉ ß")
def test_any_text(text):
    """Never an exception but for questions without a word; phrases repeat words of the question in their order."""
    try:
        asked = analyse(text)
    except EvcapError as error:
        assert "empty" in str(error) and "\n" not in str(error)
        return
    assert asked.kind in ("presence", "count", "where", "open")
    assert len(asked.phrases) <= MOST_PHRASES and len(set(asked.phrases)) == len(asked.phrases)
    for phrase in asked.phrases:
        assert phrase == phrase.lower().strip() and words(phrase)
        assert is_subsequence(words(phrase), words(asked.text))
    assert analyse(text) == asked


@pytest.mark.parametrize(
    ("text", "question", "choices"),
    [
        ("Which colour? (A) red (B) dark blue", "Which colour?", ["red", "dark blue"]),
        ("Which colour? A. red, B. blue", "Which colour?", ["red", "blue"]),
        ("Which? A) red\nB) blue\nC) none", "Which?", ["red", "blue", "none"]),
        ("Where? (A) In the upper (A) left (B) below", "Where? (A) In the upper", ["left", "below"]),
        ("Is this plan (A) of the city?", "Is this plan (A) of the city?", []),
        ("Which? (B) red (C) blue", "Which? (B) red (C) blue", []),
        ("Is hangar B. bigger than hangar A. or not?", "Is hangar B. bigger than hangar A. or not?", []),
    ],
)
def test_choices_in_the_text(text, question, choices):
    assert split_choices(" ".join(text.split())) == (question, choices)


def test_choices_beside_the_text():
    given_choices = ["(A) In the upper right", "(B) Below", "C. (A) twice", "none"]
    asked = analyse("Where is the crane?", choices=given_choices)
    assert asked.choices == ["In the upper right", "Below", "(A) twice", "none"] and asked.phrases == ["crane"]
    assert analyse("Where is it? (A) here (B) there", choices=["x", "y"]).choices == ["x", "y"]


@given(st.lists(st.text("abc XYZ", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=5))
def test_choices_round_trip(choices):
    text = "Which one? " + " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCDE", choices, strict=False))
    assert split_choices(text) == ("Which one?", choices)


def test_kinds_of_comparisons():
    assert kind_of("Is the number of ships equal to the number of cars?") == "open"
    assert kind_of("Are there a number of ships?") == "presence"
    assert kind_of("Which side of the river has more buildings?") == "open"


def test_backend_gives_the_phrases():
    asked = analyse("How many planes? (A) 1 (B) 2", lambda text: [text.lower()])
    assert asked == Question("How many planes?", "count", ["how many planes?"], ["1", "2"])


def test_backend_without_phrases_gives_way_to_chunks():
    def mute(text):
        raise NoPhrases("the model said nothing")

    asked = analyse("Is there a dam?", mute)
    assert asked.phrases == ["dam"] and asked.note == "the model said nothing; the nouns of the question are searched instead"


def test_question_is_frozen_and_plain():
    asked = analyse("Is there a dam?")
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked.kind = "count"
    assert json.loads(json.dumps(dataclasses.asdict(asked)))["phrases"] == ["dam"]


def test_without_the_library(monkeypatch):
    from evcap.language.parts_of_speech import pattern_tagger

    monkeypatch.setitem(sys.modules, "textblob.taggers", None)
    pattern_tagger.cache_clear()
    with pytest.raises(EvcapError, match=r"pip install 'evcap\[uhr\]'"):
        analyse("Is there a dam?")
    pattern_tagger.cache_clear()


def test_no_network_and_no_torch(tmp_path):
    """A process whose sockets are broken answers, with an empty home: nothing is downloaded or looked for there."""
    script = """
import socket, sys
def broken(*_, **__): raise OSError("network was used")
socket.socket.connect = socket.getaddrinfo = broken
from evcap.gigapixel.ask.question import analyse
print(analyse("Is there an airplane?").phrases, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "['airplane'] False", done.stderr
