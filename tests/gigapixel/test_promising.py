"""Coarse to fine: what looks promising is found with a part of the work, and nothing is encoded that need not be."""

import numpy as np
import pytest
import rasterio
from tile_tools import PlainEncoder, write_scene

from evcap.errors import EvcapError
from evcap.gigapixel.tiles.index import EMPTY, ENCODED, MISSING, TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.gigapixel.tiles.promising import fill_promising
from evcap.raster.raster import Raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

TARGET = (736, 416, 768, 448)  # a red square on a soft ground of 1,000 x 800 pixels


class Redness(PlainEncoder):
    """Features of which the first number tells how red the reddest part of a tile is."""

    def query_features(self, images, batch_size):
        found = super().query_features(images, batch_size)
        found[:, 0, 0] = found.new_tensor([_redness(np.asarray(image, np.int32)) for image in images])
        return found


def _redness(pixels: np.ndarray) -> float:
    return float((pixels[..., 0] - pixels[..., 1:].max(-1)).max())


def red(numbers, queries):
    return queries[:, 0, 0].astype(np.float32)


def opened(path, folder, name="pyramid-32-0.25") -> TileIndex:
    raster = Raster(path)
    return TileIndex.open(folder, raster, make_plan(name, raster.width, raster.height), "plain", PlainEncoder.shape)


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "a.tif"
    write_scene(path, 1000, 800)
    with rasterio.open(path, "r+") as file:
        pixels = file.read() // 4 + 90  # no red as deep as that of the target
        pixels[:, TARGET[1] : TARGET[3], TARGET[0] : TARGET[2]] = np.array([255, 0, 0])[:, None, None]
        file.write(pixels)
    return path


@pytest.mark.parametrize("budget", [1, 5, 40, 200, 600])
def test_no_more_is_encoded_than_allowed(scene, tmp_path, budget):
    index, encoder = opened(scene, tmp_path / "index"), Redness()
    answer = fill_promising(index, encoder, red, budget, batch=4)
    assert answer.encoded == len(index.numbers()) and answer.of == len(index.plan)
    assert budget / 3 <= answer.encoded <= budget
    again = fill_promising(index, encoder, red, 5000, batch=4)
    assert again.encoded + answer.encoded == len(index.plan)  # enough for everything
    calls = len(encoder.calls)
    assert fill_promising(index, encoder, red, 50).encoded == 0 and len(encoder.calls) == calls


def test_the_target_is_found_with_a_part_of_the_work(scene, tmp_path):
    index = opened(scene, tmp_path / "index")
    answer = fill_promising(index, Redness(), red, 200, batch=4)
    assert answer.encoded <= 200 < len(index.plan) / 5
    numbers = index.numbers()
    best = numbers[red(numbers, index.queries(numbers)).argmax()]
    finest = index.plan.levels[-1]
    overlap = [
        n
        for n in range(finest.start, finest.stop)
        if (np.maximum(index.plan.boxes([n])[0][:2], TARGET[:2]) < np.minimum(index.plan.boxes([n])[0][2:], TARGET[2:])).all()
    ]
    assert (index.states[overlap] == ENCODED).all()  # all tiles of native detail that show it
    x1, y1, x2, y2 = index.plan.boxes([best])[0]
    assert x1 < TARGET[2] and x2 > TARGET[0] and y1 < TARGET[3] and y2 > TARGET[1]


def test_only_children_of_the_best_are_encoded(scene, tmp_path):
    index, scored = opened(scene, tmp_path / "index"), {}

    def score(numbers, queries):
        scored.update(zip(numbers.tolist(), red(numbers, queries), strict=True))
        return red(numbers, queries)

    fill_promising(index, Redness(), score, 150, batch=4)
    plan, reached = index.plan, 0
    levels = plan.level_of(index.numbers())
    for depth, level in enumerate(plan.levels[1:], 1):
        encoded = set(index.numbers()[levels == depth].tolist())
        if len(encoded) == level.stop - level.start:
            continue
        reached += 1
        parents = sorted((n for n in index.numbers()[levels == depth - 1].tolist()), key=lambda n: -scored[n])
        below: set[int] = set()
        for parent in parents:  # from the best one on, as far as the budget goes
            if below | set(plan.children([parent]).tolist()) > encoded:
                break
            below |= set(plan.children([parent]).tolist())
        assert below <= encoded <= below | set(plan.children([parent]).tolist()) and below
    assert reached >= 2


def test_nothing_is_done_about_empty_parts(tmp_path):
    content = [(0, 0, 128, 64), (640, 512, 768, 640)]
    write_scene(tmp_path / "a.tif", 1000, 800, content=content)
    index, asked = opened(tmp_path / "a.tif", tmp_path / "index"), []
    plain = index.raster.empty_boxes
    index.raster.empty_boxes = lambda boxes: asked.extend(map(tuple, boxes.tolist())) or plain(boxes)
    answer = fill_promising(index, Redness(), red, 10000, batch=4)
    whole = opened(tmp_path / "a.tif", tmp_path / "whole")
    whole.fill(Redness())
    assert (index.numbers() == whole.numbers()).all() and answer.encoded == len(index.numbers())
    boxes = index.plan.boxes(np.flatnonzero(index.states == EMPTY))
    touched = [any(b[0] < c[2] and b[2] > c[0] and b[1] < c[3] and b[3] > c[1] for c in content) for b in boxes]
    assert not any(touched) and (index.states != MISSING).sum() <= len(index.plan)


def test_what_is_encoded_already_costs_nothing(scene, tmp_path):
    index = opened(scene, tmp_path / "index")
    coarse = np.arange(index.plan.levels[-2].stop)
    index.fill(Redness(), coarse)
    encoder = Redness()
    answer = fill_promising(index, encoder, red, 60, batch=4)
    finest = index.numbers() >= index.plan.levels[-1].start
    assert answer.encoded == finest.sum() and 30 <= answer.encoded <= 60


def test_other_plans_have_no_levels_to_go_down(scene, tmp_path):
    index = opened(scene, tmp_path / "index", "vit-100")
    with pytest.raises(EvcapError, match="plan vit-100 has no levels to go down; index it as a whole with `evcap index`"):
        fill_promising(index, Redness(), red, 10)
