"""The contact sheet: which captions it shows, and that they are drawn."""

from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from evcap.images.opening import ImageError
from evcap.plots.contact_sheet import BANDS, Scored, choose, draw_contact_sheet


def scored(path: Path, score: float, **changes) -> Scored:
    fields = {"caption": f"scored {score}", "reference": "a reference", "names": ["dog"]} | changes
    return Scored(path, score=score, **fields)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Nine images, each of one colour, wide and high ones."""
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        Image.new("RGB", (80, 30) if number % 2 else (30, 80), (25 * number, 200, 250 - 25 * number)).save(path)
    return paths


def has(sheet: np.ndarray, colour: tuple[int, ...]) -> bool:
    return bool((sheet == np.array(colour, np.uint8)).all(-1).any())


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_best_median_and_worst():
    rows = [scored(Path("a.png"), score) for score in (40, 10, 90, 0, 60, 20, 70, 30, 50, 80)]
    bands = {band: [row.score for row in chosen] for band, chosen in choose(rows, 2).items()}
    assert bands == {"best": [90, 80], "median": [50, 40], "worst": [10, 0]}


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 1), (5, 1), (6, 2), (12, 4), (40, 4)])
def test_bands_of_the_contact_sheet(count, columns):
    rows = [Scored(Path(f"{n}"), "", score, "", []) for n, score in enumerate(np.random.default_rng(0).permutation(count))]
    bands = choose(rows, 4)
    scores = {band: [row.score for row in chosen] for band, chosen in bands.items()}
    assert {len(chosen) for chosen in bands.values()} == {columns}
    assert scores["best"] == list(range(count - 1, count - 1 - columns, -1)) and scores["worst"] == [*range(columns)][::-1]
    if count >= 3:
        assert abs(np.mean(scores["median"]) - (count - 1) / 2) <= 0.5
        assert len({id(row) for chosen in bands.values() for row in chosen}) == 3 * columns


def test_shows_the_chosen_pictures(pictures, tmp_path):
    """One column of nine images: of each band the frame and the one image are there, and no other image."""
    rows = [scored(path, 100 * number) for number, path in enumerate(pictures)]
    draw_contact_sheet(rows, tmp_path / "sheet.png", "nine images", columns=1)
    sheet = read(tmp_path / "sheet.png")
    assert sheet.shape[1] == 400
    for colour in BANDS.values():
        assert has(sheet, tuple(round(255 * part) for part in matplotlib.colors.to_rgb(colour)))
    assert [n for n in range(9) if has(sheet, (25 * n, 200, 250 - 25 * n))] == [0, 4, 8]


def test_text_is_drawn_as_it_is(pictures, tmp_path):
    """Dollars are no formulas, long texts are cut, and no names or no caption are fine."""
    texts = ["$\\frac{ costs $5_", "", "word " * 100, "letters" * 50]
    rows = [scored(p, 5.0, caption=t, reference=t, names=[t]) for p, t in zip(pictures, texts, strict=False)]
    rows += [scored(pictures[4], 5.0, names=[])]
    draw_contact_sheet(rows, str(tmp_path / "sheet.png"), "$\\frac{ of $5_")
    assert read(tmp_path / "sheet.png").std() > 10


def test_one_picture_stands_in_every_band(pictures, tmp_path):
    draw_contact_sheet([scored(pictures[8], 7.0)], tmp_path / "sheet.png", "one image")
    assert has(read(tmp_path / "sheet.png"), (200, 200, 50))


def test_picture_that_does_not_open(pictures, tmp_path):
    pictures[2].write_text("no image")
    with pytest.raises(ImageError, match="2.png"):
        draw_contact_sheet([scored(path, 5.0) for path in pictures[2:3]], tmp_path / "sheet.png", "title")
    assert not (tmp_path / "sheet.png").exists()
