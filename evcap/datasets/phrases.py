"""Regions of images with what people call them: phrases, expressions that refer to them, the class names of COCO's boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evcap.datasets.annotations import image_size, known_id, read_items, read_lists, refuse, typed
from evcap.datasets.coco import corners, image_paths, read_instances
from evcap.datasets.named_images import Box
from evcap.text_files import brief


@dataclass(frozen=True)
class Region:
    """One box of an image with all that it is called.

    image_id, path: the image and its file. box: (x1,y1,x2,y2) in pixels of the file, x2 > x1, y2 > y1, within the image.
    phrases: each wording once, in the file's order, at least one. types: the kinds of thing it is said to be, as Entities'
    people, clothing, scene; () where a file knows none. size: (width, height) of the file in pixels. real_size: the same of
    the photo before it was squashed, `size` where it was not. attributes: for each attribute that the file lists 1 if the
    region has it, 0 if not, -1 if that is unknown; () where a file lists none.
    """

    image_id: int
    path: Path
    box: Box
    phrases: tuple[str, ...]
    types: tuple[str, ...]
    size: tuple[int, int]
    real_size: tuple[int, int]
    attributes: tuple[int, ...] = ()

    @property
    def real_box(self) -> Box:
        """The box in pixels of the photo as it was taken: (x1,y1,x2,y2)."""
        across, down = (real / now for real, now in zip(self.real_size, self.size, strict=True))
        x1, y1, x2, y2 = self.box
        return (x1 * across, y1 * down, x2 * across, y2 * down)

    def unsquashed(self, image: Image.Image) -> Image.Image:
        """The image in the proportions of the photo as it was taken, to which `real_box` fits; itself where it has them."""
        return image if image.size == self.real_size else image.resize(self.real_size, Image.Resampling.BICUBIC)


def read_phrases(json_path: str | Path, images_dir: str | Path) -> list[Region]:
    """Regions of a file in the project's format (data/README.md), as data/convert.py writes them, in the file's order.

    Boxes are cut where they leave the image; those that hold nothing of it are left out. Raises EvcapError for a file of
    another format, an image that is missing, or a box without phrases or of an image that the file does not list.
    """
    json_path, folder = Path(json_path), Path(images_dir)
    data = read_lists(json_path, ("images", "annotations"))
    paths = image_paths(json_path, data, folder)
    sizes = dict(read_items(json_path, data, "images", _sizes))
    attributes = len(data["attributes"]) if isinstance(data.get("attributes"), list) else 0

    def read(a: dict) -> Region | None:
        image = known_id(a, "image_id", paths)
        phrases, types = (_texts(a, key) for key in ("phrases", "types"))
        if not phrases:
            raise ValueError("its phrases are empty")
        size, real_size = sizes[image]
        box = within(corners(a["bbox"]), size)
        marks = attribute_marks(a.get("attributes", []), attributes)
        return box and Region(image, paths[image], box, phrases, types, size, real_size, marks)

    found = [region for region in read_items(json_path, data, "annotations", read) if region]
    refuse(json_path, "annotations, but none with a box inside its image", data["annotations"] if not found else [])
    return found


def read_referring(json_path: str | Path, images_dir: str | Path) -> list[Region]:
    """Regions of a file of referring expressions: each box of an image once, with all expressions that refer to it.

    The file is COCO's format with `expression` in each annotation; those whose `bbox` is null refer to nothing and are left
    out. Boxes are cut where they leave the image. Raises EvcapError as `read_phrases` does.
    """
    json_path, folder = Path(json_path), Path(images_dir)
    data = read_lists(json_path, ("images", "annotations"))
    paths = image_paths(json_path, data, folder)
    sizes = dict(read_items(json_path, data, "images", _sizes))
    expressions: dict[tuple[int, Box], list[str]] = {}

    def read(a: dict) -> None:
        image, text = known_id(a, "image_id", paths), typed(a, "expression", str).strip()
        box = None if a["bbox"] is None else within(corners(a["bbox"]), sizes[image][0])
        if box and text:
            expressions.setdefault((image, box), []).append(text)

    read_items(json_path, data, "annotations", read)
    return [
        Region(image, paths[image], box, tuple(dict.fromkeys(texts)), (), *sizes[image])
        for (image, box), texts in expressions.items()
    ]


def read_class_boxes(json_path: str | Path, images_dir: str | Path) -> list[Region]:
    """Regions of a COCO instances file, each called by its class; boxes of crowds are left out. Raises as `read_instances`."""
    json_path = Path(json_path)
    sizes = dict(read_items(json_path, read_lists(json_path, ("images",)), "images", _sizes))
    found = []
    for one in read_instances(json_path, images_dir):
        size, real_size = sizes[one.image_id]
        if not one.iscrowd and (box := within(one.box, size)):
            found.append(Region(one.image_id, one.path, box, (one.name,), (), size, real_size))
    return found


def within(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box inside an image of (width, height); None where that is less than one pixel wide or high."""
    x1, y1, x2, y2 = box
    x1, x2 = max(0.0, x1), min(float(size[0]), x2)
    y1, y2 = max(0.0, y1), min(float(size[1]), y2)
    return (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def attribute_marks(values, attributes: int) -> tuple[int, ...]:
    """The marks of a region, one for each of so many attributes, or none. Raises ValueError for others than 1, 0 and -1."""
    if not isinstance(values, list) or len(values) not in {0, attributes} or not all(type(v) is int for v in values):
        raise ValueError(f"its attributes are {brief(values)}, expected {attributes} whole numbers")
    if not set(values) <= {-1, 0, 1}:
        raise ValueError("its attributes hold another number than 1, 0 and -1")
    return tuple(values)


def _sizes(image: dict) -> tuple[int, tuple[tuple[int, int], tuple[int, int]]]:
    size = image_size(image)
    real = tuple(int(image.get(f"orig_{key}", now)) for key, now in zip(("width", "height"), size, strict=True))
    if min(real) < 1:
        raise ValueError(f"width and height are {brief(size)}")
    return typed(image, "id", int), (size, real)


def _texts(a: dict, key: str) -> tuple[str, ...]:
    values = [value.strip() for value in typed(a, key, list) if isinstance(value, str)]
    return tuple(dict.fromkeys(filter(None, values)))
