"""Which file a tile index is of: of the same content whatever its time and name; and how one is made anew."""

import fcntl
import hashlib
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from cli_tools import run
from raster_tools import TILED, noise, source, write, write_vrt
from test_index_command import preset as preset  # the fixture
from tile_tools import write_scene

from evcap.errors import EvcapError
from evcap.gigapixel.tiles import files as tile_files
from evcap.gigapixel.tiles import index as tiles
from evcap.gigapixel.tiles.files import default_folder
from evcap.gigapixel.tiles.index import TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.raster import content
from evcap.raster.raster import Raster, RasterError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

FILES = "features.f16", "states.u8", "manifest.json"


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture
def index(tmp_path, monkeypatch, preset):
    """Runs `evcap index` of a scene in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "a.tif", 200, 150)
    return lambda *options, code=0: run("index", "a.tif", "--preset", preset, *options, code=code)


def changed(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([255 - old]))


def test_touched_and_copied_files_keep_their_index(index, tmp_path):
    index("--quiet")
    before = contents(Path("a.tif.evcap"))
    os.utime("a.tif", (1, 1))
    assert "there was nothing to do" in index().stderr
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    (copied / "a.tif").write_bytes(Path("a.tif").read_bytes())
    Path("a.tif.evcap").rename(copied / "a.tif.evcap")
    os.chdir(copied)
    assert "there was nothing to do" in index().stderr
    assert contents(Path("a.tif.evcap")) == before


def test_an_index_made_by_the_old_rule_is_read_and_noted_anew(index):
    index("--quiet")
    manifest = Path("a.tif.evcap/manifest.json")
    new = json.loads(manifest.read_text())
    with Raster("a.tif") as raster:
        old = {key: new[key] for key in ("format", "raster", "plan", "encoder", "file", "size", "tiles", "shape")}
        manifest.write_text(json.dumps(old | {"raster": raster.fingerprint_by_time()}))
    assert "there was nothing to do" in index().stderr and json.loads(manifest.read_text()) == new
    manifest.write_text(json.dumps(old | {"raster": "0" * 16}))
    assert "--anew` makes it again" in index(code=1).stderr


def test_the_old_rule(tmp_path):
    """By its description: size and time, those of parts, size and types, first and last bytes."""
    path = write(tmp_path / "some.tif", noise(3, 90, 80), **TILED)
    stat = path.stat()
    told = (stat.st_size, stat.st_mtime_ns), [], 80, 90, ("uint8",) * 3, (1, 2, 3)
    edge = path.read_bytes()
    expected = hashlib.sha256(repr(told).encode() + edge[: 1 << 16] + edge[-(1 << 16) :]).hexdigest()[:16]
    with Raster(path) as raster:
        assert raster.fingerprint_by_time() == expected


def test_a_changed_file_says_which_command_and_that_command_works(index, preset):
    index("--quiet")
    changed(Path("a.tif"), os.path.getsize("a.tif") - 1)
    told = index(code=1).stderr
    assert "another file, or a.tif has changed since" in told and told.count("\n") == 1
    command = shlex.split(told.split("`")[1])
    assert command[:2] == ["evcap", "index"]
    assert "nothing to do" not in run(*command[1:], "--preset", preset).stderr
    assert "there was nothing to do" in index().stderr
    before = contents(Path("a.tif.evcap"))
    index("--anew", "--quiet")
    assert contents(Path("a.tif.evcap")) == before, "encoded again, and the same"


def test_bands_and_stretch_are_part_of_an_index(index, preset):
    index("--quiet", "--bands", "3,2,1")
    told = index(code=1).stderr
    assert "is the index of other bands (3,2,1)" in told
    assert "there was nothing to do" in index("--bands", "3,2,1").stderr
    told = index("--bands", "3,2,1", "--stretch", "5,95", code=1).stderr
    assert "is the index of another stretch (none)" in told
    run(*shlex.split(told.split("`")[1])[1:], "--preset", preset, "--quiet")
    assert "there was nothing to do" in index("--bands", "3,2,1", "--stretch", "5,95").stderr
    manifest = json.loads(Path("a.tif.evcap/manifest.json").read_text())
    assert manifest["bands"] == [3, 2, 1] and manifest["stretch"] == [5, 95]


def test_a_folder_of_something_else_is_left_alone(index):
    Path("photos").mkdir()
    Path("photos/manifest.json").write_text("mine")
    told = index("--anew", "--index", "photos", code=1).stderr
    assert "photos is no tile index, and is left as it is" in told
    assert os.listdir("photos") == ["manifest.json"] and Path("photos/manifest.json").read_text() == "mine"


def test_nobody_can_write_beside_the_file(index, tmp_path, monkeypatch):
    monkeypatch.setenv("EVCAP_CACHE", str(tmp_path / "cache"))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    told = index().stderr
    (folder,) = (tmp_path / "cache" / "indexes").iterdir()
    assert folder.name.startswith("a.tif-") and f"a.tif: nobody can write beside it; its index is in {folder}" in told
    assert not Path("a.tif.evcap").exists() and "there was nothing to do" in index().stderr
    folder.rename("a.tif.evcap")  # a whole one beside the file is only read
    assert default_folder(Path("a.tif")) == Path("a.tif.evcap")
    changed(Path("a.tif.evcap/states.u8"), 0)
    Path("a.tif.evcap/states.u8").write_bytes(bytes(4))
    assert default_folder(Path("a.tif")).parent == tmp_path / "cache" / "indexes"


def test_content_is_sampled_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "WHOLE", 1000)
    monkeypatch.setattr(content, "PIECE", 10)
    monkeypatch.setattr(content, "PLACES", 11)
    path = tmp_path / "a.bin"
    data = np.random.default_rng(0).bytes(2010)
    path.write_bytes(data)
    first = content.fingerprint_by_content(path, [], ())
    for place in (0, 9, 200, 209, 1000, 2000, 2009):
        changed(path, place)
        assert content.fingerprint_by_content(path, [], ()) != first, place
        path.write_bytes(data)
    changed(path, 210)  # between two places
    assert content.fingerprint_by_content(path, [], ()) == first
    assert content.fingerprint_by_content(path, [], (1,)) != first
    path.write_bytes(data + b"1")
    assert content.fingerprint_by_content(path, [], ()) != first


def test_the_sources_of_a_vrt_count_by_content(tmp_path):
    part = write(tmp_path / "part.tif", noise(1, 60, 80))
    path = write_vrt(tmp_path / "a.vrt", (80, 60), source("part.tif"))
    first = Raster(path).fingerprint()
    os.utime(part, (1, 1))
    assert Raster(path).fingerprint() == first
    changed(part, part.stat().st_size // 2)
    assert Raster(path).fingerprint() != first


def test_too_many_tiles_are_refused_by_their_number(tmp_path, monkeypatch):
    write(tmp_path / "part.tif", noise(1, 64, 64))
    path = write_vrt(tmp_path / "a.vrt", (2_000_000, 2_000_000), source("part.tif"))
    with Raster(path) as raster:
        plan = make_plan("pyramid", raster.width, raster.height)
        monkeypatch.setattr(tiles, "create", lambda *given: pytest.fail("files were made"))
        with pytest.raises(RasterError, match=f"{len(plan):,} tiles, more than the 5,000,000"):
            TileIndex.open(tmp_path / "index", raster, plan, "encoder")
    assert not (tmp_path / "index").exists()


def test_too_many_blocks_to_look_at(tmp_path):
    band = '<VRTDataset rasterXSize="2000000" rasterYSize="2000000"><VRTRasterBand dataType="UInt16" band="1"/></VRTDataset>'
    (tmp_path / "a.vrt").write_text(band)
    with pytest.raises(RasterError, match="2,000,000 x 2,000,000 pixels in blocks of .* are too many"):
        Raster(tmp_path / "a.vrt")


def test_vrts_that_are_made_of_themselves_or_too_deep(tmp_path):
    for name, of in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
        write_vrt(tmp_path / f"{name}.vrt", (9, 9), source(f"{of}.vrt"))
    for name in ("a", "self"):
        with pytest.raises(RasterError, match=f"{name}.vrt: .*a VRT that is a source of itself") as caught:
            Raster(tmp_path / f"{name}.vrt")
        assert "\n" not in str(caught.value)
    for number in range(40):
        write_vrt(tmp_path / f"{number}.vrt", (9, 9), source(f"{number + 1}.vrt"))
    with pytest.raises(RasterError, match="a VRT inside 16 others"):
        Raster(tmp_path / "0.vrt")
    write(tmp_path / "d.tif", noise(1, 9, 9))
    write_vrt(tmp_path / "inner.vrt", (9, 9), source("d.tif"))
    twice = write_vrt(tmp_path / "twice.vrt", (9, 9), source("inner.vrt") + source("inner.vrt"))
    assert Raster(twice).width == 9, "twice the same is no cycle"


def test_anew_waits_for_nobody(index):
    index("--quiet")
    with open("a.tif.evcap/states.u8", "ab") as states:
        fcntl.flock(states, fcntl.LOCK_EX)
        with pytest.raises(EvcapError, match="another process is writing"):
            tile_files.discard(Path("a.tif.evcap"))
    assert "there was nothing to do" in index().stderr
