"""Readers of captioned images, boxes and name lists. Formats: data/README.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from evcap.datasets.annotations import read_items, read_lists, refuse, typed
from evcap.errors import EvcapError
from evcap.memory.names import clean_name, spoken_name
from evcap.text_files import brief, one_line, read_json, read_text


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its reference captions; `scene` and `domain` are the classes of sets that have them."""

    id: int
    path: Path
    captions: list[str]
    scene: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Instance:
    """One object: its class name, its box (x1,y1,x2,y2) and its area, in pixels of the image at full size.

    The area is that of the object's outline where the file gives it, of the box otherwise. `iscrowd`: the box holds a
    group of objects that were not told apart.
    """

    image_id: int
    path: Path
    name: str
    box: tuple[float, float, float, float]
    area: float
    iscrowd: bool


def read_coco_captions(json_path: str | Path, images_dir: str | Path, captioned: bool = True) -> list[CaptionedImage]:
    """Images of a COCO captions file, in the file's order, their files below `images_dir`.

    captioned: every image must have a caption; False for sets whose captions are not public. Captions of images that
    the file does not list are left out. Raises EvcapError for a file of another format, an image id that stands twice, a
    missing image file or an image without captions.
    """
    json_path, folder = Path(json_path), Path(images_dir)
    data = read_lists(json_path, ("images", "annotations"))
    paths = image_paths(json_path, data, folder)
    captions = defaultdict(list)
    pairs = read_items(json_path, data, "annotations", lambda a: (typed(a, "image_id", int), typed(a, "caption", str)))
    for key, text in pairs:
        captions[key].append(text)
    if captioned:
        refuse(json_path, "images have no caption", [path.name for key, path in paths.items() if key not in captions])
    return [CaptionedImage(i["id"], paths[i["id"]], captions[i["id"]], i.get("scene"), i.get("domain")) for i in data["images"]]


def read_caption_texts(json_path: str | Path) -> list[str]:
    """All captions of a COCO captions file, whose images need not be there. Raises EvcapError for another format."""
    path = Path(json_path)
    return read_items(path, read_lists(path, ("annotations",)), "annotations", lambda a: typed(a, "caption", str))


def read_instances(json_path: str | Path, images_dir: str | Path) -> list[Instance]:
    """Objects of a COCO instances file, in the file's order.

    Raises EvcapError as `read_coco_captions` does, and for an object whose image or class the file does not list.
    """
    json_path, folder = Path(json_path), Path(images_dir)
    data = read_lists(json_path, ("images", "annotations", "categories"))
    paths = image_paths(json_path, data, folder)
    names = dict(read_items(json_path, data, "categories", lambda c: (typed(c, "id", int), typed(c, "name", str))))

    def read(a: dict) -> Instance:
        image, category = a["image_id"], a["category_id"]
        if image not in paths or category not in names:
            raise ValueError(f"image_id {brief(image)} or category_id {brief(category)} is not in this file")
        box = corners(a["bbox"])
        area = float(a.get("area", (box[2] - box[0]) * (box[3] - box[1])))
        return Instance(image, paths[image], names[category], box, area, bool(a.get("iscrowd")))

    return read_items(json_path, data, "annotations", read)


def read_lvis(json_path: str | Path, images_dir: str | Path) -> list[Instance]:
    """The largest object of each LVIS category in each image, by category and image id, read by the package `lvis`.

    v1 names an image by its `coco_url` alone (.../train2017/000000000009.jpg), v0.5 by a `file_name` too: it is looked for
    as train2017/000000000009.jpg, 000000000009.jpg and the `file_name` below `images_dir`. The class name is the category's
    first synonym as LVIS spells it, bat_(animal). Raises EvcapError for a file of another format and for missing images.
    """
    try:
        from lvis import LVIS
    except ImportError as error:  # also of a system library that its OpenCV needs
        raise EvcapError(f"reading LVIS needs the package lvis ({error}): pip install -e '.[synth]'") from None

    class Read(LVIS):
        """Its own reader takes what a system's locale says for the encoding of the file."""

        def _load_json(self, path):
            return read_json(path)

    json_path, folder = Path(json_path), Path(images_dir)
    try:
        lvis = Read(json_path)
        largest: dict[tuple[int, int], dict] = {}
        for a in lvis.load_anns():
            place = a["category_id"], a["image_id"]
            if place not in largest or _area(a) > _area(largest[place]):
                largest[place] = a
        names = {c["id"]: (c.get("synonyms") or [c["name"]])[0] for c in lvis.load_cats({c for c, _ in largest})}
        paths = {i["id"]: _lvis_path(i, folder) for i in lvis.load_imgs(sorted({i for _, i in largest}))}
        found = [_lvis_instance(a, paths[a["image_id"]], names[a["category_id"]]) for _, a in sorted(largest.items())]
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise EvcapError(f"{json_path} is not an annotation file of LVIS ({what})") from None
    refuse(json_path, "image files are missing", [path for path in paths.values() if not path.is_file()])
    return found


def _area(annotation: dict) -> float:
    return annotation["bbox"][2] * annotation["bbox"][3]


def _lvis_path(image: dict, folder: Path) -> Path:
    """Where an image is, or is expected."""
    url = image.get("coco_url", "").split("/")
    places = [*([folder / url[-2] / url[-1], folder / url[-1]] if len(url) > 1 else []), folder / image.get("file_name", "")]
    return next((place for place in places if place.is_file()), places[0])


def _lvis_instance(a: dict, path: Path, name: str) -> Instance:
    return Instance(a["image_id"], path, name, corners(a["bbox"]), float(a["area"]), False)


def corners(bbox) -> tuple[float, float, float, float]:
    """(x1,y1,x2,y2) of x, y, width and height. Raises TypeError or ValueError for anything but four finite numbers."""
    x, y, width, height = map(float, bbox)
    box = (x, y, x + width, y + height)
    if not all(map(isfinite, box)):
        raise ValueError(f"bbox {brief(bbox)} is not finite")
    return box


def read_name_list(path: str | Path) -> list[list[str]]:
    """Rows of a text file, a name each with its synonyms after "/": aerosol can/spray can -> ["aerosol can", "spray can"]."""
    lines = read_text(path).splitlines()
    return [[s.strip() for s in line.split("/") if s.strip()] for line in lines if line.strip(" /")]


def read_vocabulary(path: str | Path) -> dict[str, set[str]]:
    """Names to say, in the file's order, each with all names that mean it, from a file as `read_name_list` reads.

    A line is said by its first name, without its sense in parentheses; lines that are said alike become one.
    """
    vocabulary: dict[str, set[str]] = {}
    for row in read_name_list(path):
        said = spoken_name(row[0])
        if not said:
            raise EvcapError(f"{path}: {brief(row[0])} holds nothing that can be said; give a name of letters or digits")
        vocabulary.setdefault(said, {said}).update(filter(None, map(clean_name, row)))
    if not vocabulary:
        raise EvcapError(f"{path} holds no names; write one a line, synonyms after /")
    return vocabulary


def image_paths(path: Path, data: dict, folder: Path) -> dict[int, Path]:
    images = read_items(path, data, "images", lambda i: (typed(i, "id", int), folder / typed(i, "file_name", str)))
    counts = Counter(key for key, _ in images)
    refuse(path, "image ids stand more than once", [key for key, count in counts.items() if count > 1])
    refuse(path, "image files are missing", [file for _, file in images if not file.is_file()])
    return dict(images)
