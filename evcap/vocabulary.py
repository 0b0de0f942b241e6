"""Names in text: the release's cleaning rule, and finding names and their plurals in captions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DROPPED = str.maketrans(dict.fromkeys("_!,'\"()*#:;~", " "))

IRREGULAR = {
    "human": "humans",
    "ottoman": "ottomans",
    "shaman": "shamans",
    "potato": "potatoes",
    "tomato": "tomatoes",
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
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("man"):
        last = last[:-3] + "men"
    elif re.search(r"(s|x|z|ch|sh)$", last):
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
        cleaned = [c for c in map(clean_name, names) if c]
        for name in cleaned:
            self._meaning.setdefault(pluralize(name), (name, True))
        self._meaning.update({name: (name, False) for name in cleaned})  # "glasses" the name beats glasses the plural
        forms = sorted((re.escape(form) for form in self._meaning), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE) if forms else None

    def find(self, caption: str) -> list[Match]:
        """Matches in reading order."""
        if self._pattern is None:
            return []
        found = []
        for hit in self._pattern.finditer(caption):
            meaning = self._meaning.get(hit.group().lower())
            if meaning:  # else a letter that only `re` takes for another one's capital, such as the long s
                found.append(Match(meaning[0], hit.start(), hit.end(), hit.group(), meaning[1]))
        return found
