"""evcap/datasets/scenes.py: what a scene holds and what is asked about it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.datasets.scenes import (
    PHOTO_SHARE,
    SIDE,
    Picture,
    Stock,
    bricks,
    draw_labels,
    plan_scene,
    read_scene,
    scatter,
    write_scene,
)
from evcap.datasets.ucm import UCM
from evcap.errors import EvcapError


def pictures(split: str, each: int) -> dict[str, list[Picture]]:
    """Images that are only names, each with a caption of its class."""
    return {label: [Picture(f"{split}/{label}{n}", label, (f"It is {UCM[label].one}",)) for n in range(each)] for label in UCM}


STOCK = Stock(pictures("val", 9), pictures("train", 80), [Picture("photo", size=(4000, 2250))])


@pytest.fixture(scope="module")
def scenes():
    return [plan_scene(STOCK, "val", 0, number, 10_000, 20) for number in range(7)]


def test_seven_scenes_ask_a_hundred_questions(scenes):
    questions = [question for scene in scenes for question in scene.questions]
    kinds = Counter((q.kind, q.answer if q.kind == "presence" else None) for q in questions)
    assert kinds == {("presence", True): 35, ("presence", False): 35, ("count", None): 35}
    counts = Counter(q.answer for q in questions if q.kind == "count")
    assert min(counts) >= 2 and len(counts) >= 4 and max(counts.values()) < 20  # no one number would do for most


def test_answers_are_those_of_the_tiles(scenes):
    for scene in scenes:
        shown = Counter(tile.label for tile in scene.planted)
        everywhere = shown + Counter(tile.label for tile in scene.background)
        for question in scene.questions:
            if question.kind == "count":
                assert question.answer == shown[question.label] == everywhere[question.label]  # none in the background
            else:
                assert question.answer == (everywhere[question.label] > 0)
        assert len(scene.planted) == 20 and len({tile.source for tile in scene.planted}) == 20
        assert all(tile.source.startswith("val/") for tile in scene.planted)


def test_nothing_in_a_scene_shows_another_class_that_is_asked_about(scenes):
    for scene in scenes:
        labels = {tile.label for tile in [*scene.planted, *scene.background]}
        for question in scene.questions:
            assert not UCM[question.label].also & labels, question


def test_background_is_not_trivial(scenes):
    for scene in scenes:
        assert len(scene.background) >= 1500
        labels = Counter(tile.label for tile in scene.background)
        photos = labels.pop(None)
        assert abs(photos / len(scene.background) - PHOTO_SHARE) < 0.05
        assert len(labels) >= 4 and max(labels.values()) < 2 * min(labels.values())
        assert {tile.turn for tile in scene.background} == set(range(8))
        crops = [tile.crop for tile in scene.background if tile.crop]
        assert all(0 <= x1 < x2 <= 4000 and 0 <= y1 < y2 <= 2250 and x2 - x1 == y2 - y1 for x1, y1, x2, y2 in crops)
        assert len(set(map(tuple, crops))) > 0.99 * len(crops)
        once = Counter(tile.source for tile in scene.background if tile.label)
        assert max(once.values()) - min(once.values()) <= 1 or len(once) == 80 * len(labels)


def test_planted_places_are_free_of_any_grid_and_of_each_other(scenes):
    corners = np.array([[tile.box[:2] for tile in scene.planted] for scene in scenes])
    for step in (2, 14, 16, 32):  # the offset from a grid of this step takes every value about as often
        offsets = np.bincount((corners % step).ravel(), minlength=step)
        assert offsets.max() < 280 / step + 5 * (280 / step) ** 0.5
    for places in corners:
        far = np.abs(places[:, None] - places).max(2) + 10_000 * np.eye(20, dtype=int)
        assert far.min() >= 2 * SIDE


def test_seed_number_and_split_draw_other_scenes():
    first = plan_scene(STOCK, "val", 0, 0, 3000, 8)
    assert first == plan_scene(STOCK, "val", 0, 0, 3000, 8)
    train = Stock(STOCK.others, STOCK.others, STOCK.photos)
    others = [
        plan_scene(STOCK, "val", 1, 0, 3000, 8),
        plan_scene(STOCK, "val", 0, 1, 3000, 8),
        plan_scene(train, "train", 0, 0, 3000, 8),
    ]
    for other in others:
        assert [tile.box for tile in other.planted] != [tile.box for tile in first.planted]
    planted = {tile.source for tile in others[2].planted}
    assert not planted & {tile.source for tile in others[2].background}  # though both come from train


def test_caption_that_names_another_class_asked_about_keeps_a_picture_out():
    def names_courts(row: list[Picture]) -> list[Picture]:
        return [replace(picture, captions=("There are tennis courts",)) for picture in row[:3]] + row[3:]

    everywhere = [{label: names_courts(row) for label, row in group.items()} for group in (STOCK.planted, STOCK.others)]
    named = {p.source for group in everywhere for label, row in group.items() if label != "tenniscourt" for p in row[:3]}
    asked = 0
    for number in range(10):
        scene = plan_scene(Stock(*everywhere, STOCK.photos), "val", 0, number, 4000, 10)
        about_courts = any(question.label == "tenniscourt" for question in scene.questions)
        asked += about_courts
        assert bool(named & {tile.source for tile in [*scene.planted, *scene.background]}) != about_courts
    assert 0 < asked < 10


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 300))
def test_scattered_boxes_keep_their_distance(seed, count, gap):
    taken = [[300, 400, 300 + SIDE, 400 + SIDE]]
    boxes = np.array(scatter(np.random.default_rng(seed), count, 6000, gap, taken))
    assert boxes.shape == (count, 4) and boxes.min() >= 0 and boxes.max() <= 6000
    for n, (x, y, *_) in enumerate(boxes):
        for others, distance in ((boxes[:n], gap), (np.array(taken), gap)):
            assert all(abs(x - other[0]) >= SIDE + distance or abs(y - other[1]) >= SIDE + distance for other in others)


@given(st.integers(0, 2**32), st.integers(SIDE, 1500))
def test_bricks_cover_every_pixel_once(seed, size):
    covered = np.zeros((size + 2 * SIDE, size + 2 * SIDE), np.int8)
    for x1, y1, x2, y2 in bricks(np.random.default_rng(seed), size):
        covered[y1 + SIDE : y2 + SIDE, x1 + SIDE : x2 + SIDE] += 1
    assert (covered[SIDE:-SIDE, SIDE:-SIDE] == 1).all()


def test_labels_draw_uses_every_class_that_can_be_asked_about():
    drawn = [draw_labels(np.random.default_rng(seed), list(UCM), 5) for seed in range(60)]
    assert {label for present, _ in drawn for label in present} == {label for label in UCM if UCM[label].asked}
    assert all(not set(present) & set(absent) and len(present) == len(absent) == 5 for present, absent in drawn)


def test_file_gives_the_scene_back(scenes, tmp_path):
    write_scene(scenes[0], tmp_path / "scene.json")
    assert read_scene(tmp_path / "scene.json") == scenes[0]


@pytest.mark.parametrize(
    "content, message",
    [("[", "is not JSON"), ("{}", "key 'image' is missing"), ("[]", "expected settings"), (None, "cannot read")],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "scene.json"
    if content:
        path.write_text(content)
    with pytest.raises(EvcapError, match=message):
        read_scene(path)


@pytest.mark.parametrize(
    "size, count, sparse, message",
    [
        (1000, 20, 0, "20 tiles of 256 pixels do not fit"),
        (3000, 8, 200, "200 tiles of 256 pixels do not fit"),
        (200, 2, 0, "smaller than one tile"),
        (10_000, 1, 0, "too few"),
        (60_000, 50, 0, "only 45 different images"),
    ],
)
def test_what_does_not_fit_is_refused(size, count, sparse, message):
    with pytest.raises(EvcapError, match=message):
        plan_scene(STOCK, "val", 0, 0, size, count, sparse)


def test_too_few_classes_are_refused():
    few = {label: STOCK.others[label] for label in ("beach", "river", "forest")}
    with pytest.raises(EvcapError, match="too few classes"):
        plan_scene(Stock(few, few, STOCK.photos), "val", 0, 0, 3000, 4)
