"""Captioning benchmarks: how their authors and the hub pass them around, and what the EVCap paper scored on them.

Readers turn each layout into rows of one form; `data/convert.py` writes them in the project's format (data/README.md).
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from evcap.datasets.annotations import read_items, read_lists, refuse, typed
from evcap.errors import EvcapError
from evcap.text_files import one_line, read_table


@dataclass(frozen=True)
class Split:
    """The images of a split, and how many captions it has at least for each."""

    pictures: int
    captions_each: int


BENCHMARKS = {
    # Karpathy and Fei-Fei 2015 (arXiv 1412.2306): COCO 2014 train, and its val in three parts
    "coco-karpathy": {"train": Split(82783, 5), "restval": Split(30504, 5), "val": Split(5000, 5), "test": Split(5000, 5)},
    # the same authors' splits of Flickr30k (Young et al. 2014)
    "flickr30k": {"train": Split(29000, 5), "val": Split(1014, 5), "test": Split(1000, 5)},
    # Agrawal et al. 2019 (arXiv 1812.08658); captions of test are on the evaluation server only
    "nocaps": {"val": Split(4500, 10), "test": Split(10600, 0)},
    # Bitton-Guetta et al. 2023 (arXiv 2303.07274)
    "whoops": {"test": Split(500, 5)},
}

# MD5 of COCO's archives. Its pages name none: these are what other projects that download them check against.
ARCHIVES = {
    "coco-karpathy": {
        "train2014.zip": "0da8c0bd3d6becc4dcb32757491aca88",
        "val2014.zip": "a3d79f5ed8d289b7a7554ce06a5782b3",
    },
    "refcocog": {"train2014.zip": "0da8c0bd3d6becc4dcb32757491aca88"},
}

LISTED, UNVERIFIED = "public listing of results", "unverified"  # unverified: quoted from memory
# Scores of the paper (arXiv 2311.15879) in percent, each with where the figure was read
PAPER: dict[str, dict[str, dict[str, tuple[float, str]]]] = {
    "coco-karpathy-test": {
        "overall": {
            "BLEU-4": (41.5, UNVERIFIED),
            "METEOR": (31.2, UNVERIFIED),
            "CIDEr": (140.1, LISTED),
            "SPICE": (24.7, UNVERIFIED),
        }
    },
    "nocaps-val": {
        "in-domain": {"CIDEr": (111.7, UNVERIFIED), "SPICE": (15.3, UNVERIFIED)},
        "near-domain": {"CIDEr": (119.5, UNVERIFIED), "SPICE": (15.6, UNVERIFIED)},
        "out-domain": {"CIDEr": (116.5, UNVERIFIED), "SPICE": (14.7, UNVERIFIED)},
        "overall": {"CIDEr": (119.3, UNVERIFIED), "SPICE": (15.3, UNVERIFIED)},
    },
    "flickr30k-karpathy-test": {"overall": {"CIDEr": (84.4, LISTED), "SPICE": (18.0, UNVERIFIED)}},
    "whoops": {"overall": {"BLEU-4": (24.4, LISTED), "CIDEr": (85.3, UNVERIFIED)}},
}


@dataclass(frozen=True)
class Row:
    """One image of a set: its file's name without folders, its captions, other fields that are kept (`domain`)."""

    id: int
    file: str
    captions: list[str]
    fields: dict[str, str] = field(default_factory=dict)


