"""Files that are no rasters, damaged ones, ones that change, and VRTs that point elsewhere: one line each, and silence."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from raster_tools import PLACED, RGB, TILED, noise, source, write, write_vrt
from rasterio.control import GroundControlPoint

from evcap.raster import raster as raster_module
from evcap.raster.raster import Raster, RasterError


@pytest.fixture
def refused(capfd):
    """A function: the one line that opening a file, or reading all of it, ends with; nothing else may be printed."""

    def line(path, bands=None) -> str:
        with pytest.raises(RasterError) as error, Raster(path, bands) as raster:
            for y in range(0, raster.height, 64):
                raster.read((0, y, raster.width, min(y + 64, raster.height)))
        assert capfd.readouterr() == ("", "")
        assert "\n" not in str(error.value) and str(error.value).startswith(str(path))
        return str(error.value)

    return line


def test_what_is_no_raster_file(tmp_path, refused):
    assert "there is no such file" in refused(tmp_path / "none.tif")
    assert "a folder; name a raster file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.tif")
    assert "not a regular file" in refused(tmp_path / "pipe.tif")
    (tmp_path / "empty.tif").touch()
    assert "the file is empty (0 bytes)" in refused(tmp_path / "empty.tif")
    (tmp_path / "text.tif").write_text("hello")
    assert "not a raster that is read here (GeoTIFF, COG, JPEG 2000, VRT, PNG, JPEG)" in refused(tmp_path / "text.tif")
    assert "only local files are read; download it" in refused("/vsicurl/x/a.tif")
    assert "only local files are read; download it" in refused(Path("http://127.0.0.1:9/a.tif"))


def test_no_permission(tmp_path, monkeypatch, refused):
    path = write(tmp_path / "a.tif", noise(3, 9, 9))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)  # root may read everything
    assert "no permission to read it" in refused(path)


@pytest.mark.parametrize(
    ("name", "share", "said"),
    [
        ("cog.tif", 0.7, "cut short ("),
        ("tiled.tif", 0.7, "cut short ("),
        ("striped.tif", 0.7, "cut short ("),
        ("cog.tif", 0.005, "cut short|cannot be opened"),
        ("a.png", 0.7, "cut short (the end of the PNG is missing)"),
        ("a.jpg", 0.7, "damaged or cut short at 0, "),
        ("a.jp2", 0.3, "cannot be opened|damaged or cut short"),
    ],
)
def test_files_that_are_cut_short(name, share, said, tmp_path, refused):
    kinds = {"cog.tif": {"driver": "COG", "blocksize": 128}, "tiled.tif": TILED, "striped.tif": {"compress": "lzw"}}
    kinds |= {"a.png": {"driver": "PNG"}, "a.jpg": {"driver": "JPEG"}, "a.jp2": {"driver": "JP2OpenJPEG"}}
    path = write(tmp_path / name, noise(3, 300, 300), **kinds[name])
    os.truncate(path, int(path.stat().st_size * share))
    assert any(part in refused(path) for part in said.split("|"))


def test_a_missing_last_byte_is_noticed_at_once(tmp_path, refused):
    path = write(tmp_path / "a.tif", noise(3, 300, 300), driver="COG", blocksize=128)
    size = path.stat().st_size
    with rasterio.open(path) as file:
        where = [int(file.get_tag_item(f"BLOCK_{what}_2_2", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
    os.truncate(path, sum(where))
    assert Raster(path).read((0, 0, 9, 9))[0].shape == (9, 9, 3)
    os.truncate(path, sum(where) - 1)
    assert f"its last block ends at {sum(where):,}" in refused(path) and sum(where) <= size


@pytest.mark.parametrize("compress", ["deflate", "jpeg", "lzw"])
def test_a_damaged_block_is_named_by_its_place(compress, tmp_path, refused):
    path = write(tmp_path / "a.tif", noise(3, 300, 300), **TILED, **RGB, compress=compress)
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\x00" * 40)
    assert "damaged or cut short at 0, 128 (" in refused(path)
    with Raster(path) as raster:  # what is whole can be read
        raster.read((128, 128, 300, 192)), raster.read((0, 0, 300, 128))


@given(st.integers(0, 4000), st.binary(min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_raises_anything_else(tmp_path_factory, place, junk):
    path = write(tmp_path_factory.mktemp("damaged") / "a.tif", noise(3, 60, 60), **TILED, **RGB, **PLACED, compress="deflate")
    with path.open("r+b") as file:
        file.seek(place % path.stat().st_size)
        file.write(junk)
    try:
        with Raster(path) as raster:
            raster.read((0, 0, min(60, raster.width), min(60, raster.height)))
            raster.empty((0, 0, 1, 1)), raster.fingerprint()
    except RasterError as error:
        assert "\n" not in str(error)


def test_types_that_are_not_read(tmp_path, refused):
    assert "its numbers are complex" in refused(write(tmp_path / "a.tif", noise(1, 9, 9, np.complex64)))
    write(tmp_path / "b.tif", noise(1, 9, 9))
    band = '<VRTRasterBand dataType="{}" band="{}">' + source(str(tmp_path / "b.tif")) + "</VRTRasterBand>"
    bands = "".join(band.format(kind, number) for number, kind in enumerate(("Byte", "Byte", "Float32"), start=1))
    (tmp_path / "mixed.vrt").write_text(f'<VRTDataset rasterXSize="9" rasterYSize="9">{bands}</VRTDataset>')
    assert "bands 1, 2, 3 are of different types" in refused(tmp_path / "mixed.vrt")
    assert Raster(tmp_path / "mixed.vrt", (3,)).read((0, 0, 9, 9))[1].all()


def test_one_block_that_is_too_large(tmp_path, monkeypatch, refused):
    path = write(tmp_path / "a.tif", noise(3, 300, 300), tiled=True, blockxsize=304, blockysize=304)
    monkeypatch.setattr(raster_module, "LARGEST_BLOCK", 100_000)
    assert "stored as blocks of 304 x 304 pixels, too large to read a part of" in refused(path)


@pytest.mark.parametrize("change", ["touched", "grown", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read(change, tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 300, 300), **TILED)
    with Raster(path) as raster:
        before = raster.fingerprint()
        raster.check_unchanged()
        if change == "touched":
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        elif change == "grown":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "replaced":
            shutil.copy2(path, tmp_path / "b.tif")
            os.replace(tmp_path / "b.tif", path)
        else:
            path.unlink()
        for function in (raster.check_unchanged, raster.fingerprint):
            with pytest.raises(RasterError, match="a.tif has changed since it was opened; start again"):
                function()
    if change != "removed":
        assert (Raster(path).fingerprint() == before) == (change != "grown"), "it is of the content, not of the time"


def test_a_read_that_fails_because_the_file_changed_says_so(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 300, 300), **TILED, compress="deflate")
    with Raster(path) as raster:
        os.truncate(path, 5000)
        with pytest.raises(RasterError, match="has changed since it was opened"):
            raster.read((200, 200, 300, 300))


def test_a_fingerprint_knows_the_content(tmp_path):
    values = noise(3, 300, 300)
    path = write(tmp_path / "a.tif", values, **PLACED)
    times = path.stat().st_mtime_ns
    first = Raster(path).fingerprint()
    assert first == Raster(path).fingerprint() and len(first) == 16
    values[:, -1] = 255 - values[:, -1]
    write(path, values, **PLACED)
    os.utime(path, ns=(times, times))
    assert Raster(path).fingerprint() != first
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")  # what a GIS writes when it looks at a file
    with Raster(path) as raster:
        before = raster.fingerprint()
        (tmp_path / "a.tif.aux.xml").unlink()
        assert raster.fingerprint() == before


PYTHON = "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"


@pytest.mark.parametrize(
    ("band", "said"),
    [
        (source("none.tif"), "none.tif: there is no such file"),
        (source("/vsicurl/http://127.0.0.1:9/a.tif"), "only local files are read"),
        (source("http://127.0.0.1:9/a.tif"), "only local files are read"),
        (source("wms.xml"), "not a raster that is read here"),
        (source("&lt;GDAL_WMS&gt;&lt;/GDAL_WMS&gt;"), "a VRT with a source that cannot be read"),
        (source("inner.vrt"), "none.tif: there is no such file"),
        (source("x" * 5000), "a VRT with a source that cannot be read"),
        (source("a.tif").replace("SourceFilename", "SOURCEFILENAME").replace("a.tif", "none.tif"), "there is no such file"),
        (PYTHON + source("a.tif"), "runs Python code, which is not run here"),
        ("<Option name='RPC_DEM'>/vsicurl/http://127.0.0.1:9/a.tif</Option>", "only local files are read"),
        ("<SimpleSource>", "damaged or cut short"),
    ],
)
def test_a_vrt_that_points_elsewhere_is_refused(band, said, tmp_path, refused):
    write(tmp_path / "a.tif", noise(1, 9, 9))
    (tmp_path / "wms.xml").write_text("<GDAL_WMS></GDAL_WMS>")
    write_vrt(tmp_path / "inner.vrt", (9, 9), source("none.tif"))
    assert said in refused(write_vrt(tmp_path / "a.vrt", (9, 9), band, 'subClass="VRTDerivedRasterBand"'))


def test_vrts_of_vrts(tmp_path, refused):
    values = noise(1, 9, 9)
    write(tmp_path / "a.tif", values)
    write_vrt(tmp_path / "inner.vrt", (9, 9), source("a.tif"))
    with Raster(write_vrt(tmp_path / "outer.vrt", (9, 9), source("inner.vrt"))) as raster:
        assert (raster.read((0, 0, 9, 9))[0][..., 0] == values[0]).all()
    write_vrt(tmp_path / "inner.vrt", (9, 9), source("outer.vrt"))
    assert "outer.vrt: " in refused(tmp_path / "outer.vrt")


def test_what_is_said_about_a_file(tmp_path, monkeypatch):
    points = [GroundControlPoint(row, column, 10 + column, 50 - row) for row, column in ((0, 0), (0, 9), (9, 0))]
    path = write(tmp_path / "points.tif", noise(3, 9, 9), **RGB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "r+") as file:
            file.gcps = points, rasterio.crs.CRS.from_epsg(4326)
    with Raster(path) as raster:
        assert raster.transform is None and raster.crs is None
        assert raster.notes == [
            "located by ground control points only: positions are pixel coordinates; gdalwarp makes a copy with map coordinates"
        ]
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (60, 80)).save(tmp_path / "turned.jpg", exif=exif)
    with Raster(tmp_path / "turned.jpg") as raster:
        assert (raster.width, raster.height) == (60, 80)
        assert "EXIF orientation 6 is not applied: positions are those of the stored pixels" in raster.notes
    pages = [Image.new("RGB", (20, 20)), Image.new("RGB", (30, 30))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert "the first of 2 images in the file is read" in Raster(tmp_path / "pages.tif").notes
    monkeypatch.setattr("evcap.raster.remarks.WITHOUT_OVERVIEWS", 8)
    without = "no overviews: a view of the whole reads every pixel; data/make_cog.py makes a copy that is read faster"
    assert without in Raster(write(tmp_path / "a.tif", noise(3, 64, 64), **TILED)).notes
    assert without not in Raster(write(tmp_path / "b.tif", noise(3, 64, 64), **TILED, overviews=(2, 4))).notes
