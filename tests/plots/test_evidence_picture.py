"""The image of an answer: what is drawn where, and that odd rasters and texts are drawn at all."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from matplotlib.colors import to_rgb
from PIL import Image

from evcap.errors import EvcapError
from evcap.gigapixel.ask.evidence import Evidence
from evcap.plots import sheet
from evcap.plots.evidence import draw_overlay
from evcap.plots.names import COLOURS
from evcap.raster.geo import intersections
from evcap.raster.raster import Raster

GROUND, TARGET = (90, 110, 90), (250, 10, 250)


@pytest.fixture
def raster(tmp_path):
    """4000 x 3000 pixels of one colour with a small square of another, TARGET, at 3000, 2000."""
    with Raster(write(tmp_path / "big.tif", 4000, 3000)) as opened:
        yield opened


def write(path: Path, width: int, height: int) -> Path:
    pixels = np.empty((3, height, width), np.uint8)
    pixels[:] = np.reshape(GROUND, (3, 1, 1))
    pixels[:, 2000:2040, 3000:3040] = np.reshape(TARGET, (3, 1, 1))
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8"}
    profile |= {"tiled": True, "compress": "lzw"}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
    return path


def at(box, path="fast", caption="a thing") -> Evidence:
    return Evidence(box, 0.5, caption, [], path, "thing")


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(sheet: np.ndarray, colour, close: int = 2) -> int:
    return int((np.abs(sheet - np.array(colour)).max(-1) <= close).sum())


def rank_colour(place: int) -> list[int]:
    return [round(255 * part) for part in to_rgb(COLOURS[place])]


def test_thumbnails_show_native_pixels(raster, tmp_path):
    """A target of 40 pixels in a box of 80 fills a quarter of its thumbnail; on the overview it is a speck."""
    draw_overlay(tmp_path / "without.png", raster, [at((0, 0, 80, 80))], "?", "!")
    draw_overlay(tmp_path / "with.png", raster, [at((2980, 1980, 3060, 2060))], "?", "!")
    without, shown = drawn(tmp_path / "without.png"), drawn(tmp_path / "with.png")
    assert shown.shape == without.shape
    side = 3.0 * sheet.DPI
    assert count(without, TARGET) < 0.01 * side**2 < 0.2 * side**2 < count(shown, TARGET) < 0.26 * side**2


def test_boxes_have_their_colours(raster, tmp_path):
    """Each of the first nine has a colour of its own, a box of no size one too; the rest is outlined in white, in words too."""
    boxes = [at((400 * n, 300, 400 * n + 1, 301)) for n in range(9)]
    draw_overlay(tmp_path / "nine.png", raster, [at((0, 0, 4000, 3000), "overview"), *boxes], "?", "!")
    nine = drawn(tmp_path / "nine.png")
    left = nine[:, : int(9.2 * sheet.DPI)]  # the overview alone
    for place in range(9):
        assert count(left, rank_colour(place)) > 60
    draw_overlay(tmp_path / "ten.png", raster, [*boxes, at((0, 2000, 1500, 2900))], "?", "!")
    ten = drawn(tmp_path / "ten.png")[:, : left.shape[1]]
    assert ten.shape == left.shape
    lower = slice(left.shape[0] // 2, int(left.shape[0] * 0.9))  # nothing but the tenth box lies there
    assert count(ten[lower], (255, 255, 255), 60) > count(left[lower], (255, 255, 255), 60) + 500


def test_texts_are_drawn_as_they_are(raster, tmp_path):
    """Dollars are no formulas, long texts are cut, none is fine."""
    texts = ["$\\frac{ costs $5_", "", "word " * 100, "letters" * 50]
    found = [Evidence((0, 0, 99, 99), float("nan"), text, [], "slow", text) for text in texts]
    draw_overlay(tmp_path / "sheet.png", raster, [at((0, 0, 4000, 3000), "overview", "$x " * 99), *found], texts[2], texts[3])
    assert drawn(tmp_path / "sheet.png").shape[1] < 3000


@pytest.mark.parametrize(
    ("width", "height", "found"),
    [(40, 30, 0), (40, 30, 4), (5000, 60, 30), (60, 5000, 2), (60, 5000, 7), (1, 1, 1), (1, 1, 12)],
)
def test_any_shape(tmp_path, width, height, found):
    rng = np.random.default_rng(found)
    corners = np.sort(rng.integers(0, [[[width], [height]]], (found, 2, 2)), axis=-1)
    boxes = [at((int(x1), int(y1), int(x2) + 1, int(y2) + 1)) for (x1, x2), (y1, y2) in corners]
    with Raster(write(tmp_path / "odd.tif", width, height)) as raster:
        draw_overlay(tmp_path / "sheet.png", raster, boxes, "Where?", "There.")
    sheet = drawn(tmp_path / "sheet.png")
    assert max(sheet.shape) < 2200 and count(sheet, GROUND) > 1000


def test_badges_keep_off_each_other():
    """Around a small box a badge finds a place beside it and beside what is there already."""
    box, badge = np.array([500.0, 500, 520, 520]), 60
    taken = np.empty((0, 4))
    for _ in range(8):
        x, y = sheet.free_place(box, taken, badge, 1000, 1000)
        square = np.array([[x - 30, y - 30, x + 30, y + 30]])
        assert intersections(square, np.concatenate([taken, box[None]])).sum() == 0
        taken = np.concatenate([taken, square])
    for corner in ([0.0, 0, 10, 10], [990.0, 990, 1000, 1000]):
        x, y = sheet.free_place(np.array(corner), np.empty((0, 4)), badge, 1000, 1000)
        assert 30 <= x <= 970 and 30 <= y <= 970


def test_smallest_boxes_stay_inside(raster):
    for box in ((0, 0, 1, 1), (3999, 2999, 4000, 3000), (10, 10, 2000, 11)):
        x1, y1, x2, y2 = sheet.visible(box, raster.width, raster.height, 500)
        assert 0 <= x1 <= box[0] and box[2] <= x2 <= 4000 and 0 <= y1 <= box[1] and box[3] <= y2 <= 3000
        assert min(x2 - x1, y2 - y1) == pytest.approx(500 * sheet.SMALLEST)


def test_file_that_cannot_be_written(raster, tmp_path):
    with pytest.raises(EvcapError, match="cannot write .*none/sheet.png: No such file"):
        draw_overlay(tmp_path / "none" / "sheet.png", raster, [], "?", "!")


def test_damage_leaves_the_older_file(raster, tmp_path, monkeypatch):
    target = tmp_path / "sheet.png"
    target.write_text("older")

    def broken(self, path, **_):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sheet.Figure, "savefig", broken)
    with pytest.raises(EvcapError, match="No space left"):
        draw_overlay(target, raster, [], "?", "!")
    assert target.read_text() == "older" and sorted(path.name for path in tmp_path.iterdir()) == ["big.tif", "sheet.png"]
