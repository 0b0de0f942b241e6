"""Many named images -> memory keys: resumed after a kill, in this process or by the workers of a Ray cluster."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evcap.captioner import Captioner
from evcap.config import load_preset, preset_path
from evcap.datasets.named_images import CORNERS, NamedImage, columns, distinct
from evcap.encoding.ray import Engine, map_by_actors, ray_session
from evcap.errors import EvcapError
from evcap.generators.options import encoder_tensors
from evcap.images.ahead import open_ahead
from evcap.images.opening import ImageError
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import build_encoder
from evcap.progress import Progress, silent
from evcap.row_store import RowStore, remove_rows
from evcap.runtime import pick_device

BATCHES_A_TASK = 64  # at most; Ray's bookkeeping is per task, and what a task did is on disk only when all of it is done
NO_BOX = (nan,) * 4


@dataclass(frozen=True)
class Encoder:
    """The model that makes keys: a preset and, if not those it ships, the trained tensors. Loaded when first asked for."""

    preset: str
    trained: Path | None = None

    @cached_property
    def captioner(self) -> Captioner:
        settings = load_preset(self.preset)
        trained = encoder_tensors(self.preset, settings, self.trained)
        return Captioner(build_encoder(settings, trained, pick_device()))

    @property
    def fingerprint(self) -> str:
        return self.captioner.encoder_fingerprint

    @property
    def on_gpu(self) -> bool:
        return next(self.captioner.model.parameters()).is_cuda

    @property
    def recipe(self) -> tuple[str, Path | None, str]:
        """What another process needs to make the same encoder, see `after`: preset, trained tensors, fingerprint."""
        return str(preset_path(self.preset).resolve()), self.trained and self.trained.resolve(), self.fingerprint

    @classmethod
    def after(cls, recipe: tuple[str, Path | None, str]) -> Encoder:
        """The encoder that a process with this recipe has. Raises EvcapError if another one is found here."""
        encoder = cls(*recipe[:2])
        if encoder.fingerprint != recipe[2]:
            raise EvcapError("the encoder on a worker is another one; install the same evcap and weights on every node")
        return encoder

    @property
    def width(self) -> int:
        """Numbers of a key."""
        return self.captioner.preset.image_qformer.width

    def keys(self, images: Sequence[Image.Image], batch: int) -> np.ndarray:
        """Images -> keys (n,D) float32."""
        return self.captioner.keys(images, batch)

    def rows(self, items: Sequence[NamedImage], batch: int) -> Iterator[np.ndarray]:
        """Keys (b,D) float32 of each batch of `batch` items; a row of NaN for an image that does not open."""
        enough = self.captioner.preset.vision.opened_side
        with closing(open_ahead(items, batch, lambda item: item.open(enough))) as batches:
            for opened in batches:
                pictures = {row: image for row, (_, image) in enumerate(opened) if not isinstance(image, ImageError)}
                keys = np.full((len(opened), self.width), nan, np.float32)
                if pictures:
                    keys[list(pictures)] = self.keys(list(pictures.values()), batch)
                yield keys


@dataclass(frozen=True)
class Encoded:
    """Keys (n,D) float16 of the images that opened, those images, and one line for each of the others."""

    keys: np.ndarray
    items: list[NamedImage]
    failures: list[str]


def encode_keys(
    encoder: Encoder,
    items: Sequence[NamedImage],
    folder: str | Path,
    batch: int = 32,
    engine: Engine = Engine.local,
    progress: Progress = silent,
) -> Encoded:
    """Keys of all items, in their order, whatever the batch size up to float rounding and the same with each engine.

    An image that bears several names is encoded once. folder: keeps finished rows, so that a run that was killed goes on,
    with the same images and encoder, where it was; the caller deletes it once the keys are safe. Raises EvcapError when no
    image opens or Ray fails.
    """
    width = encoder.width
    if not items:
        return Encoded(np.zeros((0, width), np.float16), [], [])
    images = distinct(items)
    digest = hashlib.sha256("\n".join(map(_identity, images)).encode(errors="surrogateescape")).hexdigest()
    cache = RowStore(folder, {"items": digest, "encoder": encoder.fingerprint}, len(images), (width,))
    if cache.done < len(images):
        left = [item for start, stop in cache.missing(batch) for item in images[start:stop]]
        rows = encoder.rows(left, batch) if engine == Engine.local else _rows_by_ray(encoder, left, batch)
        with closing(rows), progress(len(images), "keys") as advance:
            cache.fill(lambda start, stop: torch.tensor(next(rows)), batch, advance)
    opened = np.isfinite(cache.rows).all(1)
    failures = [_why(item) for item, ok in zip(images, opened, strict=True) if not ok]
    if not opened.any():
        cache.path.unlink()  # they may open another time
        raise EvcapError(f"none of the {len(images)} images can be used; the first: {failures[0]}")
    place = {image.seen: row for row, image in enumerate(images)}
    row = [place[item.seen] for item in items]
    found = opened[row]
    return Encoded(cache.rows[row][found], [item for item, ok in zip(items, found, strict=True) if ok], failures)


def save_memory(
    encoder: Encoder,
    items: Sequence[NamedImage],
    output: Path,
    batch: int = 32,
    engine: Engine = Engine.local,
    progress: Progress = silent,
) -> tuple[VisualNameMemory, list[str]]:
    """A new memory of all items in the folder `output`, and a line for each image that has no entry.

    OUTPUT.part keeps what is done until the memory is whole. Raises EvcapError as `encode_keys` and `save` do.
    """
    part = output.with_name(f"{output.name}.part")
    encoded = encode_keys(encoder, items, part, batch, engine, progress)
    memory = VisualNameMemory.build(encoded.keys, *columns(encoded.items), encoder.fingerprint)
    memory.save(output, progress)
    remove_rows(part)
    return memory, encoded.failures


def _identity(item: NamedImage) -> str:
    try:
        stat = item.path.stat()
        content = stat.st_size, stat.st_mtime_ns
    except OSError:
        content = None
    return repr((os.path.abspath(item.path), content, item.box))


def _why(item: NamedImage) -> str:
    """Why an image has no key: it is opened once more, as rows keep no words."""
    try:
        item.open()
    except ImageError as error:
        return str(error)
    return f"{item.path}: has no key (it opens now, so it did not where it was encoded, or the model gave nothing finite)"


def _rows_by_ray(encoder: Encoder, items: Sequence[NamedImage], batch: int) -> Iterator[np.ndarray]:
    """As Encoder.rows, by actors of Ray Data: one for each GPU of the cluster if the model runs on one, else for each CPU.

    Paths and boxes travel to them, never pixels, so every node must see the images under the same paths. RAY_ADDRESS names
    a running cluster; without it a local one is started, and stopped at the end.
    """
    columns = {"number": np.arange(len(items)), "path": [os.fsencode(os.path.abspath(item.path)) for item in items]}
    boxes = np.array([item.box or NO_BOX for item in items], np.float64)
    columns |= dict(zip(CORNERS, boxes.T, strict=True))
    with ray_session():
        done = 0
        for task in map_by_actors(columns, RayWorker, (encoder.recipe, batch), encoder.on_gpu, batch, BATCHES_A_TASK):
            if not np.array_equal(task["number"], np.arange(done, done + len(task["number"]))):
                raise EvcapError(f"Ray lost the order of the images behind the first {done}; run again, or without Ray")
            done += len(task["number"])
            yield from (task["key"][start : start + batch] for start in range(0, len(task["key"]), batch))


class RayWorker:
    """An actor of Ray: loads the preset once, then turns paths and boxes into keys, `batch` at a time."""

    def __init__(self, recipe: tuple, batch: int):
        self.encoder, self.batch = Encoder.after(recipe), batch

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        boxes = [None if isnan(x1) else (x1, *rest) for x1, *rest in zip(*(rows[c].tolist() for c in CORNERS), strict=True)]
        paths = [Path(os.fsdecode(path)) for path in rows["path"]]
        items = [NamedImage("", path, "", box) for path, box in zip(paths, boxes, strict=True)]
        return {"number": rows["number"], "key": np.concatenate(list(self.encoder.rows(items, self.batch)))}
