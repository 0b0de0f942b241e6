"""Collages: what a region held in its photo it holds on the canvas."""

import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evcap.datasets.collages import GREY, collage
from evcap.datasets.phrases import Region

SIZES = st.tuples(st.integers(30, 400), st.integers(30, 400))


def gradient(number: int, size: tuple[int, int]) -> Image.Image:
    """Red tells the place across, green the place down, blue the photo."""
    width, height = size
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    blue = np.full_like(across, (40 * number + 20) / 255)
    return Image.fromarray((255 * np.stack([across, down, blue], axis=-1)).round().astype(np.uint8))


def regions_of(number: int, size: tuple[int, int], boxes) -> list[Region]:
    """Boxes in shares of the sides."""
    width, height = size
    found = [(x * width, y * height, (x + w) * width, (y + h) * height) for x, y, w, h in boxes]
    return [Region(number, Path(f"{number}.png"), box, ("a thing",), (), size, size) for box in found]


@given(
    sizes=st.lists(SIZES, min_size=1, max_size=6),
    boxes=st.lists(st.tuples(*[st.floats(0, 0.5)] * 2, *[st.floats(0.15, 0.5)] * 2), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_regions_stay_on_their_pixels(sizes, boxes, seed):
    photos = [regions_of(number, size, boxes) for number, size in enumerate(sizes)]
    canvas, moved = collage(photos, random.Random(seed))
    image = canvas.image(lambda path: gradient(int(path.stem), sizes[int(path.stem)]))
    assert image.size == canvas.size and len(canvas.parts) == len(sizes)
    assert moved and {region.size for region in moved} == {region.real_size for region in moved} == {canvas.size}
    pixels = np.asarray(image).astype(float)
    places = {path: box for path, box in canvas.parts}
    for region in moved:
        x1, y1, x2, y2 = region.box
        assert 0 <= x1 < x2 <= canvas.size[0] and 0 <= y1 < y2 <= canvas.size[1]
        left, top, right, bottom = places[region.path]
        assert left - 1e-6 <= x1 and x2 <= right + 1e-6 and top - 1e-6 <= y1 and y2 <= bottom + 1e-6
        row, column = int((y1 + y2) / 2), int((x1 + x2) / 2)  # the pixel in its middle
        red, green, blue = pixels[row, column]
        number = int(region.path.stem)
        assert abs(blue - (40 * number + 20)) <= 1
        before = [r.box for r in photos[number]]
        share = min(
            max(
                abs(red / 255 - (a + c) / 2 / sizes[number][0]) * (right - left),
                abs(green / 255 - (b + d) / 2 / sizes[number][1]) * (bottom - top),
            )
            for a, b, c, d in before
        )
        assert share < 3  # pixels of the canvas: the resized gradient is rounded to 1/255
    for one, (_, (a, b, c, d)) in enumerate(canvas.parts):  # nothing covers another photo
        assert abs(pixels[b:d, a:c, 2] - (40 * one + 20)).max() <= 1
        assert 0.4 * 224 - 1 <= max(c - a, d - b) <= 224
        ratio = sizes[one][0] / sizes[one][1]
        assert abs((c - a) - ratio * (d - b)) <= 0.5 + 0.5 * ratio + 1e-6
    covered = sum((c - a) * (d - b) for _, (a, b, c, d) in canvas.parts)
    assert (pixels == GREY).all(-1).sum() >= pixels.shape[0] * pixels.shape[1] - covered


def test_regions_that_become_smaller_than_a_pixel_are_left_out():
    size = (2000, 1500)
    large, small = regions_of(0, size, [(0.1, 0.1, 0.5, 0.5), (0.5, 0.5, 0.0015, 0.4)])
    _, moved = collage([[large, small]], random.Random(0))
    assert len(moved) == 1 and moved[0].phrases == large.phrases


def test_the_same_draw_is_the_same_canvas():
    photos = [regions_of(number, (100, 80), [(0.1, 0.2, 0.3, 0.4)]) for number in range(4)]
    assert collage(photos, random.Random(3)) == collage(photos, random.Random(3))
    assert collage(photos, random.Random(3)) != collage(photos, random.Random(4))
    canvas, _ = collage(photos, random.Random(3))
    assert hash(canvas) == hash(collage(photos, random.Random(3))[0])
