"""Sets of regions as their authors pass them around: RefCOCOg, Visual Genome, OVAD, Flickr30k Entities.

Readers turn each layout into regions whose path is a file's name alone; `data/convert.py` writes them in the project's format
(data/README.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from evcap.datasets import entities
from evcap.datasets.annotations import image_size, known_id, read_items, read_lists, refuse, typed
from evcap.datasets.benchmarks import Files
from evcap.datasets.coco import corners
from evcap.datasets.named_images import Box
from evcap.datasets.phrases import Region, attribute_marks, within
from evcap.errors import EvcapError
from evcap.text_files import brief, read_json, read_text


@dataclass(frozen=True)
class RegionSplit:
    """The images of a split, and its phrases where they are counted."""

    images: int
    phrases: int | None = None


REGION_SETS = {
    # Mao et al. 2016 (arXiv 1511.02283) in the splits of Nagaraja et al. 2016 ("umd"); photos of COCO 2014's train
    "refcocog": {
        "train": RegionSplit(21899, 80512),
        "val": RegionSplit(1300, 4896),
        "test": RegionSplit(2600, 9602),
    },
    # Krishna et al. 2016 (arXiv 1602.07332) in the splits of DenseCap (Johnson et al. 2016)
    "visual-genome": {"train": RegionSplit(77398), "val": RegionSplit(5000), "test": RegionSplit(5000)},
    # Bravo et al. 2023 (arXiv 2211.12914); photos of COCO 2017's val
    "ovad": {"test": RegionSplit(2000)},
    # Plummer et al. 2015 (arXiv 1505.04870); photos of Flickr30k
    "flickr30k-entities": {"train": RegionSplit(29783), "val": RegionSplit(1000), "test": RegionSplit(1000)},
}


@dataclass
class Published:
    """A split as published.

    images, phrases: how many it lists, those that are left out among them. regions: `path` is the name of a file, `size` and
    `real_size` are both the size in which boxes are measured. attributes: what the marks of regions mean. left_out: what is
    not among the regions -> how often.
    """

    path: Path
    images: int
    phrases: int | None = None
    regions: list[Region] = field(default_factory=list)
    attributes: list[dict] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, image: int, file: str, size: tuple[int, int], box: Box, phrases: list[str], types=(), attributes=()) -> None:
        """A region, cut where it leaves the image; counted as left out where nothing is left of it or nothing is said."""
        inside, said = within(box, size), tuple(dict.fromkeys(text.strip() for text in phrases if text.strip()))
        if inside and said:
            kinds = tuple(dict.fromkeys(types))
            self.regions.append(Region(image, Path(file), inside, said, kinds, size, size, tuple(attributes)))
        else:
            self.left_out["regions outside their image" if said else "regions without a phrase"] += 1


def read_published(name: str, split: str, files: Files) -> Published:
    """One split of a set from what was downloaded.

    Raises EvcapError for files that are absent or damaged, and for another number of images or phrases than the set has.
    """
    found = _READERS[name](files, split)
    expected = REGION_SETS[name][split]
    counts = [("images", found.images, expected.images), ("phrases", found.phrases, expected.phrases)]
    for what, count, wanted in counts:
        if count != wanted:
            raise EvcapError(f"{found.path}: {split} has {count:,} {what}, expected {wanted:,}: is the file whole?")
    if not found.regions:
        raise EvcapError(f"{found.path}: {split} has no region")
    return found


def _refcocog(files: Files, split: str) -> Published:
    """MDETR's finetune_refcocog_SPLIT.json, or the same with masks: an image for each expression, with one annotation.

    The authors' own refs(umd).p is a pickle, which runs whatever it says when it is opened: it is not read.
    """
    path = files.need(f"finetune_refcocog_{split}.json", f"finetune_refcocog_{split}_with_mask.json")
    data = read_lists(path, ("images", "annotations"))
    images = {}

    def read_image(i: dict) -> None:
        key = typed(i, "id", int)
        images[key] = (typed(i, "original_id", int), typed(i, "file_name", str), image_size(i), typed(i, "caption", str))

    read_items(path, data, "images", read_image)
    expressions: dict[tuple[int, int], list[str]] = {}
    boxes = {}

    def read(a: dict) -> None:
        image, file, size, text = images[known_id(a, "image_id", images)]
        place = image, typed(a, "original_id", int)
        boxes[place] = file, size, corners(a["bbox"])
        expressions.setdefault(place, []).append(text)

    read_items(path, data, "annotations", read)
    found = Published(path, len({image for image, *_ in images.values()}), len(data["annotations"]))
    for place, texts in expressions.items():
        file, size, box = boxes[place]
        found.add(place[0], file, size, box, texts)
    return found


def _visual_genome(files: Files, split: str) -> Published:
    """region_descriptions.json and image_data.json of one version, 1.0 or 1.2, and DenseCap's densecap_splits.json."""
    splits = files.need("densecap_splits.json")
    content = read_json(splits)
    ids = content.get(split) if isinstance(content, dict) else None
    if not isinstance(ids, list) or not all(type(key) is int for key in ids):
        raise EvcapError(f"{splits} has no list of image ids '{split}'")
    wanted = set(ids)
    images = files.need("image_data.json")
    rows = _listed(images, lambda i: (typed(i, "image_id" if "image_id" in i else "id", int), image_size(i)))
    sizes = {key: size for key, size in rows if key in wanted}
    path = files.need("region_descriptions.json")
    found = Published(path, len(wanted))
    described = set()

    def read(image: dict) -> None:
        key = typed(image, "id", int)
        if key in sizes:
            described.add(key)
            for region in typed(image, "regions", list):
                box = corners(region[side] for side in ("x", "y", "width", "height"))
                found.add(key, f"{key}.jpg", sizes[key], box, [typed(region, "phrase", str)])

    _listed(path, read)
    if missing := len(wanted - described):  # version 1.2 has fewer images than 1.0, for which the splits were made
        found.left_out["images of the split that are in neither file"] = missing
    return found


