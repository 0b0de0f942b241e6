"""Views of regions: nested boxes by exact arithmetic, the hash by OpenCV, the choice by a plain loop, boxes that are none."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evcap.errors import EvcapError
from evcap.regions.perceptual_hash import grey_levels, low_frequencies, perceptual_hashes
from evcap.regions.views import (
    CANDIDATES,
    boxes_in_views,
    checked_regions,
    crop_boxes,
    crop_views,
    mask_region,
    polygon_region,
    random_ratios,
    release_ratios,
    selected_ratios,
    view_boxes,
    view_scores,
)

RATIOS = np.concatenate([[0.0], CANDIDATES])
sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))


@st.composite
def regions_of_images(draw):
    """An image's size and a few boxes that overlap with it."""
    width, height = draw(sizes)
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        sides = [sorted(draw(st.lists(st.floats(-0.5, 1.5), min_size=2, max_size=2, unique=True))) for _ in range(2)]
        x1, x2, y1, y2 = (n * side for pair, side in zip(sides, (width, height), strict=True) for n in pair)
        boxes.append((x1, y1, x2, y2))
    return width, height, boxes


def overlapping(width, height, boxes):
    return [b for b in boxes if b[0] < b[2] and b[1] < b[3] and b[2] > 0 and b[3] > 0 and b[0] < width and b[1] < height]


@given(regions_of_images())
def test_views_are_nested_and_lie_within_the_image(case):
    width, height, boxes = case
    boxes = overlapping(width, height, boxes)
    regions = checked_regions(boxes, width, height)
    crops = crop_boxes(view_boxes(regions, RATIOS, width, height), width, height)
    assert crops.shape == (len(boxes), 11, 4)
    assert (crops[..., :2] >= 0).all() and (crops[..., 2:] <= [width, height]).all()
    assert (crops[..., 2:] > crops[..., :2]).all()
    slack = np.array([1, 1, 0, 0])  # float32 may put the left of B(t) below a whole number that it should reach
    assert (crops[:, 1:, :2] <= crops[:, :-1, :2] + slack[:2]).all()
    assert (crops[:, 1:, 2:] >= crops[:, :-1, 2:] - 1).all()
    inside = boxes_in_views(crops[:, 0], crops, 224)
    assert (inside == np.trunc(inside)).all() and (inside[..., 2:] <= 224).all()


@given(st.tuples(*[st.integers(0, 400)] * 4), st.integers(0, 10))
def test_boxes_are_those_of_exact_arithmetic_but_for_rounding(numbers, tenth):
    width, height = 401, 300
    x1, x2 = sorted(numbers[:2])
    y1, y2 = sorted(n * 300 // 401 for n in numbers[2:])
    region = (x1, y1, x2 + 1, y2 + 1)
    found = view_boxes(checked_regions([region], width, height), [tenth / 10], width, height)[0, 0]
    exact = [b + Fraction(tenth, 10) * (w - b) for b, w in zip(region, (0, 0, width, height), strict=True)]
    np.testing.assert_allclose(found, np.array(exact, float), atol=1e-4)


def test_a_region_that_leaves_the_image_is_cut_and_a_tiny_one_is_a_pixel():
    regions = checked_regions(
        [(-5, -7, 20, 30), (3.2, 4.3, 3.4, 9), (99.5, 49.5, 1e9, 1e9), (99.99999999, 0, 200, 50)], 100, 50
    )
    np.testing.assert_array_equal(
        regions, np.array([[0, 0, 20, 30], [3, 4.3, 4, 9], [99.5, 49.5, 100, 50], [99, 0, 100, 50]], np.float32)
    )


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((100, 0, 120, 20), "outside the image, which is 100 x 50"),
        ((0, -30, 20, 0), "outside the image"),
        ((5, 5, 5, 20), "is empty"),
        ((20, 5, 10, 20), "swapped"),
        ((5, 20, 10, 5), "swapped"),
        ((5, float("nan"), 10, 20), "5,nan,10,20 has a corner that is no finite number"),
        ((5, 5, float("inf"), 20), "no finite number"),
        ((5, 5, 10), "not four numbers"),
        ((5, 5, 10, "x"), "not four numbers"),
        ((5, 5, 10, None), "no finite number"),
        ((5, 5, 10, 10**400), "not four numbers"),
        ([[1, 2], [3, 4]], "not four numbers"),
        ("120,40,300,260" * 1000, "not four numbers"),
        (7, "not four numbers"),
    ],
)
def test_what_is_no_region_is_refused_in_one_line(box, said):
    with pytest.raises(EvcapError, match=said) as raised:
        checked_regions([(1, 1, 5, 5), box], 100, 50)
    assert len(str(raised.value)) < 200 and "\n" not in str(raised.value)


def test_no_regions_are_no_views():
    image = Image.new("RGB", (40, 30))
    regions = checked_regions([], 40, 30)
    scores = view_scores(image, regions)
    assert scores.shape == (0, 10)
    for ratios in (selected_ratios(scores, 3, "caption"), release_ratios(scores, 3), random_ratios(0, 3, torch.Generator())):
        assert ratios.shape == (0, 3) and view_boxes(regions, ratios, 40, 30).shape == (0, 3, 4)


