"""Which bands become colours, what is valid, and how 16 bits and floats become 8: against the arrays that were written."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from PIL import Image
from raster_tools import PLACED, RGB, TILED, noise, write
from rasterio.windows import Window

from evcap.raster.blocks import Blocks
from evcap.raster.raster import NEUTRAL, Raster, RasterError
from evcap.raster.stretch import MOST_PIXELS, limits


def read(path, bands=None):
    """Pixels, valid and the remarks about colours of a whole file."""
    with Raster(path, bands) as raster:
        return *raster.read((0, 0, raster.width, raster.height)), raster.notes


def colours(values: np.ndarray, *bands: int) -> np.ndarray:
    return np.stack([values[band - 1] for band in bands], axis=-1)


@pytest.mark.parametrize(
    ("count", "options", "shown", "said"),
    [
        (1, {}, (1, 1, 1), []),
        (2, {"colours": ["gray", "alpha"]}, (1, 1, 1), ["band 2 is alpha: where it is 0, nothing is valid"]),
        (2, {}, (1, 1, 1), ["band 1 is shown as grey", "band 2 not used"]),
        (3, {}, (1, 2, 3), []),
        (3, {"colours": ["blue", "green", "red"]}, (3, 2, 1), []),
        (4, RGB | {"colours": ["red", "green", "blue", "alpha"]}, (1, 2, 3), ["band 4 is alpha"]),
        (4, RGB | {"ALPHA": "NO"}, (1, 2, 3), ["band 4, which is no alpha band (near infrared?), not used"]),
        (4, {"colours": ["alpha", "red", "green", "blue"]}, (2, 3, 4), ["band 1 is alpha"]),
        (6, {}, (1, 2, 3), ["bands 1, 2, 3 are taken as such, unless --bands names others", "bands 4, 5, 6 not used"]),
        (5, {"descriptions": ["coastal", "Blue", "Green", "Red", "NIR"]}, (4, 3, 2), ["bands 1, 5 not used"]),
    ],
)
def test_bands_become_colours(count, options, shown, said, tmp_path):
    values = noise(count, 40, 50, low=1)
    pixels, valid, notes = read(write(tmp_path / "a.tif", values, **PLACED, **({"photometric": "MINISBLACK"} | options)))
    assert (pixels == colours(values, *shown)).all() and valid.all()
    assert len(notes) == len(said) and all(part in note for part, note in zip(said, notes, strict=True))


def test_bands_that_are_asked_for(tmp_path):
    values = noise(5, 30, 30)
    path = write(tmp_path / "a.tif", values, photometric="MINISBLACK", **PLACED)
    assert (read(path, (5, 1, 3))[0] == colours(values, 5, 1, 3)).all()
    assert (read(path, [4])[0] == colours(values, 4, 4, 4)).all()
    assert Raster(path, (5, 1, 3)).fingerprint() == Raster(path).fingerprint(), "it is of the content"


def test_near_infrared_that_was_written_as_alpha_can_be_shown(tmp_path):
    values = noise(4, 30, 30)
    values[3, :10] = 0
    path = write(tmp_path / "a.tif", values)  # GDAL calls a fourth band of 8 bits alpha
    assert not read(path)[1][:10].any()
    pixels, valid, _ = read(path, (4, 1, 2))
    assert valid.all() and (pixels == colours(values, 4, 1, 2)).all()


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        ((1, 2), "bands must be one number or three"),
        ((), "bands must be one number or three"),
        (("a", "b", "c"), "bands must be one number or three"),
        ((1, 2, 5), "no bands 1, 2, 5, but 4, counted from 1"),
        ((0,), "no bands 0, but 4"),
    ],
)
def test_bands_that_are_not_there(bands, said, tmp_path):
    with pytest.raises(RasterError, match=said):
        Raster(write(tmp_path / "a.tif", noise(4, 9, 9)), bands)


def test_a_palette_gives_its_colours(tmp_path):
    image = Image.fromarray(noise(1, 30, 40, high=5)[0])
    image.putpalette([9, 8, 7, 100, 110, 120, 1, 2, 3, 255, 0, 0, 4, 4, 4])
    image.save(tmp_path / "a.png", transparency=3)
    pixels, valid, _ = read(tmp_path / "a.png")
    indices = np.asarray(image)
    assert (valid == (indices != 3)).all()
    assert (pixels[valid] == np.asarray(image.convert("RGB"))[valid]).all() and (pixels[~valid] == NEUTRAL).all()
    with Raster(tmp_path / "a.png") as raster:  # no colour between two of the palette
        assert set(map(tuple, raster.read((0, 0, 40, 30), (13, 7))[0].reshape(-1, 3))) <= set(map(tuple, pixels.reshape(-1, 3)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit_is_black_and_white(suffix, tmp_path):
    bits = noise(1, 20, 30, high=2)[0].astype(bool)
    Image.fromarray(bits).save(tmp_path / f"a.{suffix}")
    assert (read(tmp_path / f"a.{suffix}")[0] == bits[..., None] * 255).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (20, 20), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    assert (read(tmp_path / "a.tif")[0] == (0, 255, 255)).all()


@pytest.mark.parametrize("way", ["nodata", "alpha", "mask"])
def test_what_is_not_valid_is_neutral_and_enters_no_mean(way, tmp_path):
    valid = np.ones((40, 60), bool)
    valid[:13, :21] = valid[30, 50] = False
    values = np.full((3, 40, 60), 100, np.uint8)
    values[:, ~valid] = 0 if way == "nodata" else 250
    options = {"nodata": {"nodata": 0}, "alpha": {"colours": ["red", "green", "blue", "alpha"]}, "mask": {"mask": valid}}[way]
    bands = np.concatenate([values, 255 * valid[None].astype(np.uint8)]) if way == "alpha" else values
    with Raster(write(tmp_path / "a.tif", bands, **RGB, **options)) as raster:
        pixels, told = raster.read((0, 0, 60, 40))
        assert (told == valid).all() and (pixels == np.where(valid, 100, NEUTRAL)[..., None]).all()
        pixels, told = raster.read((0, 0, 60, 40), (15, 10))
    assert (told == valid.reshape(10, 4, 15, 4).any((1, 3))).all()
    assert (pixels == np.where(told, 100, NEUTRAL)[..., None]).all()


def test_black_in_one_band_is_valid(tmp_path):
    values = noise(3, 20, 20, low=1)
    values[0, :5] = 0
    pixels, valid, _ = read(write(tmp_path / "a.tif", values, nodata=0, **RGB))
    assert valid.all() and (pixels == colours(values, 1, 2, 3)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("layout", [{}, TILED])
def test_other_types_are_stretched_between_percentiles(dtype, layout, tmp_path):
    low, high = (-100, 100) if dtype == np.int8 else (300, 4000)
    values = noise(3, 90, 130, dtype, low, high)
    values[1] //= 2
    pixels, valid, notes = read(write(tmp_path / "a.tif", values, **PLACED, **layout, photometric="MINISBLACK"))
    limit = np.percentile(values.reshape(3, -1).astype(float), (2, 98), axis=1)[..., None, None]
    expected = np.clip((values - limit[0]) / (limit[1] - limit[0]), 0, 1) * 255
    assert valid.all() and np.abs(colours(expected, 1, 2, 3) - pixels).max() <= 0.51
    assert f"{np.dtype(dtype).name} shown as 8 bits, from percentile 2 to 98 of each band" in notes[-1]


def test_what_is_not_valid_does_not_stretch(tmp_path):
    values = noise(1, 80, 80, np.float32, 10, 20)
    plain = read(write(tmp_path / "a.tif", values))[0]
    hidden = values.copy()
    hidden[0, :30], hidden[0, 30:40, ::3], hidden[0, 40:50, ::2] = np.nan, np.inf, -9999
    pixels, valid, _ = read(write(tmp_path / "b.tif", np.concatenate([hidden, hidden], axis=1), nodata=-9999))
    pixels, valid = pixels[:80], valid[:80]
    assert (valid == (np.isfinite(hidden[0]) & (hidden[0] != -9999))).all()
    assert np.abs(pixels[valid].astype(int) - plain[valid]).max() <= 3 and (pixels[~valid] == NEUTRAL).all()


def test_a_nan_does_not_spoil_a_mean(tmp_path):
    values = noise(1, 100, 100, np.float32, 10, 20)
    values[0, ::9, ::7] = np.nan
    values[0, :50, :50] = np.nan
    with Raster(write(tmp_path / "a.tif", values)) as raster:
        _, valid = raster.read((0, 0, 100, 100), (10, 10))
    assert not valid[:5, :5].any() and valid[5:].mean() > 0.9 and valid[:, 5:].mean() > 0.9


@pytest.mark.parametrize("value", [np.nan, -9999.0, 5.0])
def test_nothing_but_one_value(value, tmp_path):
    values = np.full((1, 30, 30), value, np.float32)
    pixels, valid, _ = read(write(tmp_path / "a.tif", values, nodata=-9999))
    assert valid.all() == (value == 5) and valid.any() == (value == 5)
    assert len(np.unique(pixels)) == 1


def test_mostly_one_value_is_stretched_to_the_rest(tmp_path):
    values = np.zeros((1, 100, 100), np.uint16)
    values[0, 3, 3:6] = 500, 1000, 250
    pixels, _, _ = read(write(tmp_path / "a.tif", values))
    assert pixels[3, 3:6, 0].tolist() == [128, 255, 64] and pixels[0, 0, 0] == 0


def test_the_stretch_is_the_same_in_every_process(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 300, 300, np.float32, 0, 9999) ** 2, **TILED, photometric="MINISBLACK")
    program = "import sys; from evcap.raster.raster import Raster; print(Raster(sys.argv[1])._limits.tolist())"
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(Raster(path)._limits.tolist())


@pytest.mark.parametrize("overview", [1, 4])
@pytest.mark.parametrize("block", [(512, 512), (40_000, 1)])
def test_the_stretch_of_a_large_file_decodes_a_bounded_part(overview, block, tmp_path):
    width = height = 40_000
    decoded = []

    def values(box, size):  # brighter to the right and down
        decoded.append((box[2] - box[0]) * (box[3] - box[1]) / overview**2)  # GDAL reads the overview that fits the size
        assert size[0] <= (box[2] - box[0]) / overview and size[1] <= max(1, (box[3] - box[1]) / overview)
        x, y = np.linspace(box[0], box[2], size[0]), np.linspace(box[1], box[3], size[1])
        return (x[None] + y[:, None])[None] / width, np.ones(size[::-1], bool)

    class Grid(Blocks):
        def __init__(self):
            self.width, self.height = block
            self.columns, self.rows = -(-width // block[0]), -(-height // block[1])

        def written(self):
            return np.arange(self.columns * self.rows)

        def box(self, number):
            x, y = number % self.columns * self.width, number // self.columns * self.height
            return x, y, min(x + self.width, width), min(y + self.height, height)

    low, high = limits(values, width, height, overview, Grid())[0]
    assert sum(decoded) <= MOST_PIXELS
    assert (low, high) == pytest.approx((0.2, 1.8), abs=0.15)  # of the sum of two even distributions


def test_a_sparse_file_of_16_bits_is_stretched_by_what_was_written(tmp_path):
    profile = {"driver": "GTiff", "width": 20_000, "height": 20_000, "count": 1, "dtype": "uint16", "SPARSE_OK": True}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, tiled=True, blockxsize=512, blockysize=512, **PLACED) as file:
        values = noise(1, 512, 512, np.uint16, 5000, 6000)
        file.write(values, window=Window(512 * 7, 512 * 20, 512, 512))
    with Raster(tmp_path / "a.tif") as raster:
        assert raster._limits[0] == pytest.approx((5020, 5980), abs=5)
        assert not raster.empty((3600, 10_300, 3700, 10_400)) and raster.empty((0, 0, 3584, 20_000))
