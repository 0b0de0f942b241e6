"""Names in text: the release's cleaning rule, finding names and their plurals in captions, scores of the names said."""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

_DROPPED = str.maketrans(dict.fromkeys("_!,'\"()*#:;~", " "))
# Characters that nobody sees. Joiners stay inside the scripts that spell with them (Persian, Hindi, Sinhala, emoji): between
# characters beyond those of Europe.
_JOINERS = "\u200c\u200d"
_BEYOND = rf"[^\x00-\u02ff\s{_JOINERS}]"
_STRAY_JOINER = re.compile(rf"(?<!{_BEYOND})[{_JOINERS}]|[{_JOINERS}](?!{_BEYOND})")
_SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")  # of format, and yet seen

_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)], "?")

IRREGULAR = {
    **{"man": "men", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice", "ox": "oxen"},
    **{"wolf": "wolves", "elf": "elves", "calf": "calves", "half": "halves", "leaf": "leaves", "loaf": "loaves"},
    **{"knife": "knives", "wife": "wives", "thief": "thieves", "scarf": "scarves", "hoof": "hooves"},
    **{"human": "humans", "ottoman": "ottomans", "shaman": "shamans", "german": "germans", "mongoose": "mongooses"},
    **{"potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "mosquito": "mosquitoes", "buffalo": "buffaloes"},
    **{"lens": "lenses", "rhinoceros": "rhinoceroses", "cactus": "cacti", "quiz": "quizzes"},
    **{word: word for word in ("sheep", "deer", "fish", "moose", "bison", "aircraft", "people", "skis", "pajamas")},
}


def clean_name(name: str) -> str:
    """Lower case, each of _!,'"()*#:;~ a space, spaces squeezed (the EVCap release's rule).

    Of names in other than plain letters one spelling: composed (Unicode's NFC), without control characters, of which an
    escape sequence is made, without marks that turn the direction of reading and others that are not seen, and without
    halves of characters.
    """
    name = name.lower().translate(_DROPPED)
    return " ".join((name if name.isascii() and name.isprintable() else _visible(name)).split())


def _visible(name: str) -> str:
    kept = "".join(_shown(c) for c in unicodedata.normalize("NFC", name).translate(_DROPPED))
    kept = " ".join(_STRAY_JOINER.sub("", unicodedata.normalize("NFC", kept)).split())
    kept = unicodedata.normalize("NFC", kept)
    return kept if kept == name else _visible(kept)  # what is left may have become neighbours


def _shown(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind in ("Cc", "Cs"):
        return " "
    return "" if kind == "Cf" and letter not in _SIGNS and letter not in _JOINERS else letter


def shown(text: str) -> str:
    """A text as a terminal may show it: a question mark for each control character or mark of direction."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def spoken_name(name: str) -> str:
    """What is said of a listed name: `clean_name` without the sense in parentheses, bat_(animal) -> bat.

    LVIS and dictionaries tell senses apart in this way; captions do not, and `clean_name` alone would make "bat animal".
    """
    return clean_name(name.split("(")[0]) or clean_name(name)


def pluralize(name: str) -> str:
    """English plural of a name's last word: wolf -> wolves, polo shirt -> polo shirts, fireman -> firemen.

    Names that are plurals already stay: sunglasses, scissors.
    """
    first, last = name[: name.rfind(" ") + 1], name[name.rfind(" ") + 1 :]
    endings = [last, *(last[start:] for start in range(1, len(last) - 2))]  # pocketknife is a knife, a fox is no ox
    known = next((ending for ending in endings if ending in IRREGULAR), None)
    if known:
        last = last.removesuffix(known) + IRREGULAR[known]
    elif re.search(r"([aius]s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif not re.search(r"[^aius]s$", last):
        last += "s"
    return first + last


@dataclass(frozen=True)
class Match:
    """A name in a caption: caption[start:end] == surface, singular or plural."""

    name: str
    start: int
    end: int
    surface: str
    plural: bool


class NameFinder:
    """Finds whole-word mentions of names, the longest first, in any case, singular or plural, not overlapping.

    Texts are taken to be composed (NFC), as names are.
    """

    def __init__(self, names: Iterable[str]):
        self._meaning: dict[str, tuple[str, bool]] = {}
        cleaned = [c for c in map(clean_name, names) if c]
        for name in cleaned:
            self._meaning.setdefault(pluralize(name), (name, True))
        self._meaning.update({name: (name, False) for name in cleaned})  # "glasses" the name beats glasses the plural
        lengths: dict[str, set[int]] = {}
        for form in self._meaning:
            lengths.setdefault(form[0], set()).add(len(form))
        # looked up, not searched by one pattern: thousands of alternatives take a pattern 20 ms a caption
        self._lengths = {letter: sorted(found, reverse=True) for letter, found in lengths.items()}

    def find(self, caption: str) -> list[Match]:
        """Matches in reading order."""
        found, place = [], 0
        while place < len(caption):
            match = None if _in_word(caption[place - 1 : place]) else self._at(caption, place)
            if match:
                found.append(match)
            place = match.end if match else place + 1
        return found

    def about(self, phrase: str) -> str:
        """The name that a noun phrase is about: the last one before a preposition, "a black dog in the snow" -> "dog".

        Where no name stands there, the last of the next part: "a group of people" -> "person". "" without a name.
        """
        for part in re.split(r"\b(?:in|on|of|with|at|by|for|from|near|under|over|behind|beside)\b", phrase):
            if found := self.find(part):
                return found[-1].name
        return ""

    def _at(self, caption: str, start: int) -> Match | None:
        """The longest name that begins here and ends with a word."""
        for length in self._lengths.get(caption[start].lower(), ()):
            end = start + length
            surface = caption[start:end]
            meaning = self._meaning.get(surface.lower())
            if meaning and len(surface) == length and not _in_word(caption[end : end + 1]):
                return Match(meaning[0], start, end, surface, meaning[1])
        return None


def _in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def f1_scores(
    finder: NameFinder, names: Iterable[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Per name F1 in percent of "the caption says it" against "a reference says it", with the counts behind it.

    Source: held-out COCO (Hendricks et al. 2016, arXiv 1511.05284). `references` holds those of each caption's image.
    """
    said, true = _said(finder, captions), [set().union(*_said(finder, row)) for row in references]
    predicted, positive = (Counter(name for row in rows for name in row) for rows in (said, true))
    hits = Counter(name for s, t in zip(said, true, strict=True) for name in s & t)
    scores = {}
    for name in names:
        f1 = 200 * hits[name] / max(predicted[name] + positive[name], 1)
        scores[name] = {"f1": f1, "hits": hits[name], "said": predicted[name], "in_references": positive[name]}
    return scores


def naming_statistics(
    names: Collection[str],
    captions: Sequence[str],
    retrieved: Sequence[Collection[str]],
    references: Sequence[Sequence[str]],
    training_captions: Iterable[str] | None = None,
) -> dict:
    """How captions use a vocabulary of `names`, in percent: do they say what was retrieved, and what the references say?

    retrieved: the names that were found for each caption's image. The mean F1 is over the names that some reference says;
    "held_out" is the same over those of them that no training caption says, with the scores of each name. An agreed name is
    one that more than half of an image's references say. "unfounded": captions that say a name which no reference of their
    image says (after CHAIR, Rohrbach et al. 2018, arXiv 1809.02156, with references alone), in all and for the five names
    that are most often said so.
    """
    finder = NameFinder(names)
    said = _said(finder, captions)
    found = [{clean_name(name) for name in row} for row in retrieved]
    named = [s & f for s, f in zip(said, found, strict=True)]
    true = [_said(finder, row) for row in references]
    agreed = [{n for n, count in Counter(chain(*row)).items() if 2 * count > len(row)} for row in true]
    met = sum(len(a & f) for a, f in zip(agreed, found, strict=True))
    told = [set().union(*t) for t in true]
    right = sum(len(f & t) for f, t in zip(found, told, strict=True))
    unfounded = [s - t for s, t in zip(said, told, strict=True)]
    worst = Counter(chain(*unfounded)).most_common(5)
    known = f1_scores(finder, sorted(set(map(clean_name, names))), captions, references)
    known = {name: row for name, row in known.items() if row["in_references"]}
    result = {
        "captions_naming_a_retrieved_object": _share(named),
        "retrieved_names_said": 100 * sum(map(len, named)) / max(sum(map(len, found)), 1),
        "different_names_said": len(set().union(*said)),
        "object_f1": _mean_f1(known),
        "agreed_names_found": 100 * met / max(sum(map(len, agreed)), 1),
        "found_names_said_by_a_reference": 100 * right / max(sum(map(len, found)), 1),
        "unfounded": {"captions": _share(unfounded), "names": {name: 100 * n / len(captions) for name, n in worst}},
    }
    if training_captions is not None:
        seen = set().union(*_said(finder, training_captions))
        unseen = {name: row for name, row in known.items() if name not in seen}
        result["held_out"] = _mean_f1(unseen) | {"each": unseen}
    return result


def _said(finder: NameFinder, texts: Iterable[str]) -> list[set[str]]:
    return [{match.name for match in finder.find(unicodedata.normalize("NFC", text))} for text in texts]


def _share(rows: Sequence[set[str]]) -> float:
    return 100 * sum(map(bool, rows)) / max(len(rows), 1)


def _mean_f1(scores: dict[str, dict[str, float]]) -> dict[str, float | None]:
    return {"f1": statistics.fmean(row["f1"] for row in scores.values()) if scores else None, "names": len(scores)}
