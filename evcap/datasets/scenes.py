"""Test scenes with known content: which labelled tile lies where, what may be asked about it, and the file that tells it.

Planning is arithmetic on names and sizes: no pixel is read here. `data/make_mosaic.py` paints what is planned.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evcap.datasets.ucm import UCM
from evcap.errors import EvcapError
from evcap.files import write_text
from evcap.text_files import read_json
from evcap.yaml_files import from_dict

SIDE = 256  # pixels of a tile in the scene, that of UC Merced
KINDS = 5  # classes planted in a scene, and as many that are asked about and are nowhere in it
LEAST = 2  # tiles planted of each class
OTHERS = 4  # at least so many other classes stay for the background
PHOTO_SHARE = 0.3  # of the background tiles, cut from photos
PHOTO_SIDES = (256, 1024)  # pixels of a photo that become one tile
CROWDED, RESTARTS = 1000, 10  # places tried for one tile, then scenes begun anew, before they count as too small
CRS, EASTING, NORTHING = "EPSG:32611", 480_000.0, 3_630_000.0  # UTM zone 11 north, the west coast of North America
RESOLUTION = 0.3  # metres a pixel; UC Merced's is one foot


@dataclass(frozen=True)
class Picture:
    """An image that tiles come from: a labelled one, or a photo (`label` None), of which `size` (w,h) is known."""

    source: str  # relative to the data folder
    label: str | None = None
    captions: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Tile:
    """A tile in a scene. box: x1,y1,x2,y2 in pixels of the scene, half-open; it may reach over the scene's border.

    crop: x1,y1,x2,y2 in pixels of the source, None = all of it; it is brought to the box's size, then turned: `turn` & 3
    quarter turns against the clock, after them mirrored left to right if `turn` & 4.
    """

    box: list[int]
    source: str
    label: str | None = None
    crop: list[int] | None = None
    turn: int = 0


@dataclass(frozen=True)
class Question:
    """kind "presence": `answer` is true or false; "count": the number of places planted with `label`."""

    kind: str
    label: str
    question: str
    answer: bool | int


@dataclass(frozen=True)
class Scene:
    """What a scene holds. Later tiles cover earlier ones, planted ones cover the background.

    image: file name of the raster, beside the JSON file. transform: a, b, c, d, e, f with easting = a * x + b * y + c and
    northing = d * x + e * y + f at the pixel corner x, y. labels: each label of the set in words. sparse: what no tile
    covers holds no data.
    """

    image: str
    width: int
    height: int
    crs: str
    transform: list[float]
    split: str
    seed: int
    sparse: bool
    labels: dict[str, str]
    planted: list[Tile]
    background: list[Tile]
    questions: list[Question]


@dataclass(frozen=True)
class Stock:
    """What scenes are made of: images of each label to plant, others for the background, and photos."""

    planted: dict[str, list[Picture]]
    others: dict[str, list[Picture]]
    photos: list[Picture]


def plan_scene(stock: Stock, split: str, seed: int, number: int, size: int, count: int, sparse: int = 0) -> Scene:
    """Scene `number` of those that `seed` draws for a split: size x size pixels with `count` planted tiles.

    sparse: number of background tiles, which lie apart from each other on nothing; 0 = a background without gaps. It holds
    no image of a class that is asked about or of one whose images may show it (`UCM`), and no image at all has a
    caption that names a class which is asked about and is not its own.
    Raises EvcapError if the tiles do not fit or there are too few images.
    """
    rng = np.random.default_rng([seed, number, zlib.crc32(split.encode())])  # splits must not share places and classes
    kinds = min(KINDS, count // LEAST)
    if kinds < 1:
        raise EvcapError(f"{count} planted tiles are too few: {LEAST} or more of a class make a scene")
    known = [label for label in UCM if stock.planted.get(label) and stock.others.get(label)]
    present, absent = draw_labels(rng, known, kinds)
    asked = present + absent
    stay = [picture for label in known if label not in kept_out(asked) for picture in stock.others[label]]
    planted = _plant(rng, {a: silent(stock.planted[a], [b for b in asked if b != a]) for a in present}, count, size)
    boxes = scatter(rng, sparse, size, 0, [tile.box for tile in planted]) if sparse else bricks(rng, size)
    return Scene(
        image=f"{split}-{number}.tif",
        width=size,
        height=size,
        crs=CRS,
        # side by side, each a scene's width further east
        transform=[RESOLUTION, 0.0, EASTING + number * size * RESOLUTION, 0.0, -RESOLUTION, NORTHING],
        split=split,
        seed=seed,
        sparse=bool(sparse),
        labels={label: words.one for label, words in UCM.items()},
        planted=planted,
        background=_background(rng, boxes, silent(stay, asked), stock.photos),
        questions=ask({label: sum(tile.label == label for tile in planted) for label in present}, absent),
    )


def draw_labels(rng: np.random.Generator, labels: Sequence[str], kinds: int) -> tuple[list[str], list[str]]:
    """Labels to plant and labels to ask about in vain, `kinds` of each: no planted one shows another that is asked about."""
    present, absent = [], []
    for label in rng.permutation(sorted(label for label in labels if UCM[label].asked)).tolist():
        chosen = absent if len(present) == kinds else present
        shows_it = UCM[label].also & set(present)
        is_shown = chosen is present and any(label in UCM[other].also for other in present)
        stay = set(labels) - kept_out([*present, *absent, label])
        if len(chosen) < kinds and not shows_it and not is_shown and len(stay) >= OTHERS:
            chosen.append(label)
    if len(absent) < kinds:
        raise EvcapError(
            f"the data hold too few classes ({len(labels)}) to ask about {kinds} that are there and {kinds} that are not"
        )
    return present, absent


def kept_out(asked: Sequence[str]) -> set[str]:
    """The labels that the background of a scene must not hold."""
    return set(asked).union(*(UCM[label].also for label in asked))


def silent(pictures: Sequence[Picture], labels: Sequence[str]) -> list[Picture]:
    """Those images whose captions name none of the labels. Raises EvcapError if there are none."""
    names = [UCM[label].name for label in labels]
    found = [p for p in pictures if not any(name in caption.lower() for caption in p.captions for name in names)]
    if not found:
        raise EvcapError(f"all captions of {pictures[0].label} or of the background name one of {', '.join(names)}")
    return found


def scatter(rng: np.random.Generator, count: int, size: int, gap: int, taken: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """`count` boxes of SIDE pixels at random places, at least `gap` pixels from each other and outside those `taken`."""
    if size < SIDE:
        raise EvcapError(f"a scene of {size} pixels is smaller than one tile of {SIDE}")
    for _ in range(RESTARTS):
        corners = _corners(rng, count, size - SIDE + 1, SIDE + gap, [box[:2] for box in taken])
        if len(corners) == count:
            return [[x, y, x + SIDE, y + SIDE] for x, y in corners]
    raise EvcapError(f"{count} tiles of {SIDE} pixels do not fit into a scene of {size}; ask for fewer or a larger scene")


def _corners(rng: np.random.Generator, count: int, end: int, distance: int, taken: list[list[int]]) -> list[list[int]]:
    """Up to `count` points in [0,end)^2, each `distance` from all others in x or y; fewer when no place is found for one."""
    corners = np.array([*taken, *[[0, 0]] * count], np.int64)
    filled = len(taken)
    tries = CROWDED
    while filled < len(corners) and tries:
        corners[filled] = rng.integers(0, end, 2)
        free = (np.abs(corners[:filled] - corners[filled]).max(1) >= distance).all()
        filled, tries = (filled + 1, CROWDED) if free else (filled, tries - 1)
    return corners[len(taken) : filled].tolist()


def bricks(rng: np.random.Generator, size: int) -> list[list[int]]:
    """Boxes that cover the scene row by row, each row pushed aside at random; the outermost reach over the border."""
    top = -int(rng.integers(SIDE))
    rows = [(y, -int(rng.integers(SIDE))) for y in range(top, size, SIDE)]
    return [[x, y, x + SIDE, y + SIDE] for y, left in rows for x in range(left, size, SIDE)]


def _plant(rng: np.random.Generator, pictures: Mapping[str, Sequence[Picture]], count: int, size: int) -> list[Tile]:
    """`count` tiles, at least LEAST of each label, the rest by chance; a tile's side lies between any two of them."""
    drawn = {label: rng.permutation(len(row)).tolist() for label, row in pictures.items()}
    chosen = [(label, drawn[label].pop()) for label in drawn for _ in range(min(LEAST, len(drawn[label])))]
    while len(chosen) < count:
        left = [label for label in drawn if drawn[label]]
        if not left:
            raise EvcapError(f"there are only {len(chosen)} different images to plant in one scene, {count} were asked for")
        label = left[rng.integers(len(left))]
        chosen.append((label, drawn[label].pop()))
    boxes = scatter(rng, count, size, SIDE)
    return [Tile(box, pictures[label][n].source, label) for box, (label, n) in zip(boxes, chosen, strict=True)]


