"""Rasters as single images: what `open_image` gives is what numpy makes of the numbers, and what `evcap ask` sees."""

import numpy as np
import pytest
from PIL import Image
from raster_tools import PLACED, RGB, TILED, noise, source, write, write_vrt

from evcap.errors import EvcapError
from evcap.images import kinds as image_kinds
from evcap.images import opening as images
from evcap.images.opening import ImageError, open_image
from evcap.raster.display import Display
from evcap.raster.raster import NEUTRAL, Raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def stretched(values: np.ndarray, low: float = 2, high: float = 98, valid=None) -> np.ndarray:
    """(bands,h,w) -> (h,w,bands) uint8, band by band."""
    shown = []
    for band in values.astype(np.float64):
        bottom, top = np.percentile(band if valid is None else band[valid], (low, high))
        shown.append(np.clip(np.rint((band - bottom) * 255 / (top - bottom)), 0, 255).astype(np.uint8))
    return np.stack(shown, -1)


def pixels(path, *options, **named) -> np.ndarray:
    return np.asarray(open_image(path, *options, **named)).astype(int)


WIDE = noise(5, 60, 80, np.uint16, 100, 4000)
KINDS = {
    "16 bits, near infrared": (WIDE[:4], {}, stretched(WIDE[:3])),
    "16 bits, colours": (WIDE[:3], RGB, stretched(WIDE[:3])),
    "16 bits, grey": (WIDE[:1], {}, stretched(WIDE[:1]).repeat(3, -1)),
    "floats": (WIDE[:3].astype(np.float32) / 7, {}, stretched(WIDE[:3].astype(np.float32) / 7)),
    "negative": (WIDE[:1].astype(np.int16) - 2000, {}, stretched(WIDE[:1].astype(np.int16) - 2000).repeat(3, -1)),
    "8 bits with a sign": (noise(1, 60, 80, np.int8, -99, 99), {}, stretched(noise(1, 60, 80, np.int8, -99, 99)).repeat(3, -1)),
    "five bands": (noise(5, 60, 80), {}, np.moveaxis(noise(5, 60, 80)[:3], 0, -1)),
    "LERC": (noise(3, 60, 80), RGB | {"compress": "LERC"}, np.moveaxis(noise(3, 60, 80), 0, -1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_tiff_that_are_no_photo(tmp_path, kind):
    values, options, expected = KINDS[kind]
    path = write(tmp_path / "p.tif", values, **options, **PLACED)
    assert np.abs(pixels(path) - expected).max() <= 1
    with Raster(path) as raster:
        assert (raster.read((0, 0, 80, 60))[0] == pixels(path)).all()


def test_jpeg_2000_and_vrt(tmp_path):
    Image.fromarray(np.moveaxis(noise(3, 60, 80), 0, -1)).save(tmp_path / "p.jp2", irreversible=False)
    assert (pixels(tmp_path / "p.jp2") == np.moveaxis(noise(3, 60, 80), 0, -1)).all()
    write(tmp_path / "part.tif", noise(1, 60, 80))
    write_vrt(tmp_path / "p.vrt", (80, 60), source("part.tif"))
    assert (pixels(tmp_path / "p.vrt")[..., 1] == noise(1, 60, 80)[0]).all()


def test_what_is_not_valid_is_grey_and_no_part_of_the_stretch(tmp_path):
    values = WIDE[:1].astype(np.float32)
    values[:, :, :20] = -9999
    valid = values[0] != -9999
    shown = pixels(write(tmp_path / "p.tif", values, nodata=-9999))
    assert (shown[~valid] == NEUTRAL).all()
    assert np.abs(shown[valid] - stretched(values, valid=valid)[valid]).max() <= 1
    eight = noise(3, 60, 80)
    eight[:, :9] = 0
    assert (pixels(write(tmp_path / "p.tif", eight, nodata=0, **RGB))[:9] == NEUTRAL).all()
    mask = np.ones((60, 80), bool)
    mask[:, :7] = False
    assert (pixels(write(tmp_path / "p.tif", noise(3, 60, 80), mask=mask, **RGB))[:, :7] == NEUTRAL).all()


@pytest.mark.parametrize("dtype, options", [(np.uint8, {}), (np.uint16, {}), (np.float32, {}), (np.uint8, {"nbits": 1})])
def test_where_0_is_white(tmp_path, dtype, options):
    values = (np.arange(80) % 2 if options else np.arange(80))[None, None].repeat(60, 1).astype(dtype)
    path = write(tmp_path / "p.tif", values, photometric="MINISWHITE", **options)
    with Raster(path) as raster:
        for shown in (pixels(path), raster.read((0, 0, 80, 60))[0].astype(int)):
            assert (np.diff(shown[0, :, 0]) <= 0).all() or options
            assert shown[0, 0, 0] == 255 and shown[0, 41, 0] < 255


@pytest.mark.parametrize(
    "options", [RGB, RGB | {"compress": "deflate"}, RGB | TILED, {}], ids=["raw", "deflate", "tiled", "grey"]
)
def test_plain_photos_go_through_pillow(tmp_path, monkeypatch, options):
    monkeypatch.setattr(images, "reads_rasters", lambda: pytest.fail("no raster is needed"))
    values = noise(3 if options else 1, 60, 80)
    path = write(tmp_path / "p.tif", values, **options)
    assert (pixels(path) == np.moveaxis(np.broadcast_to(values, (3, 60, 80)), 0, -1)).all()


def test_orientation_counts_in_16_bits_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(WIDE[0]).save(tmp_path / "p.tif", exif=exif)
    assert np.abs(pixels(tmp_path / "p.tif")[..., 0] - np.rot90(stretched(WIDE[:1])[..., 0], -1)).max() <= 1


def test_large_ones_are_shrunk_by_a_whole_factor(tmp_path):
    values = noise(3, 60, 90)
    shown = open_image(write(tmp_path / "p.tif", values, compress="LERC", **RGB), 20)
    assert shown.size == (30, 20)
    means = values.reshape(3, 20, 3, 30, 3).mean((2, 4)).transpose(1, 2, 0)
    assert np.abs(np.asarray(shown) - means).max() <= 1
    assert open_image(tmp_path / "p.tif", 31).size == (90, 60)


def test_without_rasterio(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "reads_rasters", lambda: False)
    for path in (
        write(tmp_path / "five.tif", noise(5, 60, 80)),
        write(tmp_path / "lerc.tif", noise(1, 60, 80), compress="LERC"),
    ):
        with pytest.raises(ImageError, match=r"rasterio: pip install 'evcap\[uhr\]'"):
            open_image(path)
    Image.fromarray(noise(1, 60, 80)[0]).save(tmp_path / "p.jp2")
    with pytest.raises(ImageError, match=r"rasterio: pip install 'evcap\[uhr\]'"):
        open_image(tmp_path / "p.jp2")
    assert open_image(write(tmp_path / "grey.tif", WIDE[:1])).size == (80, 60), "as well as Pillow can"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_more_than_pillow_takes(tmp_path, monkeypatch, suffix):
    Image.new("RGB", (300, 200), (200, 100, 0)).save(tmp_path / f"p.{suffix}", quality=100, subsampling=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    shown = open_image(tmp_path / f"p.{suffix}", 100)
    assert shown.size == (150, 100) and np.abs(np.asarray(shown).astype(int) - [200, 100, 0]).max() <= 3
    with pytest.raises(ImageError, match="more than 0 megapixels, not decoded"):
        open_image(tmp_path / f"p.{suffix}")
    Image.new("RGB", (300, 200)).save(tmp_path / "p.webp")
    with pytest.raises(ImageError, match="more than 0 megapixels, not decoded"):
        open_image(tmp_path / "p.webp", 100)


def test_bands_and_stretch_of_ones_own(tmp_path):
    path = write(tmp_path / "p.tif", WIDE)
    assert np.abs(pixels(path, display=Display((5, 1, 2))) - stretched(WIDE[[4, 0, 1]])).max() <= 1
    assert np.abs(pixels(path, display=Display((4,), (10, 60))) - stretched(WIDE[[3]], 10, 60)).max() <= 1
    eight = write(tmp_path / "q.tif", noise(3, 60, 80, low=20, high=60), **RGB)
    assert (
        np.abs(pixels(eight, display=Display(None, (0, 100))) - stretched(noise(3, 60, 80, low=20, high=60), 0, 100)).max() <= 1
    )
    with Raster(eight, stretch=(0, 100)) as raster, raster.reopened() as again:
        assert again.stretch == (0, 100) and (again.read((0, 0, 80, 60))[0] == raster.read((0, 0, 80, 60))[0]).all()
        assert "(--stretch)" in raster.notes[-1]
    with pytest.raises(ImageError, match="has no bands 7, 1, 2, but 5"):
        open_image(path, display=Display((7, 1, 2)))


@pytest.mark.parametrize(
    "bands, stretch", [("1,2", None), ("0", None), ("a", None), (None, "2"), (None, "98,2"), (None, "-1,5")]
)
def test_options_that_say_nothing(bands, stretch):
    with pytest.raises(EvcapError, match="^--(bands|stretch) "):
        Display.read(bands, stretch)
    assert Display.read("3,2,1", "0.5,99") == Display((3, 2, 1), (0.5, 99.0))


def test_heic(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    values = np.kron(noise(3, 6, 8).transpose(1, 2, 0), np.ones((16, 16, 1), np.uint8))
    heif.from_pillow(Image.fromarray(values)).save(tmp_path / "p.heic", quality=-1, chroma=444)
    assert np.abs(pixels(tmp_path / "p.heic") - values).mean() < 4
    whole = (tmp_path / "p.heic").read_bytes()
    (tmp_path / "p.heic").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="damaged"):
        open_image(tmp_path / "p.heic")


def test_heic_without_its_extra(tmp_path, monkeypatch):
    for module in (image_kinds, images):
        monkeypatch.setattr(module, "reads_heif", lambda: False)
    (tmp_path / "p.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(ImageError, match=r"HEIC is read with pillow-heif: pip install 'evcap\[heic\]'"):
        open_image(tmp_path / "p.HEIC")
    (tmp_path / "p.jxl").write_bytes(b"\xff\x0a" + bytes(99))
    with pytest.raises(ImageError, match=".jxl is not read here"):
        open_image(tmp_path / "p.jxl")
