"""data/make_cog.py: the copy holds the same pixels, in tiles, with overviews; nothing half-written stays."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import typer
from PIL import Image
from places import REPOSITORY
from raster_tools import PLACED, RGB, noise, write
from typer.testing import CliRunner

from data import make_cog
from evcap.cli.console import command
from evcap.raster.blocks import is_whole
from evcap.raster.raster import Raster


def run(*args, code: int = 0):
    """The recipe in this process; what it printed."""
    app = typer.Typer()
    app.command()(command(make_cog.main))
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def program(*args, **options) -> subprocess.CompletedProcess:
    """The recipe as users start it."""
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, REPOSITORY / "data" / "make_cog.py", *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables, **options)


def test_a_file_in_rows_becomes_tiles_with_overviews(tmp_path):
    values = noise(4, 700, 1300, np.uint16, 0, 9000)
    write(tmp_path / "rows.tif", values, compress="lzw", nodata=7, photometric="MINISBLACK", **PLACED)
    done = program(tmp_path / "rows.tif", tmp_path / "cog.tif")
    assert done.returncode == 0 and "1,300 x 700 pixels" in done.stdout and not done.stderr
    with rasterio.open(tmp_path / "cog.tif") as file:
        assert (file.read() == values).all() and file.nodata == 7
        assert file.crs.to_epsg() == 32633 and file.transform == PLACED["transform"]
        assert file.block_shapes[0] == (512, 512) and file.overviews(1) == [2, 4]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        small = file.read(1, out_shape=(350, 650))
    valid = np.where(values[0] == 7, np.nan, values[0]).reshape(350, 2, 650, 2)
    assert np.nanmax(np.abs(np.nanmean(valid, (1, 3)) - small)) <= 1
    with Raster(tmp_path / "rows.tif") as rows, Raster(tmp_path / "cog.tif") as cog:
        assert (rows.read((100, 100, 400, 400))[0] == cog.read((100, 100, 400, 400))[0]).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cog.tif", "rows.tif"]


def test_a_palette_keeps_its_numbers(tmp_path):
    image = Image.fromarray(noise(1, 600, 600, high=4)[0])
    image.putpalette([9, 8, 7, 100, 110, 120, 1, 2, 3, 255, 0, 0])
    image.save(tmp_path / "a.png")
    run(tmp_path / "a.png", tmp_path / "a.tif", "--quiet")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.read(1) == np.asarray(image)).all() and file.colormap(1)[1] == (100, 110, 120, 255)
        assert file.read(1, out_shape=(300, 300)).max() <= 3


def test_jpeg_is_smaller_and_alike(tmp_path):
    soft = np.asarray(Image.fromarray(noise(3, 9, 9).transpose(1, 2, 0)).resize((600, 600), Image.Resampling.BICUBIC))
    write(tmp_path / "a.tif", soft.transpose(2, 0, 1), **RGB)
    for quality in (30, 95):
        run(tmp_path / "a.tif", tmp_path / f"{quality}.tif", "--compress", "jpeg", "--quality", quality)
        with Raster(tmp_path / f"{quality}.tif") as raster:
            assert np.abs(raster.read((0, 0, 600, 600))[0].astype(int) - soft).mean() < 5
    sizes = [(tmp_path / name).stat().st_size for name in ("30.tif", "95.tif", "a.tif")]
    assert sizes == sorted(sizes) and sizes[2] > 4 * sizes[1]


@pytest.mark.parametrize(
    ("source", "target", "options", "said"),
    [
        ("none.tif", "b.tif", (), "none.tif: there is no such file"),
        ("text.tif", "b.tif", (), "text.tif: not a raster that is read here"),
        ("a.tif", "text.tif", (), "text.tif is there already; name another file, or remove it first"),
        ("a.tif", "a.tif", (), "a.tif is there already"),
        ("a.tif", "no/b.tif", (), "there is no folder"),
        ("a.tif", "b.jpg", (), "b.jpg does not end in .tif"),
        ("a.tif", "b.tif", ("--compress", "jpeg"), "a.tif: not converted: jpeg holds 8 bits, not uint16; take deflate"),
        ("damaged.tif", "b.tif", (), "damaged.tif: damaged or cut short"),
    ],
)
def test_one_line_and_nothing_left(source, target, options, said, tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 100, 100, np.uint16), compress="lzw")
    (tmp_path / "text.tif").write_text("hello")
    content = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_0_3", "TIFF", bidx=1))
    content[start : start + 90] = bytes(range(10, 100))
    (tmp_path / "damaged.tif").write_bytes(content)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    line = run(tmp_path / source, tmp_path / target, *options, code=1)
    assert said in line and len(line.splitlines()) == 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_line(tmp_path):
    write(tmp_path / "a.tif", noise(3, 900, 900), **RGB)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # noqa: E731
    done = program(tmp_path / "a.tif", tmp_path / "b.tif", preexec_fn=limit)
    assert done.returncode == 1 and not done.stdout
    assert "a.tif: not converted: " in done.stderr and len(done.stderr.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


@pytest.fixture(params=["plain", "masked"])
def source(request, tmp_path):
    """Noise with an empty block at the upper right, by nodata or by a mask."""
    values, there = noise(3, 1300, 1024, low=1), np.ones((1300, 1024), bool)
    values[:, :512, 512:], there[:512, 512:] = 0, False
    given = {"nodata": 0} if request.param == "plain" else {"mask": there}
    return write(tmp_path / "a.tif", values, **RGB, **given)


@pytest.mark.parametrize("lost", [1, 5, 100_000, 4_000_000])
def test_a_copy_that_is_cut_short_is_not_taken_for_whole(source, tmp_path, monkeypatch, lost):
    """As on a disk that is full at the very end: GDAL's copy returns, and the last bytes are not there."""
    copy = rasterio.shutil.copy

    def cut(dataset, target, **options):
        copy(dataset, target, **options)
        assert is_whole(target)
        os.truncate(target, target.stat().st_size - lost)

    monkeypatch.setattr(rasterio.shutil, "copy", cut)
    line = run(source, tmp_path / "cog.tif", code=1)
    assert "a.tif: not converted: the end of the copy is missing" in line and len(line.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_blocks_that_must_be_there_are_missed(tmp_path):
    values = noise(3, 1300, 1024, low=1)
    values[:, :512, 512:] = 0
    run(write(tmp_path / "a.tif", values, nodata=0, **RGB), tmp_path / "cog.tif")
    held = [{(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)}, {(0, 0), (1, 0)}, {(0, 0)}]
    assert is_whole(tmp_path / "cog.tif", held)
    assert not is_whole(tmp_path / "cog.tif", [held[0] | {(0, 1)}, *held[1:]])


def test_blocks_of_every_band_are_looked_at(tmp_path):
    """Bands one after the other: the last band's blocks are the end of the file."""
    apart = write(tmp_path / "a.tif", noise(3, 1024, 1024), tiled=True, blockxsize=512, blockysize=512, interleave="band")
    with rasterio.open(apart) as file:
        end = sum(int(file.get_tag_item(f"BLOCK_{what}_1_1", "TIFF", bidx=3)) for what in ("OFFSET", "SIZE"))
    for size, whole in ((end + 4, True), (end + 3, False)):
        os.truncate(apart, size)
        assert is_whole(apart) == whole
