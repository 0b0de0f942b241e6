"""Tiles read ahead: each once, with the pixels that a plain read gives, few reads, a bounded number ahead."""

import os
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tile_tools import SIDE, write_scene

from evcap.errors import EvcapError
from evcap.gigapixel.tiles import reading
from evcap.gigapixel.tiles.plans import make_plan
from evcap.gigapixel.tiles.reading import AHEAD, read_ahead, squares
from evcap.raster.raster import Raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(autouse=True)
def small_squares(monkeypatch):
    monkeypatch.setattr(reading, "SPAN", 128)


def everything(path, plan) -> tuple[dict[int, np.ndarray], list[int]]:
    """{number: pixels} of the tiles of a plan, and the empty ones."""
    with Raster(path) as raster:
        found = list(read_ahead(raster, plan, squares(plan, np.arange(len(plan)), raster), SIDE))
    tiles = {n: p for part in found for n, p in zip(part.numbers.tolist(), part.pixels, strict=True)}
    empty = [n for part in found for n in part.empty.tolist()]
    assert len(tiles) + len(empty) == len(plan) and set(tiles) | set(empty) == set(range(len(plan)))
    return tiles, empty


def shrunk(pixels: np.ndarray, box, size) -> np.ndarray:
    """A box of the image by Pillow's box filter: the mean of the pixels below each pixel."""
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX, tuple(map(int, box))))


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    name=st.sampled_from(["pyramid-32-0.25", "pyramid-57-0", "vit-100", "grid-3", "cc-4"]),
    striped=st.booleans(),
    block=st.sampled_from([16, 64, 100, 256, 9000]),
    seed=st.integers(0, 99),
)
def test_squares_hold_each_tile_once(size, name, striped, block, seed):
    plan = make_plan(name, *size)
    chosen = np.flatnonzero(np.random.default_rng(seed).random(len(plan)) < 0.7)
    found = list(squares(plan, chosen, SimpleNamespace(block=(block, block), striped=striped)))
    assert sorted(np.concatenate([np.zeros(0, int), *found]).tolist()) == chosen.tolist()
    levels = [set(plan.level_of(group).tolist()) for group in found]
    assert all(len(level) == 1 for level in levels) and levels == sorted(levels, key=min)  # coarse levels come first
    for group in found if plan.side else []:
        boxes, scale = plan.boxes(group), max(1, plan.levels[min(plan.level_of(group))].scale)
        spread = boxes[:, :2].max(0) - boxes[:, :2].min(0)
        assert (spread[1] == 0) if striped else (spread < max(128 + block / 2, block) * scale).all()


@pytest.mark.parametrize("block", [64, 0])
@pytest.mark.parametrize("name", ["pyramid-32-0.25", "pyramid-32-0", "vit-50", "grid-3", "cc-4"])
def test_pixels_are_the_mean_of_what_is_below(tmp_path, name, block):
    pixels = write_scene(tmp_path / "a.tif", 403, 309, block)
    plan = make_plan(name, 403, 309)
    tiles, empty = everything(tmp_path / "a.tif", plan)
    assert not empty
    for number, box in enumerate(plan.boxes().tolist()):
        width, height = box[2] - box[0], box[3] - box[1]
        scale = max(1, plan.levels[plan.level_of([number])[0]].scale)
        size = (round(width / scale), round(height / scale)) if plan.side else (min(width, SIDE), min(height, SIDE))
        assert tiles[number].shape == (size[1], size[0], 3)
        difference = np.abs(shrunk(pixels, box, size).astype(int) - tiles[number])
        even = width % size[0] == height % size[1] == 0  # else GDAL and Pillow share pixels in different ways
        assert difference.max() <= (size != (width, height)) if even else difference.mean() < 5, (number, box)


def test_overviews_are_used_and_give_the_same(tmp_path):
    pixels = write_scene(tmp_path / "a.tif", 384, 320, 32, overviews=(2, 4, 8))
    plan = make_plan("pyramid-32-0.25", 384, 320)
    tiles, _ = everything(tmp_path / "a.tif", plan)
    seen = set()
    with Raster(tmp_path / "a.tif") as raster:
        for number, box in enumerate(plan.boxes().tolist()):
            scale = plan.levels[plan.level_of([number])[0]].scale
            aligned = all(x % scale == 0 for x in box)
            seen.add((scale, aligned))
            if aligned and number:
                assert np.abs(shrunk(pixels, box, (32, 32)).astype(int) - tiles[number]).max() <= 2
            assert (raster.read(box, tiles[number].shape[1::-1])[0] == tiles[number]).all()
    assert {(1, True), (2, True), (4, True), (8, True)} <= seen


