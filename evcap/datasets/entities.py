"""Flickr30k Entities (Plummer et al. 2015) in its own layout: a text of captions and an XML of boxes for each photo."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from evcap.datasets.named_images import Box
from evcap.errors import EvcapError
from evcap.text_files import one_line, read_text

LARGEST = 2**20  # bytes; the largest of the set has 30,000
NOT_VISUAL = "0"  # the entity of what cannot be seen
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/\w+)+) ([^\[\]]+)\]")


def read_sentences(path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """{entity: (phrases, types)} of the captions of a photo, a line each: [/EN#12/people A man] in [/EN#13/clothing a hat].

    Raises EvcapError for a file that cannot be read or that marks a phrase in another way.
    """
    text = read_text(path, LARGEST)
    entities: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    marked = _PHRASE.findall(text)
    if len(marked) != text.count("[/EN#"):
        raise EvcapError(f"{path} is not a text of Flickr30k Entities: {text.count('[/EN#') - len(marked)} phrases do not end")
    for entity, types, phrase in marked:
        if entity != NOT_VISUAL:
            phrases, kinds = entities[entity]
            phrases.append(phrase.strip())
            kinds += types[1:].split("/")
    return dict(entities)


def read_boxes(path: Path) -> tuple[tuple[int, int], list[tuple[Box, list[str]]]]:
    """((width, height) of the photo, boxes with the entities that each shows) of an annotation file in XML.

    Boxes are x1, y1, x2, y2 in pixels; the file counts pixels from 1 and includes the last. Raises EvcapError for a file that
    cannot be read, is no XML of this layout, or declares entities, which could multiply to any size.
    """
    text = read_text(path, LARGEST)
    if "<!DOCTYPE" in text:
        raise EvcapError(f"{path} is not an annotation file of Flickr30k Entities: it has a document type")
    try:
        root = ElementTree.fromstring(text)
        size = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
        boxes = []
        for thing in root.iterfind("object"):
            entities = [(name.text or "").strip() for name in thing.iterfind("name")]
            for corners in thing.iterfind("bndbox"):
                x1, y1, x2, y2 = (int(corners.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
                boxes.append(((float(x1 - 1), float(y1 - 1), float(x2), float(y2)), entities))
    except (ElementTree.ParseError, ValueError, OverflowError) as error:
        raise EvcapError(f"{path} is not an annotation file of Flickr30k Entities: {one_line(error)}") from None
    if min(size) < 1:
        raise EvcapError(f"{path} is not an annotation file of Flickr30k Entities: its size is {size[0]} x {size[1]}")
    return size, boxes