def _ovad(files: Files, split: str) -> Published:
    """ovad2000.json: COCO's format with `attributes`, and their marks as `att_vec` in each annotation."""
    path = files.need("ovad2000.json")
    data = read_lists(path, ("images", "annotations", "categories", "attributes"))
    images = dict(
        read_items(path, data, "images", lambda i: (typed(i, "id", int), (typed(i, "file_name", str), image_size(i))))
    )
    names = dict(read_items(path, data, "categories", lambda c: (typed(c, "id", int), typed(c, "name", str))))
    used = set(read_items(path, data, "annotations", lambda a: typed(a, "category_id", int)))
    if not used <= set(names):  # its documentation says that they count from 0 to 79
        names = dict(enumerate(names.values()))
    found = Published(path, len(images), attributes=data["attributes"])

    def read(a: dict) -> None:
        image, name = known_id(a, "image_id", images), names[known_id(a, "category_id", names)]
        found.add(image, *images[image], corners(a["bbox"]), [name], (), attribute_marks(a["att_vec"], len(data["attributes"])))

    read_items(path, data, "annotations", read)
    return found


def _entities(files: Files, split: str) -> Published:
    """SPLIT.txt with the ids of photos; Annotations/ID.xml and Sentences/ID.txt for each."""
    path = files.need(f"{split}.txt")
    ids = read_text(path).split()
    refuse(path, "lines are no ids of photos", [brief(key) for key in ids if not (key.isascii() and key.isdigit())])
    found = Published(path, len(set(ids)))
    for key in dict.fromkeys(ids):
        named = entities.read_sentences(files.need(f"{key}.txt"))
        size, boxes = entities.read_boxes(files.need(f"{key}.xml"))
        for box, shown in boxes:
            said = [named[entity] for entity in shown if entity in named]
            phrases, types = ([text for part in said for text in part[column]] for column in (0, 1))
            found.add(int(key), f"{key}.jpg", size, box, phrases, types)
    return found


_READERS: dict[str, Callable[[Files, str], Published]] = {
    "refcocog": _refcocog,
    "visual-genome": _visual_genome,
    "ovad": _ovad,
    "flickr30k-entities": _entities,
}


def _listed(path: Path, read: Callable) -> list:
    """`read` of each item of a JSON file that is one list."""
    data = read_json(path)
    if not isinstance(data, list):
        raise EvcapError(f"{path} is not a file of Visual Genome: expected a list")
    return read_items(path, {"items": data}, "items", read)
