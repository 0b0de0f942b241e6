"""The attributes of OVAD (Bravo et al. 2023), and how they are put into words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evcap.datasets.annotations import read_items, read_lists, typed

# words that stand for an attribute besides its own
MORE = {
    "young/baby": ("kid", "kids", "child", "toddler", "boy", "girl"),
    "adult/old/aged": ("teen", "elder"),
}


@dataclass(frozen=True)
class Attribute:
    """One attribute. name: its kind and its synonyms, color:red/crimson. verb: what a thing does with it, "is" or "has".
    group: how frequent it is, "head", "medium" or "tail"."""

    name: str
    verb: str
    group: str

    @property
    def texts(self) -> list[str]:
        """What a region is compared with, two texts a synonym: "the red color", "the  has red color".

        The second is a template whose noun is empty, hence its two blanks: what DynRefer was trained and scored with.
        """
        kind, _, synonyms = self.name.partition(":")
        words = [*synonyms.split("/"), *MORE.get(synonyms, ())]
        end = f" {kind.replace(' tone', '')}" if self.verb == "has" else ""
        return [f"the {start}{word}{end}" for word in words for start in ("", f" {self.verb} ")]


def read_attributes(json_path: str | Path) -> list[Attribute]:
    """The attributes that a file of regions lists, in the order of its regions' marks. Raises EvcapError as readers do."""
    path = Path(json_path)

    def read(a: dict) -> Attribute:
        name, verb = typed(a, "name", str), typed(a, "is_has_att", str)
        if ":" not in name or verb not in ("is", "has"):
            raise ValueError(f"{name!r} with {verb!r} is no attribute; expected kind:name/name with 'is' or 'has'")
        return Attribute(name, verb, typed(a, "freq_set", str))

    return read_items(path, read_lists(path, ("attributes",)), "attributes", read)
