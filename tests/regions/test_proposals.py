"""Cells and windows: that they lie within the image, cover it, and that what is chosen among them is the best and apart."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evcap.regions.proposals import OVERLAP, grid_cells, proposed, windows
from evcap.regions.views import checked_regions

SIDES = st.integers(1, 600)
COUNTS = st.integers(1, 8)


class Describer:
    """Sure of windows at random, often equally."""

    def __init__(self, seed: int):
        self.draw, self.given = np.random.default_rng(seed), []

    def certainty(self, image, boxes, batch_size):
        self.given.append((np.asarray(boxes), self.draw.integers(0, 20, len(boxes)).astype(np.float32)))
        return self.given[-1][1]


def covered(boxes, width: int, height: int) -> np.ndarray:
    """How many boxes each pixel lies in."""
    counts = np.zeros((height, width), int)
    for x1, y1, x2, y2 in boxes:
        counts[y1:y2, x1:x2] += 1
    return counts


@given(SIDES, SIDES)
def test_windows_lie_within_the_image_and_cover_it(width, height):
    boxes = windows(width, height)
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes) <= 200
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert covered(boxes.tolist(), width, height).all()
    assert np.array_equal(checked_regions(boxes, width, height), boxes)  # the describer takes them as they are


def test_windows_have_sizes_and_shapes():
    boxes = windows(600, 400)
    sides = boxes[:, 2:] - boxes[:, :2]
    shapes = sides[:, 0] / sides[:, 1] / (600 / 400)
    assert len(np.unique(sides, axis=0)) == 6 and np.allclose(np.unique(shapes.round(1)), [0.5, 1, 2])
    assert sides.prod(1).min() / (600 * 400) < 0.12 < 0.35 < sides.prod(1).max() / (600 * 400)


@given(SIDES, SIDES, COUNTS, COUNTS)
def test_cells_share_the_image_out(width, height, rows, columns):
    whole, *cells = grid_cells(width, height, rows, columns)
    assert whole == (0, 0, width, height) and len(cells) == (rows * columns if rows * columns > 1 else 0)
    assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in cells)
    if cells and rows <= height and columns <= width:
        assert (covered(cells, width, height) == 1).all()
        assert cells == sorted(cells, key=lambda box: (box[1], box[0]))


def shared(a, b) -> float:
    """Of the smaller box, how much lies in the other."""
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1)]
    return sides[0] * sides[1] / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


@given(SIDES, SIDES, st.integers(1, 12), st.integers(0, 99))
def test_the_surest_windows_stay_which_lie_apart(width, height, most, seed):
    """As a loop over all windows, best first, has them."""
    describer = Describer(seed)
    found = proposed(describer, Image.new("RGB", (width, height)), most)
    boxes, sure = describer.given[0]
    expected = []
    for place in sorted(range(len(boxes)), key=lambda place: -sure[place]):
        box = tuple(boxes[place].tolist())
        if len(expected) < most and all(shared(box, other) <= OVERLAP for other in expected):
            expected.append(box)
    assert found == expected and 1 <= len(found) <= most
