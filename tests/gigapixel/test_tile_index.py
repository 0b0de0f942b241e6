"""The tile index: the features of each tile where they belong, whatever ended the runs that made them."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from places import REPOSITORY
from tile_tools import SIDE, PlainEncoder, features, write_scene

from evcap.errors import EvcapError
from evcap.gigapixel.search.towers import QueryTower
from evcap.gigapixel.tiles.files import stored_plan
from evcap.gigapixel.tiles.index import EMPTY, ENCODED, MISSING, Filled, TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.gigapixel.tiles.reading import read_square
from evcap.raster.raster import Raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

KILLS = 20
CONTENT = [(0, 0, 128, 64), (256, 128, 320, 256)]
WRITER = REPOSITORY / "tests" / "tile_writer.py"


@pytest.fixture
def at_once(monkeypatch):
    """Each batch is marked at once."""
    monkeypatch.setattr("evcap.gigapixel.tiles.index.SYNC", 0)


def opened(path, folder, name="pyramid-32-0.25", encoder=PlainEncoder) -> TileIndex:
    raster = Raster(path)
    plan = make_plan(name, raster.width, raster.height)
    return TileIndex.open(folder, raster, plan, encoder.encoder_fingerprint, encoder.shape)


@pytest.fixture
def scene(tmp_path) -> Path:
    """A sparse image of 400 x 300 pixels; `CONTENT` was written."""
    write_scene(tmp_path / "city.tif", content=CONTENT)
    return tmp_path / "city.tif"


@pytest.fixture
def filled(scene, tmp_path) -> TileIndex:
    index = opened(scene, tmp_path / "straight")
    index.fill(PlainEncoder(), batch=4)
    return index


def contents(folder) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in ("features.f16", "states.u8", "manifest.json")}


def test_features_are_those_of_each_tile(scene, tmp_path):
    index, encoder = opened(scene, tmp_path / "new" / "folder"), PlainEncoder()
    assert (index.states == MISSING).all() and len(index.numbers()) == 0 and not list(index.chunks())
    answer = index.fill(encoder, batch=4)
    touched = [
        any(x1 < b[2] and x2 > b[0] and y1 < b[3] and y2 > b[1] for b in CONTENT) for x1, y1, x2, y2 in index.plan.boxes()
    ]
    assert (index.states == np.where(touched, ENCODED, EMPTY)).all() and index.counts() == [
        0,
        sum(touched),
        touched.count(False),
    ]
    assert answer == Filled(sum(touched), touched.count(False), len(index.plan))
    assert set(encoder.calls) == {4} and len(encoder.calls) == -(-sum(touched) // 4)
    assert index.numbers().tolist() == np.flatnonzero(touched).tolist()
    queries = index.queries(index.numbers())
    assert queries.dtype == np.float16 and queries.shape == (sum(touched), 2, 6)
    for number, found in zip(index.numbers(), queries, strict=True):
        (pixels,) = read_square(index.raster, index.plan, np.array([number]), SIDE).pixels
        assert (found.reshape(12) == features(pixels).astype(np.float16)).all()
    mixed = np.random.default_rng(0).permutation(index.numbers())
    assert (index.queries(mixed) == queries[np.searchsorted(index.numbers(), mixed)]).all()
    chunks = list(index.chunks(7))
    assert [len(numbers) for numbers, _ in chunks[:-1]] == [7] * (len(chunks) - 1) and len(chunks[-1][0]) <= 7
    assert (np.concatenate([n for n, _ in chunks]) == index.numbers()).all()
    assert (np.concatenate([q for _, q in chunks]) == queries).all()
    with pytest.raises(ValueError, match="not encoded"):
        index.queries(np.flatnonzero(index.states == EMPTY)[:1])


def test_what_is_there_is_not_encoded_again(filled, scene):
    again, encoder = opened(scene, filled.folder), PlainEncoder()
    assert (again.states == filled.states).all()
    assert again.fill(encoder) == Filled(0, 0, len(again.plan)) and encoder.calls == []
    assert (again.queries(again.numbers()) == filled.queries(filled.numbers())).all()


def test_parts_in_any_order_are_the_whole(filled, scene, tmp_path):
    index, encoder = opened(scene, tmp_path / "parts"), PlainEncoder()
    draw = np.random.default_rng(0)
    for part in np.array_split(draw.permutation(len(index.plan)), 5):
        asked = np.concatenate([part, part[:3]])  # some twice
        answer = index.fill(encoder, asked, 4)
        assert answer.of == len(asked) and (index.states[part] != MISSING).all()
        assert answer.encoded == (filled.states[part] == ENCODED).sum()
    assert contents(index.folder) == contents(filled.folder)


def test_empty_parts_take_no_space(tmp_path):
    write_scene(tmp_path / "a.tif", 2400, 1600, 128, content=[(0, 0, 256, 128)])
    index = opened(tmp_path / "a.tif", tmp_path / "index")
    answer = index.fill(PlainEncoder())
    assert answer.encoded < 150 < 8000 < answer.empty
    file = (index.folder / "features.f16").stat()
    assert file.st_size == len(index.plan) * 24 and file.st_blocks * 512 < file.st_size / 2


def interrupted(after: int) -> PlainEncoder:
    """An encoder that is interrupted when it gets its `after`-th batch."""

    class Interrupted(PlainEncoder):
        def query_features(self, images, batch_size):
            if len(self.calls) == after:
                raise KeyboardInterrupt
            return super().query_features(images, batch_size)

    return Interrupted()


def test_an_interrupted_run_goes_on_at_once(filled, scene, tmp_path):
    for after in (0, 1, 3):
        encoder, rest = interrupted(after), PlainEncoder()
        index = opened(scene, tmp_path / str(after))
        with pytest.raises(KeyboardInterrupt):
            index.fill(encoder, batch=4)
        assert len(encoder.calls) == after and index.counts()[ENCODED] == 4 * after
        opened(scene, index.folder).fill(rest, batch=4)
        assert len(rest.calls) + after == -(-filled.counts()[ENCODED] // 4)
        assert contents(index.folder) == contents(filled.folder)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bytes(tmp_path):
    write_scene(tmp_path / "a.tif", 800, 600)
    straight = opened(tmp_path / "a.tif", tmp_path / "straight")
    straight.fill(PlainEncoder(), batch=4)
    command = [sys.executable, str(WRITER), str(tmp_path / "a.tif"), str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(WRITER.parent.parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    draw, known = random.Random(0), []
    with subprocess.Popen(command, text=True, bufsize=1, env=environment, **pipes) as process:
        for _ in range(KILLS):
            process.stdin.write(f"{draw.randrange(5)}\n")
            child = int(process.stdout.readline())
            time.sleep(draw.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"
            known.append(opened(tmp_path / "a.tif", tmp_path / "killed").counts()[ENCODED])
        assert process.communicate()[1] == ""
    assert known == sorted(known) and len(set(known)) > KILLS / 2 and known[-1] < len(straight.plan)  # they fell on its way
    index = opened(tmp_path / "a.tif", tmp_path / "killed")
    index.fill(PlainEncoder(), batch=4)
    assert contents(index.folder) == contents(straight.folder) and index.counts() == [0, len(index.plan), 0]


def test_a_full_disk_is_one_line_and_the_rest_fits_later(filled, scene, tmp_path, monkeypatch, at_once):
    index, written, plain = opened(scene, tmp_path / "full"), [], os.pwrite

    def pwrite(file, content, offset):
        if sum(written) >= 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(plain(file, content[: max(1, 1000 - sum(written))], offset))  # the last bytes that fit
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(
            EvcapError, match="cannot write to .*full: No space left on device; what is encoded is kept"
        ) as caught:
            index.fill(PlainEncoder(), batch=4)
    assert "\n" not in str(caught.value)
    again = opened(scene, index.folder)
    assert 0 < again.counts()[ENCODED] < filled.counts()[ENCODED]
    assert (again.queries(again.numbers()) == filled.queries(again.numbers())).all()
    again.fill(PlainEncoder(), batch=4)
    assert contents(again.folder) == contents(filled.folder)


def test_another_file_plan_or_encoder_is_refused(filled, scene):
    with pytest.raises(EvcapError, match=r"straight is the index of another plan \(pyramid-32-0.25\); .*--anew .*--index"):
        opened(scene, filled.folder, "vit-32")
    other = type("Other", (PlainEncoder,), {"encoder_fingerprint": "other"})
    again = "`evcap index .*city.tif --anew --index .*straight` makes it again"
    with pytest.raises(EvcapError, match=f"straight is the index of another encoder; {again}"):
        opened(scene, filled.folder, encoder=other)
    with pytest.raises(EvcapError, match="straight is the index of another encoder"):
        filled.fill(other())
    with scene.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([255 - last]))
    with pytest.raises(EvcapError, match="another file, or city.tif has changed since; .* --anew"):
        opened(scene, filled.folder)
    with pytest.raises(EvcapError, match="city.tif has changed since it was opened"):
        filled.fill(PlainEncoder())


def test_a_renamed_file_keeps_its_index(filled, scene):
    os.rename(scene, scene.with_name("town.tif"))
    assert (opened(scene.with_name("town.tif"), filled.folder).states == filled.states).all()


@pytest.mark.parametrize("change", ["cut", "longer", "wrong", "gone", "manifest", "tiles", "memory", "folder"])
def test_a_damaged_index_is_one_line(filled, scene, change):
    manifest, states = filled.folder / "manifest.json", filled.folder / "states.u8"
    told = json.loads(manifest.read_text())
    if change == "cut":
        os.truncate(filled.folder / "features.f16", 100)
    elif change == "longer":
        states.write_bytes(states.read_bytes() + b"\0")
    elif change == "wrong":
        states.write_bytes(b"\7" * len(filled.plan))
    elif change == "gone":
        states.unlink()
    elif change == "folder":
        manifest.unlink()
        manifest.mkdir()
    else:
        changed = {"manifest": "{", "tiles": json.dumps(told | {"tiles": 3}), "memory": '{"format": "evcap memory 1"}'}
        manifest.write_text(changed[change])
    with pytest.raises(EvcapError, match=str(filled.folder)) as caught:
        opened(scene, filled.folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_cut_short_while_it_is_read(filled):
    os.truncate(filled.folder / "features.f16", 100)
    with pytest.raises(EvcapError, match="features.f16: the file was cut short"):
        filled.queries(filled.numbers())


def test_a_folder_that_cannot_be_made(scene, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EvcapError, match="cannot use .*file/index as a tile index: Not a directory"):
        opened(scene, tmp_path / "file" / "index")


def test_what_an_unfinished_creation_left_is_no_index(scene, filled, tmp_path):
    index = opened(scene, tmp_path / "index")
    (index.folder / "manifest.json").unlink()
    (index.folder / "states.u8").write_bytes(b"\1" * 7)
    assert opened(scene, index.folder).counts() == [len(index.plan), 0, 0]


def test_two_processes_do_not_write_at_once(scene, tmp_path):
    one, two = opened(scene, tmp_path / "index"), opened(scene, tmp_path / "index")
    with one.writing(), pytest.raises(EvcapError, match="another process is writing to .*index; wait"):
        two.fill(PlainEncoder())
    one.fill(PlainEncoder())
    encoder = PlainEncoder()
    two.fill(encoder)  # it sees what the first has done
    assert encoder.calls == [] and (two.states == one.states).all()


def test_the_plan_of_a_folder(filled, tmp_path):
    assert stored_plan(filled.folder) == "pyramid-32-0.25"
    assert stored_plan(tmp_path / "none") is None
    (filled.folder / "manifest.json").write_text('{"plan": 3}')
    assert stored_plan(filled.folder) is None


def test_features_of_the_real_model_do_not_depend_on_neighbours_or_parts(captioner, tmp_path):
    write_scene(tmp_path / "a.tif", 700, 500, 128)
    tower, folder = QueryTower(captioner), tmp_path / "index"

    def make(name: str) -> TileIndex:
        raster = Raster(tmp_path / "a.tif")
        plan = make_plan("pyramid-288-0.25", 700, 500)
        return TileIndex.open(tmp_path / name, raster, plan, tower.encoder_fingerprint, tower.shape)

    index, parts = make("index"), make("parts")
    index.fill(tower, batch=3)
    for numbers in (np.array([5, 2]), None):
        parts.fill(tower, numbers, batch=3)
    assert contents(parts.folder) == contents(folder) and index.counts() == [0, len(index.plan), 0]
    pictures = [read_square(index.raster, index.plan, np.array([n]), 288).pixels[0] for n in range(len(index.plan))]
    from PIL import Image

    wanted = captioner.query_features([Image.fromarray(pixels) for pixels in pictures]).numpy()
    found = index.queries(index.numbers()).astype(np.float32)
    cosines = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert pictures[-1].shape == (288, 288, 3) and cosines.min() > 0.99999  # as photos are seen, but kept as float16
