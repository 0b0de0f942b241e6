"""The drawing of described regions: what is drawn where, that texts keep off each other, that odd images are drawn at all."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from evcap.errors import EvcapError
from evcap.memory.ranking import RetrievedName
from evcap.plots import regions as drawing
from evcap.plots.names import COLOURS
from evcap.plots.png import is_drawing
from evcap.plots.regions import draw_regions
from evcap.plots.sheet import Sheet
from evcap.regions.describe import RegionDescription

GROUND = (90, 110, 90)


def said(box, caption="a thing", tags=(), class_name="", views=(0.0,), names=()) -> RegionDescription:
    found = [RetrievedName(name, 0.5, 0) for name in names]
    return RegionDescription(tuple(map(float, box)), [caption], found, list(tags), class_name, list(views))


def drawn(path: Path) -> np.ndarray:
    assert is_drawing(path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def count(pixels: np.ndarray, place: int, close: int = 2) -> int:
    """Pixels of the colour of a place."""
    return int((np.abs(pixels - np.rint(255 * np.array(to_rgb(COLOURS[place])))).max(-1) <= close).sum())


def test_boxes_and_views_have_the_colour_of_their_number(tmp_path):
    photo = Image.new("RGB", (400, 300), GROUND)
    left = slice(0, int(8.2 * 110))
    draw_regions(tmp_path / "a.png", photo, [("1", said((100, 100, 140, 140))), ("2", said((300, 200, 310, 210)))])
    alone = drawn(tmp_path / "a.png")[:, left]
    assert min(count(alone, 0), count(alone, 1)) > 300 and count(alone, 2) == 0
    views = said((100, 100, 140, 140), views=(0.0, 0.5, 1.0))
    draw_regions(tmp_path / "b.png", photo, [("1", views), ("2", said((300, 200, 310, 210)))])
    with_view = drawn(tmp_path / "b.png")[:, left]
    assert with_view.shape == alone.shape and count(with_view, 1) == count(alone, 1)
    # half way to the image: 50..270 of 400 and 50..220 of 300, dashed, in a photo of 8 inches at 110 dots from 0.25 on
    changed = np.abs(with_view - alone).max(-1) > 0
    scale, margin = 880 / 400, 0.25 * 110
    rows, columns = np.nonzero(changed)
    expected = [margin + scale * side for side in (50, 50, 270, 220)]
    assert np.allclose([columns.min(), rows.min(), columns.max(), rows.max()], expected, atol=5)
    inside = slice(int(expected[1]) + 6, int(expected[3]) - 6), slice(int(expected[0]) + 6, int(expected[2]) - 6)
    assert not changed[inside].any()


WORDS = ["a man in a red shirt who holds", "x" * 70, "$\\frac{ costs $5_", "", "word " * 60]


@pytest.mark.parametrize("size", [(400, 300), (900, 120), (100, 900)])
@pytest.mark.parametrize("regions", [1, 5, 12, 45])
def test_texts_keep_off_each_other(tmp_path, monkeypatch, size, regions):
    """The extents that the renderer gives: no text in another, none outside the page."""
    pages = []
    monkeypatch.setattr(Sheet, "save", lambda sheet, path: pages.append(sheet.figure))
    rng = np.random.default_rng(regions)
    rows = []
    for number in range(regions):
        x, y = (rng.integers(0, side - 20) for side in size)
        text, names = WORDS[number % len(WORDS)], ["thing"] * (number % 9)
        rows.append((str(900 + number), said((x, y, x + 20, y + 20), text, ["tag"] * (3 * number), "sky", (0.0, 0.3), names)))
    draw_regions(tmp_path / "sheet.png", Image.new("RGB", size, GROUND), rows)
    (figure,) = pages
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.axes[-1]
    texts = [text for text in (*figure.texts, *page.texts) if text.get_text()]
    extents = [text.get_window_extent(renderer) for text in texts]
    assert len(page.texts) == min(regions, drawing.MOST)
    for extent in extents:
        assert extent.x0 >= 0 and extent.y0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1
    for a, b in combinations(extents, 2):
        common = [min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)]
        assert min(common) <= 1.5, "lines of a text may touch, by a pixel"


@given(st.lists(st.floats(0.24, 2), max_size=40), st.floats(1, 8))
def test_texts_flow_in_columns(depths, height):
    places, columns, lowest = drawing._flow(depths, height)
    assert 1 <= columns <= drawing.COLUMNS
    ends = [(column, top, top + depth) for (column, top), depth in zip(places, depths, strict=True)]
    assert [column for column, *_ in ends] == sorted(column for column, *_ in ends)
    for (own, _, end), (other, top, _) in zip(ends, ends[1:], strict=False):
        assert (other == own and top > end) or (other == own + 1 and top == 0)
    assert lowest == pytest.approx(max((end for *_, end in ends), default=0), abs=1e-6)


@pytest.mark.parametrize(("width", "height", "count"), [(5000, 60, 30), (60, 5000, 7), (1, 1, 3), (40, 30, 0)])
def test_any_shape(tmp_path, width, height, count):
    rows = [("1", said((0, 0, width, height), views=(0.0, 0.1, 1.0)))] * count
    draw_regions(tmp_path / "sheet.png", Image.new("RGB", (width, height), GROUND), rows)
    assert max(drawn(tmp_path / "sheet.png").shape) < 3000


def test_file_that_cannot_be_written(tmp_path):
    with pytest.raises(EvcapError, match="cannot write .*none/sheet.png: No such file"):
        draw_regions(tmp_path / "none" / "sheet.png", Image.new("RGB", (9, 9)), [])