@pytest.mark.parametrize("polygons", [[], [[]], [[1, 2, 3]], [["a", "b"]], [[1, 2, float("nan"), 4]], 3, [[1, 2], None]])
def test_polygons_without_points_are_refused(polygons):
    with pytest.raises(EvcapError, match="a polygon is a list"):
        polygon_region(polygons)


def test_an_empty_mask_is_refused_and_a_full_one_loses_its_last_row_and_column():
    with pytest.raises(EvcapError, match="nothing is set"):
        mask_region(np.zeros((4, 5), np.uint8))
    assert mask_region(np.ones((4, 5), np.uint8)).tolist() == [0, 0, 4, 3]


def by_opencv(grey, box):
    x1, y1, x2, y2 = box
    small = cv2.resize(grey[y1:y2, x1:x2].astype(np.float32), (224, 224), interpolation=cv2.INTER_LINEAR)
    return cv2.dct(small)[:8, :8]


def photo(width, height, seed=0):
    """Patches of colour and some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray(np.clip(np.asarray(coarse) + generator.normal(0, 9, (height, width, 1)), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(61, 90), (224, 224), (640, 471), (1, 1), (1, 300)])
def test_the_hash_is_that_of_opencv(width, height):
    image = photo(width, height)
    grey = grey_levels(image)
    assert (grey == cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)).all()
    regions = checked_regions([(0, 0, width, height), (width * 0.3, height * 0.2, width * 0.7, height)], width, height)
    boxes = crop_boxes(view_boxes(regions, RATIOS, width, height), width, height).reshape(-1, 4)
    expected = np.stack([by_opencv(grey, box) for box in boxes])
    np.testing.assert_allclose(low_frequencies(grey, boxes), expected, atol=0.1)  # sums of 50,000 values in float32
    flat = expected.reshape(len(boxes), 64)
    clear = np.abs(flat - flat.mean(1, keepdims=True)) > 0.1
    assert clear.mean() > 0.9
    bits = perceptual_hashes(grey, boxes)
    assert (bits == (flat > flat.mean(1, keepdims=True)))[clear].all()


def release_loop(scores, views):
    """t = 0, then the best candidate each time, whose score is 0 from then on."""
    scores, taken = scores.copy(), [0.0]
    for _ in range(views - 1):
        best = int(scores.argmax())
        taken.append(CANDIDATES[best])
        scores[best] = 0
    return taken


scores = st.lists(st.integers(0, 6).map(float), min_size=10, max_size=10).map(np.array)


@given(scores, st.integers(1, 11))
def test_the_choice_of_the_release_is_its_loop_and_ours_repeats_nothing(row, views):
    theirs, ours = release_ratios(row[None], views)[0], selected_ratios(row[None], views)[0]
    assert theirs.tolist() == release_loop(row, views)
    assert len(set(ours)) == views and ours[0] == 0
    positive = min(int((row > 0).sum()), views - 1)
    assert ours[: positive + 1].tolist() == theirs[: positive + 1].tolist()


@given(scores, st.integers(2, 11))
def test_a_known_task_decides_on_the_second_view(row, views):
    assert selected_ratios(row[None], views, "attributes")[0, 1] == 0.1
    chosen = selected_ratios(row[None], views, "caption")[0]
    assert chosen[1] == (0.5 if row[4] > row[3] else 0.4) and len(set(chosen)) == views
    rest = [row[round(t * 10) - 1] for t in chosen[2:]]
    assert rest == sorted(rest, reverse=True)


def test_random_views_differ_and_come_again_with_the_seed():
    drawn, again = (random_ratios(3000, 3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert (drawn == again).all() and (drawn[:, 0] == 0).all() and (drawn[:, 1] != drawn[:, 2]).all()
    for place in (1, 2):
        counts = np.array([(drawn[:, place] == t).sum() for t in CANDIDATES])
        assert counts.sum() == 3000 and ((counts - 300) ** 2 / 300).sum() < 40  # chi-squared, 9 degrees of freedom
    assert (np.diff(drawn[:, 1:]) < 0).any()  # not sorted


@pytest.mark.parametrize("views", [0, 12])
def test_a_number_of_views_that_there_is_not(views):
    for choice in (selected_ratios, release_ratios):
        with pytest.raises(EvcapError, match="1 to 11 views"):
            choice(np.zeros((1, 10)), views)
    with pytest.raises(EvcapError, match="unknown task 'colour', known: auto, attributes, caption"):
        selected_ratios(np.zeros((1, 10)), 3, "colour")


def test_crops_are_resized_one_by_one():
    image = photo(60, 40)
    crops = crop_boxes(view_boxes(checked_regions([(10, 5, 30, 25)], 60, 40), [0, 0.5], 60, 40), 60, 40)
    small, wide = crop_views(image, crops, 24)
    assert small.size == wide.size == (24, 24)
    np.testing.assert_array_equal(np.asarray(small), np.asarray(image.crop((10, 5, 30, 25)).resize((24, 24), Image.BICUBIC)))
    np.testing.assert_array_equal(boxes_in_views(crops[:, 0], crops, 24)[0], [[0, 0, 24, 24], [3, 2, 15, 18]])
