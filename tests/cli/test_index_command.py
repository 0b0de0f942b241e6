"""`evcap index`: files and folders of scenes, what is said about them, and what goes wrong."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_tools import run
from tile_tools import write_scene
from tiny_run import world

from evcap.encoding.keys import Encoder
from evcap.gigapixel.search.towers import QueryTower
from evcap.gigapixel.tiles.index import ENCODED, TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.raster.raster import Raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

FILES = "features.f16", "states.u8", "manifest.json"


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """A preset with a small model, whose encoder takes 64 pixels, that ships its trained tensors."""
    folder = tmp_path_factory.mktemp("preset")
    settings = yaml.safe_load((world() / "preset.yaml").read_text()) | {"assets": "assets"}
    (folder / "assets").mkdir()
    os.link(world() / "start.safetensors", folder / "assets" / "trained.safetensors")
    (folder / "preset.yaml").write_text(yaml.safe_dump(settings))
    return folder / "preset.yaml"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has one
    yield
    torch.set_num_threads(threads)


def opened(path: Path, folder: Path, preset: Path, plan: str = "pyramid-64-0.25") -> TileIndex:
    raster, tower = Raster(path), QueryTower(Encoder(str(preset)).captioner)
    return TileIndex.open(folder, raster, make_plan(plan, raster.width, raster.height), tower.encoder_fingerprint, tower.shape)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_an_index_beside_the_file(tmp_path, preset):
    write_scene(tmp_path / "city.tif", 300, 200, content=[(0, 0, 128, 64)])
    told = run("index", tmp_path / "city.tif", "--preset", preset, "--batch-size", 4)
    index = opened(tmp_path / "city.tif", tmp_path / "city.tif.evcap", preset)
    missing, encoded, empty = index.counts()
    assert missing == 0 < encoded and empty > 0 and told.stdout == ""
    assert f"{tmp_path}/city.tif: not georeferenced" in told.stderr
    assert re.search(
        rf"city.tif: {encoded} tiles encoded, {empty} empty, of {len(index.plan)}, in [0-9.]+ s \([0-9.]+ a second\)",
        told.stderr,
    )
    before = contents(index.folder)
    assert "there was nothing to do" in run("index", tmp_path / "city.tif", "--preset", preset).stderr
    assert contents(index.folder) == before
    assert run("index", tmp_path / "city.tif", "--preset", preset, "--quiet").output == ""


@pytest.mark.parametrize(
    "options, plan",
    [
        (["--tile", "50", "--overlap", "0"], "pyramid-50-0"),
        (["--plan", "vit", "--tile", "100"], "vit-100"),
        (["--plan", "grid-2"], "grid-2"),
    ],
)
def test_other_plans(tmp_path, preset, options, plan):
    write_scene(tmp_path / "a.tif", 200, 150)
    run("index", tmp_path / "a.tif", "--preset", preset, "--index", tmp_path / "there", *options)
    index = opened(tmp_path / "a.tif", tmp_path / "there", preset, plan)
    assert (index.states == ENCODED).all() and not (tmp_path / "a.tif.evcap").exists()


def test_a_folder_of_scenes_with_a_damaged_one(tmp_path, preset):
    for number in range(2):
        write_scene(tmp_path / f"{number}.tif", 100, 90 + number, seed=number)
    (tmp_path / "bad.tif").write_bytes((tmp_path / "0.tif").read_bytes()[:5000])
    (tmp_path / "notes.txt").write_text("no raster")
    told = run("index", tmp_path, "--preset", preset, code=1)
    assert told.stderr.count("tiles encoded") == 2 and "1 of 3 files failed:\n" in told.stderr
    assert re.search(r"\n  .*bad.tif: cut short", told.stderr)
    for number in range(2):
        index = opened(tmp_path / f"{number}.tif", tmp_path / f"{number}.tif.evcap", preset)
        assert (index.states == ENCODED).all()
    run("index", tmp_path / "0.tif", tmp_path / "1.tif", "--preset", preset, "--index", tmp_path / "all", "--quiet")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["0.tif.evcap", "1.tif.evcap"]
    assert contents(tmp_path / "all" / "1.tif.evcap") == contents(tmp_path / "1.tif.evcap")


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["none.tif"], "evcap: there is no file none.tif"),
        (["text.tif"], "evcap: text.tif: not a raster that is read here"),
        (["a.tif", "--plan", "hexagons"], "evcap: there is no plan 'hexagons'"),
        (["a.tif", "--plan", "grid", "--tile", "9"], "evcap: plan 'grid' takes cells"),
        (["a.tif", "--overlap", "0.99"], "evcap: plan 'pyramid': overlap must be 0 to 0.9"),
        (["a.tif", "b/a.tif", "--index", "all"], "evcap: some of these files have the same name"),
        (["a.tif", "--preset", "unknown"], "evcap: "),
        (["."], "evcap: 1 of 3 files failed"),
    ],
)
def test_bad_input_is_one_line(tmp_path, preset, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    write_scene("a.tif", 70, 70)
    os.mkdir("b")
    write_scene("b/a.tif", 70, 70)
    Path("text.tif").write_text("no raster at all")
    told = run("index", *arguments, *([] if "--preset" in arguments else ["--preset", preset]), "--quiet", code=1)
    assert told.stdout == "" and told.stderr.startswith(line), told.stderr
    assert told.stderr.count("\n") == (2 if "failed" in line else 1)


def test_an_index_of_another_plan_is_refused(tmp_path, preset):
    write_scene(tmp_path / "a.tif", 100, 90)
    run("index", tmp_path / "a.tif", "--preset", preset, "--quiet")
    told = run("index", tmp_path / "a.tif", "--preset", preset, "--plan", "vit", "--quiet", code=1)
    assert re.fullmatch(
        r"evcap: .*a.tif.evcap is the index of another plan .*; `evcap index .*a.tif --anew` makes it again, or .*--index\)\n",
        told.stderr,
    )


def test_without_rasterio(tmp_path, preset, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert "large images need rasterio" in run("index", tmp_path / "a.tif", "--preset", preset, code=1).stderr


def test_ctrl_c_says_how_to_go_on(tmp_path, preset, monkeypatch):
    write_scene(tmp_path / "a.tif", 100, 90)

    def interrupt(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(TileIndex, "fill", interrupt)
    told = run("index", tmp_path / "a.tif", "--preset", preset, "--quiet", code=130)
    assert told.stderr == "evcap: interrupted; what is encoded is kept, the same command goes on from there\n"


@pytest.mark.slow
def test_ray_gives_the_same_indexes(tmp_path, preset, two_workers, monkeypatch):
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_scene(folder / "a.tif", 500, 400, content=[(0, 0, 256, 256), (384, 320, 448, 384)])
    write_scene(folder / "b.tif", 130, 90, seed=1, nodata=0)
    write_scene(folder / "c.tif", 200, 200, seed=2, compress="deflate")
    content = bytearray((folder / "c.tif").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    (folder / "c.tif").write_bytes(content)
    options = "--preset", preset, "--batch-size", 4
    told = run("index", folder, *options, "--index", tmp_path / "here", code=1)
    workers, pool = [], two_workers.data.ActorPoolStrategy
    monkeypatch.setattr(two_workers.data, "ActorPoolStrategy", lambda size: workers.append(size) or pool(size=size))
    monkeypatch.setattr(TileIndex, "fill", lambda *args, **kwargs: pytest.fail("filled in this process"))
    monkeypatch.setattr("evcap.gigapixel.tiles.by_ray.BATCHES_A_TASK", 2)
    again = run("index", folder, *options, "--index", tmp_path / "there", "--engine", "ray", code=1)
    assert workers == [2]
    for name in ("a.tif.evcap", "b.tif.evcap"):
        assert contents(tmp_path / "there" / name) == contents(tmp_path / "here" / name)
    for output in (told.stderr, again.stderr):
        assert "1 of 3 files failed:\n" in output and re.search(r"\n  .*c.tif: damaged or cut short", output)
        assert output.count("tiles encoded") == 2
    nothing = run("index", folder / "a.tif", *options, "--index", tmp_path / "there" / "a.tif.evcap", "--engine", "ray")
    assert "there was nothing to do" in nothing.stderr
