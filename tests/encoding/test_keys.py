"""Keys of many images: the same whatever the batch size, after an interruption, and by the workers of a Ray cluster."""

import dataclasses
import os
import sys
import time

import numpy as np
import pytest
import torch
from forks import Fork
from PIL import Image
from tiny_run import world

from evcap.captioner import Captioner
from evcap.datasets.named_images import NamedImage
from evcap.encoding.keys import Encoder, encode_keys
from evcap.encoding.ray import Engine
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(str(world() / "preset.yaml"), world() / "start.safetensors")


@pytest.fixture
def items(tmp_path) -> list[NamedImage]:
    """Eleven images of noise; every third is cut to a box, the fifth is damaged."""
    random, made = np.random.default_rng(0), []
    for number in range(11):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (40, 60 + number, 3), np.uint8)).save(path)
        made.append(NamedImage("x", path, "s", (3.0, 2.0, 30.5, 38.0) if number % 3 == 0 else None))
    made[5].path.write_bytes(made[5].path.read_bytes()[:900])
    return made


def expected(encoder, items) -> np.ndarray:
    """One image at a time, cropped by hand."""
    pictures = [Image.open(i.path).convert("RGB") for i in items]
    pictures = [p.crop((3, 2, 30, 38)) if i.box else p for i, p in zip(items, pictures, strict=True)]
    return np.concatenate([encoder.captioner.keys([picture]) for picture in pictures])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether float16 arrays differ by one step between neighbouring numbers at most, those around zero by 1e-6."""
    a, b = a.astype(np.float16), b.astype(np.float16)
    step = np.spacing(np.maximum(np.abs(a), np.abs(b))).astype(np.float32)
    return bool((np.abs(a.astype(np.float32) - b.astype(np.float32)) <= np.maximum(step, 1e-6)).all())


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_keys_do_not_depend_on_the_batch_size(encoder, items, tmp_path, batch):
    encoded = encode_keys(encoder, items, tmp_path / "part", batch)
    assert encoded.items == items[:5] + items[6:]
    assert len(encoded.failures) == 1 and encoded.failures[0].startswith(f"{items[5].path}: damaged or cut short")
    wanted = expected(encoder, encoded.items)
    assert encoded.keys.dtype == np.float16 and same(encoded.keys, wanted)
    cosine = (encoded.keys.astype(np.float32) * wanted).sum(1) / np.linalg.norm(encoded.keys.astype(np.float32), axis=1)
    assert cosine.min() > 0.99999


def test_an_interrupted_run_goes_on(encoder, items, tmp_path, monkeypatch):
    whole = encode_keys(encoder, items, tmp_path / "straight", 2)
    asked = []

    def keys(self, images, batch_size=16, plain=Captioner.keys):
        if len(asked) == 3:
            asked.append("interrupted")
            raise KeyboardInterrupt
        asked.append(len(images))
        return plain(self, images, batch_size)

    monkeypatch.setattr(Captioner, "keys", keys)
    with pytest.raises(KeyboardInterrupt):
        encode_keys(encoder, items, tmp_path / "part", 2)
    again = encode_keys(encoder, items, tmp_path / "part", 2)
    assert asked == [2, 2, 1, "interrupted", 2, 2, 1]  # the third batch has the damaged image
    assert (again.keys == whole.keys).all() and again.items == whole.items and again.failures == whole.failures


def test_a_picture_of_several_names_is_encoded_once(encoder, items, tmp_path, monkeypatch):
    items = items[3:6]  # a box, a whole picture, a damaged one
    named = [dataclasses.replace(item, name=name) for name in ("kite", "sky") for item in items]
    seen = []
    plain = Captioner.keys
    monkeypatch.setattr(Captioner, "keys", lambda self, images, size=16: seen.extend(images) or plain(self, images, size))
    encoded = encode_keys(encoder, named, tmp_path / "part", 2)
    assert [item.name for item in encoded.items] == ["kite", "kite", "sky", "sky"] and len(encoded.failures) == 1
    assert (
        len(seen) == 2 and (encoded.keys[:2] == encoded.keys[2:]).all() and same(encoded.keys, expected(encoder, encoded.items))
    )


def test_what_was_done_counts_for_the_same_pictures_boxes_and_encoder_only(encoder, items, tmp_path, monkeypatch):
    items = items[:4]
    encode_keys(encoder, items, tmp_path / "part", 2)
    monkeypatch.setattr(Captioner, "keys", lambda *args: pytest.fail("computed again"))
    encode_keys(encoder, items, tmp_path / "part", 4)
    other_box = [*items[:3], dataclasses.replace(items[3], box=(0.0, 0.0, 9.0, 9.0))]
    for others in (items[:3], items[::-1], other_box):
        with pytest.raises(BaseException, match="computed again"):
            encode_keys(encoder, others, tmp_path / "part", 2)
    os.utime(items[0].path, (1, 1))
    with pytest.raises(BaseException, match="computed again"):
        encode_keys(encoder, items, tmp_path / "part", 2)


def test_no_picture_at_all(encoder, items, tmp_path):
    assert encode_keys(encoder, [], tmp_path / "part").keys.shape == (0, 384)
    items[0].path.unlink()
    for _ in range(2):  # nothing is remembered: they may be there the next time
        with pytest.raises(EvcapError, match="none of the 2 images can be used; the first: .*0.png: there is no such file"):
            encode_keys(encoder, [items[0], items[5]], tmp_path / "part")
    Image.new("RGB", (40, 40)).save(items[0].path)
    assert len(encode_keys(encoder, [items[0], items[5]], tmp_path / "part").items) == 1


def test_an_encoder_needs_trained_tensors():
    with pytest.raises(EvcapError, match="preset 'tiny' ships no trained tensors; name the file"):
        _ = Encoder(str(world() / "preset.yaml")).captioner


def test_ray_is_an_extra(encoder, items, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvcapError, match="needs Ray .*: pip install -e '.\\[cluster\\]'"):
        encode_keys(encoder, items, tmp_path, engine=Engine.ray)


def test_a_ray_that_does_not_answer(encoder, items, tmp_path, monkeypatch):
    import ray

    def init(address, **settings):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(EvcapError, match="Ray does not start or answer: nobody there"):
        encode_keys(encoder, items, tmp_path, engine=Engine.ray)


@pytest.mark.slow
def test_ray_gives_the_same_keys(encoder, items, tmp_path, two_workers, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has one
    here = encode_keys(encoder, items, tmp_path / "here", 2)
    torch.set_num_threads(threads)
    workers = []
    pool = two_workers.data.ActorPoolStrategy
    monkeypatch.setattr(two_workers.data, "ActorPoolStrategy", lambda size: workers.append(size) or pool(size=size))
    monkeypatch.setattr(Captioner, "keys", lambda *args: pytest.fail("encoded in this process"))
    there = encode_keys(encoder, items, tmp_path / "there", 2, Engine.ray)
    assert workers == [2]
    assert (there.keys == here.keys).all() and there.items == here.items and there.failures == here.failures


@pytest.mark.slow
def test_a_killed_ray_run_goes_on_to_the_same_keys(tmp_path, two_workers):
    """memory/rebuild.py --engine ray, killed on a cluster that lives on, against one process that nobody disturbs."""
    for number in range(60):
        path = tmp_path / "photos" / ("wolf", "teapot")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((50, 40), 90 + number).convert("RGB").save(path)
    (tmp_path / "names.txt").write_text("wolf\nteapot\n")
    given = [tmp_path / "names.txt", "--images", tmp_path / "photos", "--batch", 1, "--quiet"]
    given += ["--preset", world() / "preset.yaml", "--trained", world() / "start.safetensors", "--output"]
    by_ray = ["memory/rebuild.py", *given, tmp_path / "ray", "--engine", "ray"]
    cluster = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}  # its authentication, too
    cluster["RAY_ADDRESS"] = two_workers.get_runtime_context().gcs_address

    def done() -> list[int]:
        """Which images have their keys on disk, before there is a memory."""
        marks = [np.fromfile(path, np.uint8) for path in (tmp_path / "ray.work" / "keys").glob("*.rows")]
        return np.flatnonzero(np.concatenate(marks)).tolist() if marks else []

    killed = Fork(tmp_path, *by_ray, **cluster)
    while killed.alive() and not done():
        time.sleep(0.001)
    killed.kill()
    before = done()
    assert 0 < len(before) < 60 and not (tmp_path / "ray").exists()
    (rows,) = (tmp_path / "ray.work" / "keys").glob("*.f16")
    keys = np.fromfile(rows, np.float16).reshape(60, -1)
    assert "60 entries of 2 names" in Fork(tmp_path, *by_ray, **cluster).finish()[0]
    Fork(tmp_path, "memory/rebuild.py", *given, tmp_path / "alone").finish()
    one, two = (VisualNameMemory.open(tmp_path / name) for name in ("ray", "alone"))
    assert (one.names, one.images) == (two.names, two.images) and (one.keys == two.keys).all()
    assert (keys[before] == one.keys[before]).all()
