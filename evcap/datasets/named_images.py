"""Named images, the raw material of a memory: in folders that carry the name, or listed in a CSV file."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from evcap.errors import EvcapError
from evcap.images.opening import ImageError, find_images, open_image
from evcap.memory.memory import checked_name
from evcap.text_files import one_line, read_table

Report = Callable[[str], object]
Box = tuple[float, float, float, float]
ALIASES = {"file": "image", "file_name": "image"}  # the latter in the image folders of Hugging Face's datasets
CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class NamedImage:
    """An image, or the part of it inside a box (x1,y1,x2,y2 in pixels of the full size), and the name of what it shows.

    `source` and `label` are what a memory notes beside the key: where it is from, and which image of that it is.
    """

    name: str
    path: Path
    source: str
    box: Box | None = None
    label: str = ""  # the file's name if empty

    @property
    def seen(self) -> tuple[Path, Box | None]:
        """What its key is made of."""
        return self.path, self.box

    def open(self, at_least: int | None = None) -> Image.Image:
        """The image in RGB; a whole one may be shrunk as `open_image` does. Raises ImageError."""
        if self.box is None:
            return open_image(self.path, at_least)
        image = open_image(self.path)
        x1, y1, x2, y2 = self.box
        corners = (round(max(0, x1)), round(max(0, y1)), round(min(image.width, x2)), round(min(image.height, y2)))
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise ImageError(f"{self.path}: box {self.box} holds none of its {image.width} x {image.height} pixels")
        return image.crop(corners)


def choose(candidates: Sequence[NamedImage], per_name: int, seed: int) -> list[NamedImage]:
    """At most `per_name` images a name, drawn at random, names in alphabetical order."""
    by_name = defaultdict(list)
    for item in candidates:
        by_name[item.name].append(item)
    draw = random.Random(seed)
    return [i for name in sorted(by_name) for i in draw.sample(by_name[name], min(per_name, len(by_name[name])))]


def distinct(items: Sequence[NamedImage]) -> list[NamedImage]:
    """The first item of each image, or part of one: an image may bear several names."""
    first: dict[tuple[Path, Box | None], NamedImage] = {}
    for item in items:
        first.setdefault(item.seen, item)
    return list(first.values())


def columns(items: Sequence[NamedImage]) -> tuple[list[str], list[str], list[str]]:
    """Names, sources and images, as a memory takes them."""
    return [i.name for i in items], [i.source for i in items], [i.label or i.path.name for i in items]


def read_named_folders(folder: str | Path, source: str, report: Report = lambda line: None) -> list[NamedImage]:
    """Images in folders that bear their name, DIR/fire hydrant/1.jpg; what lies deeper counts too.

    Characters that no folder's name can hold may stand as %2F, as in URLs. Folders without images are left out, which
    `report` is told in one line, as are files of kinds that are not read. Raises EvcapError when there is no image at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvcapError(f"{folder}: there is no such folder")
    items, empty = [], []
    for part in sorted(folder.iterdir()):
        if part.is_dir() and not part.name.startswith("."):
            name = checked_name(unquote(part.name))
            try:
                files = find_images([part], report=report)
            except EvcapError:
                empty.append(part.name)
                continue
            items += [NamedImage(name, file, source, label=str(file.relative_to(folder))) for file in files]
    if not items:
        what = f"none of its {len(empty)} folders holds an image" if empty else "holds no folders"
        raise EvcapError(f"{folder}: {what}; put the images of each name into a folder of that name")
    if empty:
        report(f"{folder}: folders without images are left out: {', '.join(empty)}")
    return items


def read_named_csv(path: str | Path, source: str) -> list[NamedImage]:
    """Images of a CSV file with the columns image (or file, file_name) and name, and x1, y1, x2, y2 for boxes, which may be
    empty.

    Columns are separated by commas, semicolons or tabs; image paths are relative to the file. Raises EvcapError for missing
    columns or images and for rows that say nothing.
    """
    path = Path(path)
    expected = f"its first line must name the columns image,name and may add {','.join(CORNERS)}"
    items = [_csv_item(path, line, row, source) for line, row in read_table(path, {"image", "name"}, expected, ALIASES)]
    missing = [item.path for item in items if not item.path.is_file()]
    if missing:
        raise EvcapError(f"{path}: {len(missing)} image files are missing, the first is {missing[0]}")
    return items


def _csv_item(path: Path, line: int, row: dict[str, str | None], source: str) -> NamedImage:
    corners = [(row.get(corner) or "").strip() for corner in CORNERS]
    try:
        box = tuple(map(float, corners)) if any(corners) else None
        if box and not (box[0] < box[2] and box[1] < box[3]):  # also refuses nan
            raise ValueError
    except ValueError:
        raise EvcapError(
            f"{path}, line {line}: {one_line(','.join(corners))} is no box; x1 < x2 and y1 < y2, in pixels"
        ) from None
    if not row["image"] or not row["name"]:
        raise EvcapError(f"{path}, line {line}: the image or its name is missing")
    return NamedImage(checked_name(row["name"]), path.parent / row["image"], source, box, row["image"])
