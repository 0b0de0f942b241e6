"""data/make_mosaic.py: its rasters against images painted here on whole arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
import typer
from mosaic_data import make_data, stock
from PIL import Image
from places import REPOSITORY
from rasterio.windows import Window
from typer.testing import CliRunner

from data import make_mosaic
from evcap.cli.console import command
from evcap.datasets.scenes import SIDE, read_scene

ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
app = typer.Typer()
app.command()(command(make_mosaic.main))


def run(*args, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, args), "--quiet"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def full(data, tmp_path_factory):
    """Two scenes of 1,601 pixels, the second of which is used: JSON and raster."""
    folder = tmp_path_factory.mktemp("full")
    run(folder, "--data", data, "--size", 1601, "--scenes", 2, "--planted", 4)
    return folder / "val-1.json"


@pytest.fixture(scope="module")
def sparse(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    run(folder, "--data", data, "--size", 2503, "--scenes", 1, "--planted", 4, "--sparse", 12, "--split", "train")
    return folder / "train-0.json"


def painted(path: Path, data: Path) -> np.ndarray:
    """The scene of a JSON file as one array (H,W,3), tile after tile."""
    scene = read_scene(path)
    room = np.zeros((scene.height + 2 * SIDE, scene.width + 2 * SIDE, 3), np.uint8)
    for tile in [*scene.background, *scene.planted]:
        picture = Image.open(data / tile.source)
        if tile.crop:
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=tile.crop)
        for _ in range(tile.turn % 4):
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        if tile.turn >= 4:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x1, y1, x2, y2 = (value + SIDE for value in tile.box)
        room[y1:y2, x1:x2] = np.asarray(picture).clip(1)
    return room[SIDE:-SIDE, SIDE:-SIDE]


def level(path: Path, number: int | None = None) -> np.ndarray:
    with rasterio.open(path.with_suffix(".tif"), **({} if number is None else {"overview_level": number})) as file:
        return np.moveaxis(file.read(), 0, 2)


@pytest.mark.parametrize("name", ["full", "sparse"])
def test_every_pixel_is_that_of_the_tile_on_top(name, data, request):
    path = request.getfixturevalue(name)
    expected = painted(path, data)
    assert (level(path) == expected).all()
    assert expected.any(2).all() == (name == "full")  # one has no gaps, the other has


def test_planted_boxes_hold_exactly_the_planted_pictures(full, data):
    scene = read_scene(full)
    assert len(scene.planted) == 4
    with rasterio.open(full.with_suffix(".tif")) as file:
        for tile in scene.planted:
            x1, y1, x2, y2 = tile.box
            pixels = np.moveaxis(file.read(window=Window(x1, y1, x2 - x1, y2 - y1)), 0, 2)
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(data / tile.source)).clip(1))
            assert tile.label in tile.source and "-val-" in tile.source


@pytest.mark.parametrize("name", ["full", "sparse"])
def test_each_overview_is_the_mean_of_what_is_there(name, request):
    path = request.getfixturevalue(name)
    pixels = level(path)
    with rasterio.open(path.with_suffix(".tif")) as file:
        factors = file.overviews(1)
    assert factors == ([2, 4] if name == "full" else [2, 4, 8])  # down to one block
    for number in range(len(factors)):
        height, width = ((length + 1) // 2 for length in pixels.shape[:2])
        room = np.zeros((2 * height, 2 * width, 3))
        room[: pixels.shape[0], : pixels.shape[1]] = pixels
        quads = room.reshape(height, 2, width, 2, 3)
        filled = (quads.max(-1) > 0).sum((1, 3))[..., None]
        pixels = np.floor(quads.sum((1, 3)) / filled.clip(1) + 0.5).astype(np.uint8)
        assert (level(path, number) == pixels).all(), f"overview {number}"


def test_files_are_georeferenced_cloud_optimized_bigtiffs(full):
    first, second = (full.with_name(f"val-{n}.tif") for n in (0, 1))
    assert first.read_bytes()[:4] == b"II+\0"  # BigTIFF
    with rasterio.open(first) as west, rasterio.open(second) as east:
        assert west.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and west.block_shapes == [(512, 512)] * 3
        assert west.crs.to_epsg() == 32611 and west.res == (0.3, 0.3) and west.nodata is None
        assert east.bounds.left == pytest.approx(west.bounds.right)  # scenes lie side by side
        scene = read_scene(full)
        assert scene.crs == east.crs.to_string() and scene.transform == list(east.transform)[:6]
        for x, y in ((0, 0), (1600, 0), (717, 1034)):
            assert east.index(*east.xy(y, x)) == (y, x)
        longitude, latitude = rasterio.warp.transform(east.crs, "EPSG:4326", *([value] for value in east.xy(0, 0)))
        assert -120 < longitude[0] < -114 and 32 < latitude[0] < 34  # inside zone 11
    assert json.loads(full.read_text())["image"] == "val-1.tif"


def test_sparse_file_holds_blocks_only_where_tiles_are(sparse):
    scene = read_scene(sparse)
    corners = np.array([tile.box[:2] for tile in [*scene.background, *scene.planted]])
    assert len(corners) == 16
    assert (np.abs(corners[:, None] - corners).max(2) + SIDE * np.eye(16) >= SIDE).all()  # no tile covers another
    for number, factor in enumerate([1, 2, 4, 8]):
        options = {"overview_level": number - 1} if number else {}
        side = 512 * factor
        held = {(y // side, x // side) for left, top in corners for x in (left, left + SIDE - 1) for y in (top, top + SIDE - 1)}
        with rasterio.open(sparse.with_suffix(".tif"), **options) as file:
            assert file.nodata == 0
            written = {
                place
                for place, _ in file.block_windows(1)
                if file.get_tag_item(f"BLOCK_OFFSET_{place[1]}_{place[0]}", "TIFF", 1)
            }
        assert written == held


def test_seed_decides(data, full, tmp_path):
    for folder, seed in (("same", 0), ("other", 1)):
        run(tmp_path / folder, "--data", data, "--size", 1601, "--scenes", 1, "--planted", 4, "--seed", seed)
    first = full.with_name("val-0.tif").read_bytes()
    assert (tmp_path / "same" / "val-0.tif").read_bytes() == first
    assert (tmp_path / "same" / "val-0.json").read_bytes() == full.with_name("val-0.json").read_bytes()
    assert (tmp_path / "other" / "val-0.tif").read_bytes() != first


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(data, tmp_path):
    """The peak of a process that paints a scene of 16 megapixels, then one of 144, through the command's own entry."""
    script = """
import runpy, sys
arguments = sys.argv[1:]
for size in ("4000", "12000"):
    sys.argv = ["data/make_mosaic.py", *arguments, "--size", size, "--scenes", "1", "--sparse", "60", "--quiet"]
    try:
        runpy.run_path("data/make_mosaic.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code
    status = open("/proc/self/status").read()  # getrusage would tell the parent's peak, if that is higher
    print("peak", status.split("VmHWM:")[1].split()[0])
"""
    args = [sys.executable, "-c", script, str(tmp_path), "--data", str(data)]
    done = subprocess.run(args, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    small, large = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    assert large < 1.1 * small and large < 1_000_000  # kB


def test_failure_leaves_the_older_file(data, tmp_path):
    """An image that is damaged after the scene was planned."""
    run(tmp_path, "--data", data, "--size", 1100, "--scenes", 1, "--planted", 2)
    before = (tmp_path / "val-0.tif").read_bytes()
    copy = make_data(tmp_path / "copy")
    for picture in (copy / "ucm" / "images").glob("*-train-*.png"):
        picture.write_bytes(b"no image")
    assert "not an image" in run(tmp_path, "--data", copy, "--size", 1100, "--scenes", 1, "--planted", 2, code=1)
    assert (tmp_path / "val-0.tif").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "val-0.json", "val-0.tif"]


