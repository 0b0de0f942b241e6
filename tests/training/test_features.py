"""The cache of frozen features: killed at any moment it goes on to the same rows, and what differs is another file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import REPOSITORY
from tiny import tiny_evcap

from evcap.model.evcap import EVCap
from evcap.model.vision import VisionEncoder
from evcap.row_store import RowStore
from evcap.training.features import cached_features, cached_queries

KEY, ITEMS, SHAPE = {"weights": "a", "files": ["x", "y"]}, 10, (2, 3)
KILLED = """
import os, signal, sys
from tests.training.test_features import ITEMS, KEY, SHAPE, RowStore, truth

def compute(start, stop):
    if start == 6:
        cache.rows[6:8] = -1  # half of a batch
        os.kill(os.getpid(), signal.SIGKILL)
    return truth(start, stop)

cache = RowStore(sys.argv[1], KEY, ITEMS, SHAPE)
cache.fill(compute, 3, lambda n: None)
"""


def truth(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start * 6, stop * 6, dtype=torch.float32).view(-1, *SHAPE) / 4


def fill(folder: Path, key: dict = KEY) -> tuple[RowStore, list, list]:
    """The cache filled to its end, the (start, stop) that were computed, and what the progress bar was fed."""
    computed, fed = [], []

    def compute(start, stop):
        computed.append((start, stop))
        return truth(start, stop)

    cache = RowStore(folder, key, ITEMS, SHAPE)
    cache.fill(compute, 3, fed.append)
    return cache, computed, fed


def test_rows_are_computed_once(tmp_path):
    cache, computed, fed = fill(tmp_path / "new" / "folder")
    assert computed == [(0, 3), (3, 6), (6, 9), (9, 10)] and sum(fed) == ITEMS
    assert cache.rows.dtype == np.float16 and (cache.rows == truth(0, ITEMS).numpy()).all()
    again, computed, fed = fill(tmp_path / "new" / "folder")
    assert computed == [] and sum(fed) == ITEMS and (again.rows == cache.rows).all()


@pytest.mark.slow
def test_killed_process_is_continued(tmp_path):
    program = [sys.executable, "-c", KILLED, str(tmp_path)]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    run = subprocess.run(program, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path})
    assert run.returncode == -signal.SIGKILL, run.stderr
    cache, computed, fed = fill(tmp_path)
    assert computed == [(6, 9), (9, 10)] and sum(fed) == ITEMS
    assert (cache.rows == truth(0, ITEMS).numpy()).all()


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_several_processes_share_the_work(processes, tmp_path):
    """Each computes its own batches, in whatever order they come; what one has done another need not do."""
    caches = [RowStore(tmp_path, KEY, ITEMS, SHAPE) for _ in range(processes)]
    computed = []

    def compute(start, stop):
        computed.append((start, stop))
        return truth(start, stop)

    for rank in reversed(range(processes)):
        assert (caches[0].done == ITEMS) == (len(computed) == 4)
        caches[rank].fill(compute, 3, lambda n: None, (rank, processes))
    assert sorted(computed) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert all((cache.rows == truth(0, ITEMS).numpy()).all() and cache.done == ITEMS for cache in caches)


def test_another_batch_size_goes_on_as_well(tmp_path):
    cache = RowStore(tmp_path, KEY, ITEMS, SHAPE)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(lambda a, b: truth(a, b) if a < 4 else exec("raise KeyboardInterrupt"), 2, lambda n: None)
    cache, computed, _ = fill(tmp_path)
    assert computed == [(3, 6), (6, 9), (9, 10)] and (cache.rows == truth(0, ITEMS).numpy()).all()


def test_rows_deleted_to_free_the_disk_are_computed_again(tmp_path):
    cache, _, _ = fill(tmp_path)
    cache.path.unlink()
    cache, computed, _ = fill(tmp_path)
    assert len(computed) == 4 and (cache.rows == truth(0, ITEMS).numpy()).all()


def test_another_key_is_another_file(tmp_path):
    first, _, _ = fill(tmp_path)
    for key in (KEY | {"weights": "b"}, KEY | {"files": ["y", "x"]}, KEY | {"flip": True}):
        assert RowStore(tmp_path, key, ITEMS, SHAPE).done == 0
    same = RowStore(tmp_path, dict(reversed(KEY.items())), ITEMS, SHAPE)  # order of settings does not matter
    assert same.done == ITEMS and same.path == first.path
    assert len(list(tmp_path.glob("*.f16"))) == 4


class Columns(VisionEncoder):
    """Patch tokens (B,4,20) of pixels (B,3,64,64): 4 tokens, each what 20 columns of one row of the image hold."""

    calls, told = 0, {}

    def identifying(self) -> dict[str, torch.Tensor]:
        return self.told

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return pixels[:, 0, ::16, :20].contiguous()


@pytest.fixture
def model() -> EVCap:
    model = tiny_evcap()
    model.backbone = Columns()
    return model


@pytest.fixture
def paths(tmp_path, monkeypatch) -> list[Path]:
    """Three images in tmp_path, the cache beside them."""
    monkeypatch.setenv("EVCAP_CACHE", str(tmp_path / "cache"))
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.linspace(0, 80 * (number + 1), 64 * 64).reshape(64, 64).T.astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def test_features_of_pictures(model, paths, tmp_path):
    patches = cached_features(model, paths, tmp_path)
    assert patches.shape == (3, 4, 20) and model.backbone.calls == 1
    assert (np.diff(patches.astype(np.float32), axis=2) >= 0).all()  # brighter to the right
    mirrored = cached_features(model, paths, tmp_path, mirrored=True)
    assert (np.diff(mirrored.astype(np.float32), axis=2) <= 0).all() and (mirrored != patches).any()
    assert (cached_features(model, paths, tmp_path) == patches).all() and model.backbone.calls == 2

    queries = cached_queries(model, paths, tmp_path, "encoder a")
    assert queries.shape == (3, 6, 24) and model.backbone.calls == 2  # from the patch tokens on disk
    with torch.inference_mode():
        direct = model.query_features(torch.from_numpy(patches.astype(np.float32)))
    np.testing.assert_allclose(queries.astype(np.float32), direct.numpy(), atol=0.002)  # kept as float16
    model.image_qformer.forward = None  # nothing is computed a second time ...
    assert (cached_queries(model, paths, tmp_path, "encoder a") == queries).all()
    with pytest.raises(TypeError):  # ... but by another encoder
        cached_queries(model, paths, tmp_path, "encoder b")


def test_other_weights_of_a_tower_are_computed_anew(model, paths, tmp_path):
    for calls, weight in ((1, 0.5), (2, 0.75), (2, 0.5)):  # the third are on disk
        model.backbone.told = {"sample": torch.tensor([weight])}
        cached_features(model, paths, tmp_path)
        assert model.backbone.calls == calls