def test_striped_files_are_read_row_by_row_by_one_handle(tmp_path, monkeypatch):
    monkeypatch.setattr("evcap.raster.raster.CACHED", 1 << 10)
    pixels = write_scene(tmp_path / "a.tif", 403, 309, block=0)
    plan, opened = make_plan("pyramid-32-0.25", 403, 309), []
    plain = Raster.read
    monkeypatch.setattr(Raster, "read", lambda self, *args: opened.append((self, args[0])) or plain(self, *args))
    tiles, _ = everything(tmp_path / "a.tif", plan)
    assert len({id(raster) for raster, _ in opened}) == 1 and opened[0][0].striped
    rows = [(y1, y2) for _, (_, y1, _, y2) in opened]
    turns = 1 + sum(a != b for a, b in zip(rows, rows[1:], strict=False))
    assert turns == len(set(rows)) == len(np.unique(plan.boxes()[:, 1::2], axis=0)) < len(plan) / 5  # each row of tiles once
    x1, y1, x2, y2 = plan.boxes()[-1]
    assert (tiles[len(plan) - 1] == pixels[y1:y2, x1:x2]).all()


def test_neighbours_are_read_together_and_strangers_alone(tmp_path, monkeypatch):
    write_scene(tmp_path / "a.tif", 600, 600)
    plan, read = make_plan("pyramid-32-0.25", 600, 600), []
    plain = Raster.read
    monkeypatch.setattr(Raster, "read", lambda self, box, *args: read.append(box) or plain(self, box, *args))
    everything(tmp_path / "a.tif", plan)
    with Raster(tmp_path / "a.tif") as raster:
        groups = list(squares(plan, np.arange(len(plan)), raster))
        assert sum(group[0] >= plan.levels[-1].start for group in groups) == 25  # of 128 pixels; tiles hang over their edges
        assert len(read) == len(groups)
        boxes = plan.boxes(slice(plan.levels[-1].start, None)).tolist()
        group = plan.levels[-1].start + np.array([boxes.index([0, 0, 32, 32]), boxes.index([96, 96, 128, 128])])
        read.clear()
        (tiles,) = read_ahead(raster, plan, [group], SIDE)
    assert tiles.numbers.tolist() == group.tolist() and sorted(read) == [(0, 0, 32, 32), (96, 96, 128, 128)]


def test_tiles_without_a_valid_pixel_are_told_apart(tmp_path):
    content = [(0, 0, 64, 64), (256, 128, 320, 192)]
    pixels = write_scene(tmp_path / "a.tif", content=content)
    plan = make_plan("pyramid-32-0.25", 400, 300)
    tiles, empty = everything(tmp_path / "a.tif", plan)
    boxes = plan.boxes()
    touched = [any(x1 < b[2] and x2 > b[0] and y1 < b[3] and y2 > b[1] for b in content) for x1, y1, x2, y2 in boxes]
    assert sorted(tiles) == np.flatnonzero(touched).tolist() and 0 < len(tiles) < len(plan) / 2
    whole = [n for n, b in enumerate(boxes) if b[2] <= 64 and b[3] <= 64 and b[2] - b[0] == SIDE]
    assert len(whole) > 3
    for number in whole:
        x1, y1, x2, y2 = boxes[number]
        assert (tiles[number] == pixels[y1:y2, x1:x2]).all()


def test_only_so_much_is_read_ahead(tmp_path, monkeypatch):
    write_scene(tmp_path / "a.tif", 900, 900)
    plan, read = make_plan("pyramid-32-0", 900, 900), []
    plain = Raster.read
    monkeypatch.setattr(Raster, "read", lambda self, box, *args: read.append(threading.get_ident()) or plain(self, box, *args))
    before = threading.active_count()
    with Raster(tmp_path / "a.tif") as raster:
        with closing(read_ahead(raster, plan, squares(plan, np.arange(len(plan)), raster), SIDE)) as found:
            for taken in range(1, 9):
                next(found)
                time.sleep(0.03)
                assert len(read) <= taken + AHEAD
        assert threading.get_ident() not in read and len(set(read)) == 1
        assert threading.active_count() == before  # closed: nothing goes on behind
        time.sleep(0.03)
        assert len(read) <= 8 + AHEAD


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.tif"
    write_scene(path, 900, 900)
    plan = make_plan("pyramid-32-0", 900, 900)
    with Raster(path) as raster, pytest.raises(EvcapError, match="a.tif has changed") as caught:
        for count, _ in enumerate(read_ahead(raster, plan, squares(plan, np.arange(len(plan)), raster), SIDE)):
            if count == 2:
                os.utime(path, (1, 1))
    assert "\n" not in str(caught.value)


def test_a_file_that_was_replaced_before_the_threads_open_it(tmp_path):
    path = tmp_path / "a.tif"
    write_scene(path)
    write_scene(tmp_path / "b.tif", seed=1)
    plan = make_plan("pyramid-32-0", 400, 300)
    with Raster(path) as raster:
        os.replace(tmp_path / "b.tif", path)
        with pytest.raises(EvcapError, match="a.tif has changed"):
            next(read_ahead(raster, plan, squares(plan, np.arange(len(plan)), raster), SIDE))


def test_a_damaged_block_is_one_line(tmp_path):
    path = tmp_path / "a.tif"
    write_scene(path, compress="deflate")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    plan = make_plan("pyramid-32-0", 400, 300)
    with pytest.raises(EvcapError, match="a.tif: damaged or cut short") as caught:
        everything(path, plan)
    assert "\n" not in str(caught.value)
