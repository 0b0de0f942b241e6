"""Boxes that a user asks about, in COCO's JSON or in a CSV table. A box that is wrong keeps its place, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from evcap.datasets.annotations import read_items, read_lists, refuse
from evcap.datasets.named_images import CORNERS, Box
from evcap.errors import EvcapError
from evcap.text_files import LARGEST_TEXT, brief, one_line, read_table

Id = int | str
ALIASES = {"file_name": "file", "image": "file"}
EXPECTED = (
    f"its first line must name the columns file,{','.join(CORNERS)}; COCO's format is read from a file that ends in .json"
)


@dataclass(frozen=True)
class AskedBox:
    """One box of a file of boxes.

    id: the annotation's in COCO's format, None where it has none; in a table the row's column `id`, or else its number from
    1 on. file: the image as the file of boxes names it, None where it cannot be told. box: (x1,y1,x2,y2) in pixels of
    the image as stored, finite, x1 < x2, y1 < y2, which may reach out of the image. error: what is wrong with it, in one
    line; exactly one of box and error is None.
    """

    id: Id | None
    file: str | None
    box: Box | None
    error: str | None = None


def read_boxes(path: str | Path) -> list[AskedBox]:
    """The boxes of a file in its order: COCO's format if its name ends in .json, else a CSV table.

    Of COCO's format `images` (id, file_name) and `annotations` (id, image_id, bbox as x, y, width, height) are read. The
    table has the columns file, x1, y1, x2, y2 in any order, others too, separated by commas, semicolons or tabs. Raises
    EvcapError for a file that cannot be read, is not of its format, or holds no box.
    """
    path = Path(path)
    boxes = list(_coco(path) if path.suffix.lower() == ".json" else _table(path))
    if not boxes:
        raise EvcapError(f"{path} holds no boxes")
    return boxes


def boxes_by_file(boxes: Iterable[AskedBox]) -> dict[str, list[AskedBox]]:
    """{image: its boxes}, without those that are wrong, both in the order they are first named."""
    files: dict[str, list[AskedBox]] = {}
    for asked in boxes:
        if asked.box is not None:
            files.setdefault(asked.file, []).append(asked)
    return files


def _coco(path: Path) -> Iterator[AskedBox]:
    data = read_lists(path, ("images", "annotations"), most=LARGEST_TEXT)
    images = read_items(path, data, "images", lambda image: (_id(image["id"]), _name(image["file_name"])))
    files = dict(images)
    counts = Counter(key for key, _ in images)
    refuse(path, "image ids stand more than once", [brief(key) for key, count in counts.items() if count > 1])
    seen = set()
    for number, annotation in enumerate(data["annotations"]):
        key = file = None
        try:
            if not isinstance(annotation, dict):
                raise ValueError(f"it is {brief(annotation)}, expected an object with image_id and bbox")
            key = _id(annotation["id"]) if annotation.get("id") is not None else None
            image = annotation["image_id"]
            file = files.get(image) if _is_id(image) else None
            if key is not None and key in seen:
                raise ValueError("an earlier box has the same id")
            seen.add(key)
            if file is None:
                raise ValueError(f"image_id {brief(image)} is not among its images")
            yield AskedBox(key, file, _from_sides(annotation["bbox"]))
        except KeyError as error:
            yield AskedBox(key, file, None, f"{path.name}: annotations[{number}] has no {error}")
        except (TypeError, ValueError, OverflowError) as error:
            yield AskedBox(key, file, None, f"{path.name}: annotations[{number}] cannot be used: {one_line(error)}")


def _table(path: Path) -> Iterator[AskedBox]:
    for number, (line, row) in enumerate(read_table(path, {"file", *CORNERS}, EXPECTED, ALIASES), start=1):
        key, file = (row.get("id") or "").strip() or number, (row["file"] or "").strip() or None
        try:
            if file is None:
                raise ValueError("it names no file")
            if None in row or None in row.values():
                raise ValueError("it has more or fewer columns than the first line")
            yield AskedBox(key, file, _checked(tuple(_number(row[corner], corner) for corner in CORNERS)))
        except ValueError as error:
            yield AskedBox(key, file, None, f"{path.name}, line {line} cannot be used: {one_line(error)}")


def _from_sides(bbox) -> Box:
    """The corners of x, y, width and height."""
    if not isinstance(bbox, list) or len(bbox) != 4 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in bbox):
        raise ValueError(f"bbox is {brief(bbox)}, expected four numbers: x, y, width, height")
    x, y, width, height = map(float, bbox)
    if width <= 0 or height <= 0:
        raise ValueError(f"bbox {brief(bbox)} is empty: its width and its height must be above 0")
    return _checked((x, y, x + width, y + height))


def _checked(box: Box) -> Box:
    if not all(map(isfinite, box)):
        raise ValueError(f"box {brief(box)} is not finite")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"box {brief(box)} is empty or its corners are swapped: x1 < x2 and y1 < y2")
    return box


def _number(cell: str, column: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{column} is {brief(cell)}, expected a number") from None


def _is_id(value) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _id(value) -> Id:
    if not _is_id(value):
        raise ValueError(f"its id is {brief(value)}, expected a whole number or a text")
    return value


def _name(value) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"its file_name is {brief(value)}, expected a file")
    return value
