"""Which regions `evcap region` is asked for: boxes of the command line or of a file, a grid, or windows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from evcap.cli.console import complain
from evcap.cli.options import named_paths
from evcap.cli.preflight import content_hash
from evcap.cli.results import Wanted, told_id
from evcap.errors import EvcapError
from evcap.text_files import brief

if TYPE_CHECKING:
    from PIL.Image import Image

    from evcap.datasets.box_files import AskedBox
    from evcap.datasets.named_images import Box
    from evcap.regions.describe import RegionDescriber

MOST_CELLS = 64  # a side of --grid
Place = Callable[["Image", Callable[[], "RegionDescriber"]], "Sequence[Box]"]  # an open image, what loads the model -> boxes


@dataclass
class AskedImage:
    """An image and the boxes asked of it. file: None for boxes that do not say of which image they are."""

    file: Path | None
    boxes: list[AskedBox] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """All that is asked for.

    told: which regions, in one line, as a later run must ask for them to go on from the results of this one. wanted: ids of an
    image's results. place: where boxes come from once an image is open, None where they are known.
    """

    images: list[AskedImage]
    told: str
    wanted: Wanted
    place: Place | None = None

    @property
    def files(self) -> list[Path]:
        return [image.file for image in self.images if image.file is not None]


def asked_regions(
    paths: Sequence[str], box: Sequence[str], boxes: Path | None, grid: str | None, windows: bool, most: int
) -> Asked:
    """What the options ask for. Raises EvcapError unless it is one of the four ways, and for boxes or images that are none."""
    ways = {"--box": bool(box), "--boxes": boxes is not None, "--grid": grid is not None, "--all": windows}
    given = [way for way, there in ways.items() if there]
    if len(given) != 1:
        rest = f", not {' and '.join(given)} together" if given else ""
        raise EvcapError(f"say which regions to describe, by one of --box, --boxes, --grid and --all{rest}")
    if boxes is not None:
        return _of_file(boxes, paths)
    if not paths:
        raise EvcapError(f"{given[0]} is about images: name some")
    numbers = [_corners(text) for text in box]
    rows, columns = _grid(grid) if grid is not None else (0, 0)
    from evcap.datasets.box_files import AskedBox
    from evcap.images.opening import find_images
    from evcap.regions.proposals import grid_cells, proposed

    files = find_images(named_paths(paths), report=complain)
    if box:
        ids = _numbers(len(box))
        images = [AskedImage(file, [AskedBox(n, str(file), corners) for n, corners in enumerate(numbers, 1)]) for file in files]
        return Asked(images, f"box {' '.join(box)}", lambda file: ids)
    images = [AskedImage(file) for file in files]
    if grid is not None:
        ids = _numbers(len(grid_cells(1, 1, rows, columns)))
        return Asked(
            images, f"grid {rows}x{columns}", lambda file: ids, lambda image, _: grid_cells(*image.size, rows, columns)
        )
    return Asked(images, f"all {most}", lambda file: None, lambda image, load: proposed(load(), image, most))


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]


def _corners(text: str) -> Box:
    """Four numbers of the command line, any: what is wrong with a box is told when its image is open."""
    try:
        x1, y1, x2, y2 = map(float, text.split(","))
    except ValueError:
        raise EvcapError(f"--box {brief(text)} is not four numbers: give x1,y1,x2,y2 in pixels, as 10,20,110,220") from None
    return x1, y1, x2, y2


def _grid(text: str) -> tuple[int, int]:
    """Rows and columns."""
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text.strip().lower())
    rows, columns = map(int, match.groups()) if match else (0, 0)
    if not (0 < rows <= MOST_CELLS and 0 < columns <= MOST_CELLS):
        raise EvcapError(f"--grid {brief(text)}: give rows x columns, each from 1 to {MOST_CELLS}, as 2x3")
    return rows, columns


def _of_file(path: Path, paths: Sequence[str]) -> Asked:
    """The boxes of a file, its images in the order in which they are first named, where they are found."""
    from evcap.datasets.box_files import read_boxes

    boxes = read_boxes(path)
    places = _Places(path, named_paths(paths))
    images: dict[str, AskedImage] = {}
    left_out = []
    for asked in boxes:
        file = places.find(asked.file) if asked.file is not None else None
        if file is None and asked.file is not None:
            left_out.append(asked.file)
        else:
            key = os.path.abspath(file) if file is not None else ""
            images.setdefault(key, AskedImage(file)).boxes.append(asked)
    if left_out:
        complain(f"left out: {_count(left_out, 'box', 'boxes')} of {_count(set(left_out), 'image')} beside those named")
    if not images:
        raise EvcapError(f"{path} holds no boxes of the images that were named")
    without = places.named.keys() - images.keys()
    if without:
        complain(f"left out: {_count(without, 'image')} without a box in {path}")
    ids = {key: [told_id(asked.id) for asked in image.boxes] for key, image in images.items()}
    return Asked(list(images.values()), f"boxes {content_hash(path)}", ids.get)


def _count(things, one: str, many: str | None = None) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many or one + 's'}"


class _Places:
    """Where the images of a file of boxes are: beside it, else in the folders that were named.

    Where images were named, these are meant, and those in the folders that were named too, but no others.
    """

    def __init__(self, path: Path, paths: Sequence[str]):
        from evcap.images.opening import find_images, stored_path

        self.beside = path.parent
        self.folders = [folder for folder in map(stored_path, paths) if folder.is_dir()]
        files = [given for given in paths if not stored_path(given).is_dir()]
        self.named = {os.path.abspath(file): file for file in (find_images(files, report=complain) if files else [])}
        self.by_name: dict[str, list[str]] = {}
        for own in self.named:
            self.by_name.setdefault(os.path.basename(own), []).append(own)
        self.find = cache(self._find)  # many boxes are of one image

    def _find(self, name: str) -> Path | None:
        """The image, there or not; None if others were named."""
        if not self.named:
            places = [folder / name for folder in (self.beside, *self.folders)]
            return next(filter(None, map(_stored, places)), places[0])
        for own in map(os.path.abspath, filter(None, [_stored(self.beside / name)])):
            if own in self.named:
                return self.named[own]
        tail = Path(os.path.normpath(name)).parts
        for own in self.by_name.get(tail[-1], ()):
            if Path(own).parts[-len(tail) :] == tail:
                return self.named[own]
        return next(filter(None, (_stored(folder / name) for folder in self.folders)), None)


def _stored(path: Path) -> Path | None:
    """The path as it is on disk, None if nothing is there."""
    from evcap.images.opening import stored_path

    try:
        found = stored_path(path)
        return found if found.exists() else None
    except OSError:  # a name longer than names may be
        return None
