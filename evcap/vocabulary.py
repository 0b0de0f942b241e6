"""Names in text: the release's cleaning rule, and finding names and their plurals in captions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DROPPED = str.maketrans(dict.fromkeys("_!,'\"()*#:;~", " "))

IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "persons",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "wolf": "wolves",
    "elf": "elves",
    "calf": "calves",
    "leaf": "leaves",
    "knife": "knives",
    "wife": "wives",
    "shelf": "shelves",
    "scarf": "scarves",
    "thief": "thieves",
    "loaf": "loaves",
    "ox": "oxen",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
}


def clean_name(name: str) -> str:
    """Lower case, each of _!,'"()*#:;~ a space, spaces squeezed (the EVCap release's rule)."""
    return " ".join(name.lower().translate(_DROPPED).split())


def pluralize(name: str) -> str:
    """English plural of a name's last word: wolf -> wolves, polo shirt -> polo shirts, fireman -> firemen."""
    *first, last = name.split(" ")
    for singular, plural in IRREGULAR.items():
        if last == singular or (singular in ("man", "woman") and last.endswith(singular)):
            return " ".join([*first, last[: len(last) - len(singular)] + plural])
    if re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*first, last])


@dataclass(frozen=True)
class Match:
    """A name in a caption: caption[start:end] == surface, singular or plural."""

    name: str
    start: int
    end: int
    surface: str
    plural: bool


class NameFinder:
    """Finds whole-word mentions of names, the longest first, in any case, singular or plural, not overlapping."""

    def __init__(self, names: Iterable[str]):
        self._meaning: dict[str, tuple[str, bool]] = {}
        cleaned = [clean_name(n) for n in names]
        for name in cleaned:
            self._meaning.setdefault(pluralize(name), (name, True))
        self._meaning.update({name: (name, False) for name in cleaned})  # "glasses" the name beats glasses the plural
        forms = sorted((re.escape(form) for form in self._meaning if form), key=len, reverse=True)
        self._pattern = re.compile(rf"\b(?:{'|'.join(forms)})\b", re.IGNORECASE) if forms else None

    def find(self, caption: str) -> list[Match]:
        """Matches in reading order."""
        if self._pattern is None:
            return []
        found = []
        for hit in self._pattern.finditer(caption):
            name, plural = self._meaning[hit.group().lower()]
            found.append(Match(name, hit.start(), hit.end(), hit.group(), plural))
        return found