class Files:
    """The files below a folder by name, links followed. Raises EvcapError for a folder that is not there."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise EvcapError(f"there is no folder {folder}")
        self.folder = folder
        self._paths: dict[str, list[Path]] = defaultdict(list)
        seen = set()
        for root, folders, names in os.walk(folder, followlinks=True):
            place = os.path.realpath(root)
            if place in seen:  # a link to a folder above
                folders.clear()
                continue
            seen.add(place)
            for name in names:
                self._paths[name].append(Path(root, name))

    def find(self, name: str) -> Path | None:
        """The file of this name, None if there is none. Raises EvcapError if there are several."""
        found = self._paths.get(name, [])
        if len(found) > 1:
            raise EvcapError(f"{name} stands twice below {self.folder}: {found[0]} and {found[1]}")
        return found[0] if found else None

    def need(self, *names: str) -> Path:
        """The first of these files that is there. Raises EvcapError if none is."""
        for name in names:
            if path := self.find(name):
                return path
        raise EvcapError(f"there is no {' and no '.join(names)} below {self.folder}: data/README.md says where to get it")


def read_rows(benchmark: str, split: str, files: Files) -> list[Row]:
    """The images of one split from what was downloaded. Raises EvcapError for files that are absent or damaged, image ids
    that stand twice, and another number of images or captions than the set has."""
    rows, path = _READERS[benchmark](files, split)
    expected = BENCHMARKS[benchmark][split]
    seen: set[int] = set()
    twice = [row.id for row in rows if row.id in seen or seen.add(row.id)]
    refuse(path, f"image ids of {split} stand more than once", twice)
    if len(rows) != expected.pictures:
        raise EvcapError(f"{path}: {split} has {len(rows):,} images, expected {expected.pictures:,}: is the file whole?")
    if expected.captions_each:
        refuse(path, f"images of {split} have no caption", [row.file for row in rows if not row.captions])
    captions, least = sum(len(row.captions) for row in rows), expected.captions_each * expected.pictures
    if captions < least:
        raise EvcapError(f"{path}: {split} has {captions:,} captions, expected at least {least:,}: is the file whole?")
    return rows


def _karpathy(path: Path, split: str, key: str) -> tuple[list[Row], Path]:
    """dataset_coco.json and dataset_flickr30k.json: one list of images with their `split` and `sentences`."""

    def read(image: dict) -> Row | None:
        if image["split"] != split:
            return None
        captions = [typed(sentence, "raw", str) for sentence in image["sentences"]]
        return Row(typed(image, key, int), typed(image, "filename", str), captions)

    rows = read_items(path, read_lists(path, ("images",)), "images", read)
    return [row for row in rows if row is not None], path


def _coco_karpathy(files: Files, split: str) -> tuple[list[Row], Path]:
    return _karpathy(files.need("dataset_coco.json"), split, "cocoid")


def _flickr30k(files: Files, split: str) -> tuple[list[Row], Path]:
    """Karpathy's JSON, or the table of the hub's nlphuji/flickr30k, which was made from it."""
    path = files.need("dataset_flickr30k.json", "flickr_annotations_30k.csv")
    if path.suffix == ".json":
        return _karpathy(path, split, "imgid")

    def read(number: int, row: dict[str, str]) -> Row:
        return Row(int(row["img_id"]), row["filename"], _strings(row, "raw"))

    return list(_each_line(path, read, lambda row: row["split"] == split)), path


def _nocaps(files: Files, split: str) -> tuple[list[Row], Path]:
    """nocaps_val_4500_captions.json with `domain` in each image; nocaps_test_image_info.json without annotations."""
    path = files.need({"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}[split])
    data = read_lists(path, ("images", "annotations") if split == "val" else ("images",))
    captions = defaultdict(list)
    if split == "val":
        pairs = read_items(path, data, "annotations", lambda a: (typed(a, "image_id", int), typed(a, "caption", str)))
        for key, caption in pairs:
            captions[key].append(caption)

    def read(image: dict) -> Row:
        fields = {"domain": typed(image, "domain", str)} if split == "val" else {}
        return Row(typed(image, "id", int), typed(image, "file_name", str), captions[image["id"]], fields)

    return read_items(path, data, "images", read), path


def _whoops(files: Files, split: str) -> tuple[list[Row], Path]:
    """The hub's nlphuji/whoops: whoops_dataset.csv beside whoops_images/, since November 2024 test/metadata.csv.

    Its `image_id` are words: images are numbered in the order of the table.
    """
    path = files.need("whoops_dataset.csv", "metadata.csv")

    def read(number: int, row: dict[str, str]) -> Row:
        file = row.get("file_name") or f"{row['image_id']}.png"
        return Row(number, Path(file).name, _strings(row, "crowd_captions"))

    return list(_each_line(path, read)), path


_READERS: dict[str, Callable[[Files, str], tuple[list[Row], Path]]] = {
    "coco-karpathy": _coco_karpathy,
    "flickr30k": _flickr30k,
    "nocaps": _nocaps,
    "whoops": _whoops,
}


def _each_line(
    path: Path, read: Callable[[int, dict[str, str]], Row], wanted: Callable[[dict[str, str]], bool] = lambda row: True
) -> Iterator[Row]:
    """`read(number, row)` of the wanted rows of a CSV file with a header; EvcapError names a row that it cannot use."""
    for number, (_, row) in enumerate(read_table(path, set(), "")):
        try:
            if wanted(row):
                yield read(number, row)
        except KeyError as error:
            raise EvcapError(f"{path} has no column {error}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise EvcapError(f"{path}: row {number + 1} cannot be used: {one_line(error)}") from None


def _strings(row: dict[str, str], column: str) -> list[str]:
    """A cell that holds a JSON list of strings."""
    value = json.loads(row[column])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{column} is not a list of texts")
    return value