@pytest.mark.parametrize("lost", [1, 100_000])
def test_file_cut_short_is_not_taken_for_whole(data, tmp_path, monkeypatch, lost):
    """As on a full disk: GDAL's copy returns, and the end of the file is not there."""
    copy = rasterio.shutil.copy

    def cut(source, target, **options):
        copy(source, target, **options)
        os.truncate(target, target.stat().st_size - lost)

    monkeypatch.setattr(rasterio.shutil, "copy", cut)
    output = run(tmp_path, "--data", data, "--size", 1100, "--scenes", 1, "--planted", 2, code=1)
    assert "val-0.tif: " in output and "cannot write" in output and output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_halved_pixels_of_an_exact_case():
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0], pixels[1, 1], pixels[0, 2] = 10, 13, 7
    np.testing.assert_array_equal(make_mosaic.halve(pixels), [[[12, 12, 12], [7, 7, 7]]])


def test_bad_input_is_named(data, tmp_path):
    assert "cannot read" in run(tmp_path, "--data", data, "--split", "test", code=1)
    assert "do not fit" in run(tmp_path, "--data", data, "--size", 900, code=1)
    copy = make_data(tmp_path / "copy")
    Image.new("RGB", (300, 200)).save(copy / "drone" / "c.png")
    assert "c.png is smaller than a tile of 256 pixels" in run(tmp_path, "--data", copy, code=1)
    for photo in (copy / "drone").iterdir():
        photo.unlink()
    assert "no images in" in run(tmp_path, "--data", copy, code=1)
    captions = copy / "ucm" / "captions_train.json"
    captions.write_text(captions.read_text().replace('"beach"', '"desert"'))
    assert "has the scene 'desert'" in run(tmp_path, "--data", copy, code=1)
    assert not list(tmp_path.glob("*.tif"))


def test_stock_tells_labels_and_sizes(data):
    found = stock(data, "val")
    assert {len(row) for row in found.planted.values()} == {4} and len(found.planted) == 21
    assert [photo.size for photo in found.photos] == [(600, 400), (300, 700)]