def _background(
    rng: np.random.Generator, boxes: list[list[int]], pictures: list[Picture], photos: Sequence[Picture]
) -> list[Tile]:
    """A tile for each box: labelled images, all of them before one comes again, and crops of photos, turned at random."""
    tiles, order = [], []
    for box in boxes:
        turn = int(rng.integers(8))
        if photos and rng.random() < PHOTO_SHARE:
            photo = photos[rng.integers(len(photos))]
            low, high = PHOTO_SIDES
            side = int(rng.integers(low, min(high, *photo.size) + 1))
            x, y = (int(rng.integers(length - side + 1)) for length in photo.size)
            tiles.append(Tile(box, photo.source, None, [x, y, x + side, y + side], turn))
            continue
        if not order:
            order = rng.permutation(len(pictures)).tolist()
        picture = pictures[order.pop()]
        tiles.append(Tile(box, picture.source, picture.label, None, turn))
    return tiles


def ask(present: Mapping[str, int], absent: Sequence[str]) -> list[Question]:
    """Presence of what is there and of as much that is not, and the number of places of what is there."""
    there = [Question("presence", label, f"Is there {UCM[label].one}?", True) for label in present]
    nowhere = [Question("presence", label, f"Is there {UCM[label].one}?", False) for label in absent]
    counts = [Question("count", label, f"How many places with {UCM[label].many} are there?", n) for label, n in present.items()]
    return there + nowhere + counts


def write_scene(scene: Scene, path: Path) -> None:
    """Write the JSON file of a scene. May raise OSError."""
    write_text(path, json.dumps(dataclasses.asdict(scene)) + "\n")


def read_scene(path: str | Path) -> Scene:
    """What `write_scene` wrote. Raises EvcapError in one line for another file."""
    return from_dict(Scene, read_json(path), str(path))
