"""Windows of rasters against the arrays that were written, against plain means, and against rasterio's own reads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from raster_tools import PLACED, RGB, TILED, noise, source, write, write_vrt
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.windows import Window

from evcap.raster import raster as raster_module
from evcap.raster.raster import NEUTRAL, Raster


def upright(values: np.ndarray) -> np.ndarray:
    """(3,h,w) -> (h,w,3)."""
    return values.transpose(1, 2, 0)


LAYOUTS = {
    "striped.tif": {},
    "tiled.tif": TILED | {"compress": "deflate"},
    "planes.tif": TILED | {"interleave": "band", "compress": "lzw"},
    "big.tif": TILED | {"BIGTIFF": "YES"},
    "cog.tif": {"driver": "COG", "compress": "deflate", "blocksize": 128},
    "image.png": {"driver": "PNG"},
    "lossless.jp2": {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_format_gives_the_pixels_that_were_written(name, tmp_path):
    options = LAYOUTS[name] | (RGB if LAYOUTS[name].get("driver", "GTiff") == "GTiff" else {})
    values = noise(3, 190, 260)
    with Raster(write(tmp_path / name, values, **options)) as raster:
        assert (raster.width, raster.height, raster.bands) == (260, 190, (1, 2, 3))
        pixels, valid = raster.read((0, 0, 260, 190))
        assert pixels.dtype == np.uint8 and valid.dtype == bool and valid.all()
        assert (pixels == upright(values)).all()
        for x1, y1, x2, y2 in [(0, 0, 1, 1), (259, 189, 260, 190), (60, 60, 70, 131), (3, 100, 250, 101)]:
            pixels, valid = raster.read((x1, y1, x2, y2))
            assert (pixels == upright(values)[y1:y2, x1:x2]).all() and valid.shape == (y2 - y1, x2 - x1)
            assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_a_jpeg_is_what_pillow_decodes(tmp_path):
    Image.fromarray(np.kron(upright(noise(3, 20, 30)), np.ones((8, 8, 1), np.uint8))).save(tmp_path / "a.jpg", subsampling=0)
    with Raster(tmp_path / "a.jpg") as raster, Image.open(tmp_path / "a.jpg") as image:
        pixels, _ = raster.read((40, 16, 200, 144))
        assert np.abs(pixels.astype(int) - np.asarray(image)[16:144, 40:200]).max() <= 2


def test_a_vrt_of_two_files(tmp_path):
    left, right = noise(1, 50, 40), noise(1, 50, 41)
    write(tmp_path / "left.tif", left)
    write(tmp_path / "right.tif", right)
    sources = [source("left.tif", (0, 0, 40, 50)), source("right.tif", (40, 0, 41, 50))]
    with Raster(write_vrt(tmp_path / "both.vrt", (81, 50), "".join(sources))) as raster:
        pixels, _ = raster.read((10, 5, 70, 45))
        assert (pixels == np.concatenate([left, right], axis=2)[0, 5:45, 10:70, None]).all()
        before = raster.fingerprint()
        write(tmp_path / "right.tif", left)
        with pytest.raises(raster_module.RasterError, match="right.tif has changed"):
            raster.check_unchanged()
    assert Raster(tmp_path / "both.vrt").fingerprint() != before


@pytest.mark.parametrize("factor", [2, 3, 7])
@pytest.mark.parametrize("layout", [{}, TILED])
def test_smaller_answers_are_means(factor, layout, tmp_path):
    values = noise(3, 10 * factor, 13 * factor)
    with Raster(write(tmp_path / "a.tif", values, **RGB, **layout)) as raster:
        pixels, valid = raster.read((0, 0, 12 * factor, 9 * factor), (12, 9))
    means = values[:, : 9 * factor, : 12 * factor].reshape(3, 9, factor, 12, factor).mean((2, 4))
    assert pixels.shape == (9, 12, 3) and valid.all()
    assert np.abs(upright(means) - pixels).max() <= 1


def test_larger_answers_are_interpolated(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8), (3, 20, 20))
    with Raster(write(tmp_path / "a.tif", ramp, **RGB)) as raster:
        pixels, _ = raster.read((5, 5, 15, 15), (40, 20))
    assert pixels.shape == (20, 40, 3)
    assert np.abs(np.diff(pixels[:, 4:-4, 0].astype(int)) - 2.5).max() <= 1


def test_the_overview_that_fits_is_read(tmp_path):
    path = write(tmp_path / "a.tif", np.full((3, 512, 512), 10, np.uint8), **RGB, **TILED, overviews=(2, 4))
    with rasterio.open(path, "r+") as file:  # the overviews stay what they were
        file.write(np.full((3, 512, 512), 200, np.uint8))
    with Raster(path) as raster:
        assert (raster.read((0, 0, 512, 512), (128, 128))[0] == 10).all()
        assert (raster.read((0, 0, 512, 512), (100, 100))[0] == 10).all()
        assert (raster.read((0, 0, 512, 512), (450, 450))[0] == 200).all()
        assert (raster.read((0, 0, 300, 300))[0] == 200).all()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    values = noise(3, 301, 403)
    return write(tmp_path_factory.mktemp("scene") / "a.tif", values, **RGB, **TILED, overviews=(2, 4))


@given(st.integers(0, 402), st.integers(0, 300), st.integers(1, 403), st.integers(1, 301), st.floats(0.1, 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_are_those_of_rasterio(scene, x, y, width, height, share):
    x2, y2 = min(403, x + width), min(301, y + height)
    size = max(1, int((x2 - x) * share)), max(1, int((y2 - y) * share))
    with Raster(scene) as raster, rasterio.open(scene) as file:
        pixels, _ = raster.read((x, y, x2, y2), size)
        how = Resampling.nearest if size == (x2 - x, y2 - y) else Resampling.average
        plain = file.read(window=Window(x, y, x2 - x, y2 - y), out_shape=(3, size[1], size[0]), resampling=how)
    assert (pixels == upright(plain)).all()


@pytest.mark.parametrize("wide", [260, 250, 97])
def test_rows_of_an_untiled_file_are_decoded_once(wide, tmp_path, monkeypatch):
    values = noise(3, 120, wide)
    path = write(tmp_path / "a.tif", values, **RGB, compress="deflate")
    monkeypatch.setattr(raster_module, "CACHED", 0)
    with Raster(path) as raster:
        assert raster.striped and any("stored in rows" in note for note in raster.notes)
        rows = []
        plain = raster._window
        monkeypatch.setattr(raster._shelf, "_read", lambda box, size: (rows.append(box), plain(box, size))[1])
        for y in (0, 30, 60):
            for x in range(0, wide - 40, 20):
                pixels, _ = raster.read((x, y, x + 40, y + 40))
                assert (pixels == upright(values)[y : y + 40, x : x + 40]).all()
        assert rows == [(0, y, wide, y + 40) for y in (0.0, 30.0, 60.0)]


def test_reduced_rows_of_an_untiled_file_are_what_rasterio_reads(tmp_path, monkeypatch):
    soft = np.asarray(Image.fromarray(upright(noise(3, 15, 33))).resize((261, 120), Image.Resampling.BICUBIC))
    path = write(tmp_path / "a.tif", soft.transpose(2, 0, 1), **RGB)
    monkeypatch.setattr(raster_module, "CACHED", 0)
    with Raster(path) as raster, rasterio.open(path) as file:
        for box, size in [
            ((40, 40, 80, 80), (20, 20)),
            ((1, 0, 41, 60), (13, 20)),
            ((50, 5, 90, 45), (50, 50)),
            ((0, 3, 261, 120), (9, 9)),
        ]:
            pixels, valid = raster.read(box, size)
            how = Resampling.average if size[0] < box[2] - box[0] else Resampling.bilinear
            window = Window(*box[:2], box[2] - box[0], box[3] - box[1])
            plain = file.read(window=window, out_shape=(3, size[1], size[0]), resampling=how)
            assert valid.all() and np.abs(upright(plain).astype(int) - pixels).mean() < 6


def test_a_file_in_tiles_has_no_rows_to_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(raster_module, "CACHED", 0)
    with Raster(write(tmp_path / "a.tif", noise(3, 120, 260), **RGB, **TILED)) as raster:
        assert not raster.striped and raster.block == (64, 64)


@given(
    st.sets(st.integers(0, 19), max_size=20), st.integers(0, 299), st.integers(0, 249), st.integers(1, 300), st.integers(1, 250)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_unwritten_blocks_are_empty_and_not_valid(tmp_path_factory, written, x, y, width, height):
    path = tmp_path_factory.mktemp("sparse") / "a.tif"
    truth = np.zeros((250, 300), bool)
    profile = {"driver": "GTiff", "width": 300, "height": 250, "count": 3, "dtype": "uint8", "SPARSE_OK": True}
    with rasterio.open(path, "w", **profile, **TILED, **RGB, **PLACED) as file:
        for number in written:  # 5 columns and 4 rows of blocks
            top, left = (side * 64 for side in divmod(number, 5))
            high, wide = min(64, 250 - top), min(64, 300 - left)
            file.write(np.full((3, high, wide), 200, np.uint8), window=Window(left, top, wide, high))
            truth[top : top + high, left : left + wide] = True
    x2, y2 = min(300, x + width), min(250, y + height)
    with Raster(path) as raster:
        assert raster.empty((x, y, x2, y2)) == (not truth[y:y2, x:x2].any())
        pixels, valid = raster.read((x, y, x2, y2))
        assert (valid == truth[y:y2, x:x2]).all()
        assert (pixels == np.where(valid, 200, NEUTRAL)[..., None]).all()
        _, valid = raster.read((0, 0, 300, 250), (30, 25))
        assert (valid == truth.reshape(25, 10, 30, 10).any((1, 3))).all()


def test_blocks_that_hold_zeros_are_not_empty(tmp_path):
    with Raster(write(tmp_path / "a.tif", np.zeros((3, 100, 100), np.uint8), nodata=0, **RGB, **TILED)) as raster:
        assert not raster.empty((0, 0, 100, 100))
        assert not raster.read((0, 0, 100, 100))[1].any()


def test_place_is_kept(tmp_path):
    turned = Affine.translation(500_000, 4_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
    with Raster(write(tmp_path / "a.tif", noise(3, 20, 20), crs="EPSG:32633", transform=turned, **RGB)) as raster:
        assert raster.crs.to_epsg() == 32633 and raster.transform.almost_equals(turned) and raster.notes == []
    with Raster(write(tmp_path / "b.tif", noise(3, 20, 20), **RGB)) as raster:
        assert raster.crs is None and raster.transform is None
        assert raster.notes == ["not georeferenced: positions are pixel coordinates"]
    with Raster(write(tmp_path / "c.tif", noise(3, 20, 20), transform=turned, **RGB)) as raster:
        assert raster.crs is None and raster.transform.almost_equals(turned)
        assert raster.notes == ["no coordinate system: positions are pixel coordinates"]


def test_each_thread_has_its_own_handle(scene):
    boxes = [(x, y, x + 60, y + 60) for y in range(0, 240, 40) for x in range(0, 340, 40)]

    def read(_):
        with Raster(scene) as raster:
            return [raster.read(box)[0] for box in boxes]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(read, range(4))
    assert all((a == b).all() for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, 128 << 20), ("77", 77 << 20)])
def test_the_cache_of_gdal_is_capped(set_by_user, expected, scene):
    program = "import sys; from evcap.raster.raster import Raster; Raster(sys.argv[1]).read((0, 0, 9, 9)); "
    program += "from rasterio._env import get_gdal_config as g; print(g('GDAL_CACHEMAX'))"
    variables = {key: value for key, value in os.environ.items() if key != "GDAL_CACHEMAX"}
    variables |= {"GDAL_CACHEMAX": set_by_user} if set_by_user else {}
    run = subprocess.run([sys.executable, "-c", program, scene], capture_output=True, text=True, env=variables)
    assert int(run.stdout) == expected and not run.stderr


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 404, 5), (5, 5, 5, 9), (0, 9, 5, 302)])
def test_boxes_outside_are_refused(scene, box):
    with Raster(scene) as raster, pytest.raises(ValueError, match="is not inside 403 x 301 pixels"):
        raster.read(box)


def test_answers_of_no_size_are_refused(scene):
    with Raster(scene) as raster, pytest.raises(ValueError, match="0 x 5"):
        raster.read((0, 0, 5, 5), (0, 5))
