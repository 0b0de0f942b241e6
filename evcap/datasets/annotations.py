"""Annotation files in JSON, read so that whatever is wrong gets one line with the file and the place in it."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TypeVar

from evcap.errors import EvcapError
from evcap.text_files import LARGEST_JSON, brief, one_line, read_json

Item = TypeVar("Item")


def read_lists(path: Path, keys: tuple[str, ...], most: int = LARGEST_JSON) -> dict:
    """The object of a JSON file of at most `most` bytes.

    Raises EvcapError for a file that cannot be read or lacks a list under one of `keys`.
    """
    data = read_json(path, most)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise EvcapError(f"{path} is not in COCO format: it has no list '{key}'")
    return data


def read_items(path: Path, data: dict, key: str, read: Callable[[dict], Item]) -> list[Item]:
    """`read` of each item of the list data[key].

    `path` is where the data came from. An item for which `read` raises KeyError, TypeError, ValueError or
    OverflowError is named by an EvcapError: annotations[7] has no 'caption'.
    """
    found = []
    for number, item in enumerate(data[key]):
        try:
            found.append(read(item))
        except KeyError as error:
            raise EvcapError(f"{path}: {key}[{number}] has no {error}") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise EvcapError(f"{path}: {key}[{number}] cannot be used: {one_line(error)}") from None
    return found


def typed(item: dict, key: str, kind: type):
    """item[key]. Raises KeyError if it is not there and ValueError if it is not a `kind`, for `read_items` to tell."""
    if not isinstance(item[key], kind):
        raise ValueError(f"{key} is {brief(item[key])}, expected {kind.__name__}")
    return item[key]


def known_id(item: dict, key: str, known: Container[int]) -> int:
    """item[key], a whole number among the `known`. Raises KeyError and ValueError as `typed` does."""
    if typed(item, key, int) not in known:
        raise ValueError(f"{key} {brief(item[key])} is not in this file")
    return item[key]


def image_size(image: dict) -> tuple[int, int]:
    """(width, height) of an item of `images`. Raises KeyError and ValueError as `typed` does."""
    size = typed(image, "width", int), typed(image, "height", int)
    if min(size) < 1:
        raise ValueError(f"width and height are {brief(size)}")
    return size


def refuse(path: Path, what: str, found: Sequence) -> None:
    """Raises EvcapError with the number and the first of what was `found`, if anything was: 3 images have no caption."""
    if found:
        raise EvcapError(f"{path}: {len(found)} {what}, the first is {found[0]}")
