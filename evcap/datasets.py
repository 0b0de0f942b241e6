"""Readers of captioned pictures, boxes and name lists. Formats: data/README.md."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from evcap.errors import EvcapError


@dataclass(frozen=True)
class CaptionedImage:
    """A picture with its reference captions; `scene` is the class of sets that have one."""

    id: int
    path: Path
    captions: list[str]
    scene: str | None = None


@dataclass(frozen=True)
class Instance:
    """One object: its class name and box (x1,y1,x2,y2), in pixels of the picture at full size."""

    image_id: int
    path: Path
    name: str
    box: tuple[float, float, float, float]
    iscrowd: bool


def _read_json(path: Path, keys: tuple[str, ...]) -> dict:
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise EvcapError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise EvcapError(f"{path} is not JSON: {error}") from None
    missing = [k for k in keys if not isinstance(data, dict) or not isinstance(data.get(k), list)]
    if missing:
        raise EvcapError(f"{path} is not in COCO format: it has no list '{missing[0]}'")
    return data


def _images_by_id(path: Path, data: dict, folder: Path) -> dict[int, dict]:
    try:
        images = {i["id"]: i for i in data["images"]}
        absent = [i["file_name"] for i in images.values() if not (folder / i["file_name"]).is_file()]
    except (KeyError, TypeError) as error:
        raise EvcapError(f"{path}: an image has no {error}") from None
    if len(images) < len(data["images"]):
        raise EvcapError(f"{path}: {len(data['images']) - len(images)} image ids stand twice")
    if absent:
        raise EvcapError(f"{path}: {len(absent)} pictures are not in {folder}, the first is {absent[0]}")
    return images


def read_coco_captions(json_path: str | Path, images_dir: str | Path) -> list[CaptionedImage]:
    """Pictures of a COCO captions file, in the file's order.

    Raises EvcapError for a file of another format, a missing picture or a picture without captions.
    """
    json_path, folder = Path(json_path), Path(images_dir)
    data = _read_json(json_path, ("images", "annotations"))
    images = _images_by_id(json_path, data, folder)
    captions = defaultdict(list)
    try:
        for annotation in data["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise EvcapError(f"{json_path}: an annotation has no {error}") from None
    silent = [i["file_name"] for i in images.values() if i["id"] not in captions]
    if silent:
        raise EvcapError(f"{json_path}: {len(silent)} pictures have no caption, the first is {silent[0]}")
    return [
        CaptionedImage(i["id"], folder / i["file_name"], captions[i["id"]], i.get("scene")) for i in images.values()
    ]


def read_instances(json_path: str | Path, images_dir: str | Path) -> list[Instance]:
    """Objects of a COCO instances file, in the file's order. Raises EvcapError as `read_coco_captions` does."""
    json_path, folder = Path(json_path), Path(images_dir)
    data = _read_json(json_path, ("images", "annotations", "categories"))
    images = _images_by_id(json_path, data, folder)
    try:
        names = {c["id"]: c["name"] for c in data["categories"]}
        objects = []
        for a in data["annotations"]:
            x, y, width, height = a["bbox"]
            path = folder / images[a["image_id"]]["file_name"]
            box = (x, y, x + width, y + height)
            objects.append(Instance(a["image_id"], path, names[a["category_id"]], box, bool(a.get("iscrowd"))))
    except (KeyError, TypeError, ValueError) as error:
        raise EvcapError(f"{json_path}: an annotation is incomplete or names what is not there ({error})") from None
    return objects


def read_lvis_names(path: str | Path) -> list[list[str]]:
    """Names with their synonyms, one line each, synonyms separated by "/"."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise EvcapError(f"cannot read {path}: {error.strerror}") from None
    return [[s.strip() for s in line.split("/") if s.strip()] for line in lines if line.strip()]
