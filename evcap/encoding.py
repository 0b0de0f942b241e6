"""Many named pictures -> memory keys: resumed after a kill, in this process or by the workers of a Ray cluster."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import ceil, isnan, nan
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm import tqdm

from evcap.build import build_model, pick_device
from evcap.config import assets_folder, load_preset, preset_path
from evcap.console import open_ahead
from evcap.errors import EvcapError
from evcap.features import FeatureCache
from evcap.images import ImageError
from evcap.named import CORNERS, NamedImage
from evcap.predictor import Captioner

BATCHES_A_TASK = 64  # at most; Ray's bookkeeping is per task, and what a task did is on disk only when all of it is done
NO_BOX = (nan,) * 4


class Engine(StrEnum):
    local = "local"
    ray = "ray"


# options of the recipes that encode
EngineChoice = Annotated[Engine, typer.Option(help="Who encodes: this process, or the workers of a Ray cluster.")]
Trained = Annotated[Path | None, typer.Option(help="Trained tensors to encode with, if not the shipped ones.")]


@dataclass(frozen=True)
class Encoder:
    """The model that makes keys: a preset and, if not those it ships, the trained tensors. Loaded when first asked for."""

    preset: str
    trained: Path | None = None

    @cached_property
    def captioner(self) -> Captioner:
        settings = load_preset(self.preset)
        trained = self.trained or (assets_folder(self.preset, settings) / "trained.safetensors" if settings.assets else None)
        if settings.blip2 and not self.trained and not (trained and trained.exists()):
            trained = None  # BLIP-2 encodes as it is, before anything was trained
        elif trained is None:
            raise EvcapError(f"preset '{settings.name}' ships no trained tensors; name the file to encode with (--trained)")
        return Captioner(build_model(settings, trained, device=pick_device(), speaks=False))

    @property
    def fingerprint(self) -> str:
        return self.captioner.encoder_fingerprint

    def rows(self, items: Sequence[NamedImage], batch: int) -> Iterator[np.ndarray]:
        """Keys (b,D) float32 of each batch of `batch` items; a row of NaN for a picture that does not open."""
        enough = 2 * self.captioner.preset.vision.image_size  # as all other commands open pictures
        with closing(open_ahead(items, batch, lambda item: item.open(enough))) as batches:
            for opened in batches:
                pictures = {row: image for row, (_, image) in enumerate(opened) if not isinstance(image, ImageError)}
                keys = np.full((len(opened), self.captioner.preset.image_qformer.width), nan, np.float32)
                if pictures:
                    keys[list(pictures)] = self.captioner.keys(list(pictures.values()), batch)
                yield keys


@dataclass(frozen=True)
class Encoded:
    """Keys (n,D) float16 of the pictures that opened, those pictures, and one line for each of the others."""

    keys: np.ndarray
    items: list[NamedImage]
    failures: list[str]


def encode_keys(
    encoder: Encoder,
    items: Sequence[NamedImage],
    progress: str | Path,
    batch: int = 32,
    engine: Engine = Engine.local,
    quiet: bool = False,
) -> Encoded:
    """Keys of all items, in their order, whatever the batch size up to float rounding and the same with each engine.

    progress: a folder that keeps finished rows, so that a run that was killed goes on, with the same items and encoder, where
    it was; the caller deletes it once the keys are safe. Raises EvcapError when no picture opens or Ray fails.
    """
    width = encoder.captioner.preset.image_qformer.width
    if not items:
        return Encoded(np.zeros((0, width), np.float16), [], [])
    digest = hashlib.sha256("\n".join(map(_identity, items)).encode(errors="surrogateescape")).hexdigest()
    cache = FeatureCache(progress, {"items": digest, "encoder": encoder.fingerprint}, len(items), (width,))
    if cache.done < len(items):
        left = [item for start, stop in cache.missing(batch) for item in items[start:stop]]
        rows = encoder.rows(left, batch) if engine == Engine.local else _rows_by_ray(encoder, left, batch)
        with closing(rows), tqdm(total=len(items), desc="keys", unit="img", disable=quiet) as bar:
            cache.fill(lambda start, stop: torch.tensor(next(rows)), batch, bar.update)
    found = np.isfinite(cache.rows).all(1)
    failures = [_why(item) for item, ok in zip(items, found, strict=True) if not ok]
    if not found.any():
        cache.path.unlink()  # they may open another time
        raise EvcapError(f"none of the {len(items)} pictures can be used; the first: {failures[0]}")
    return Encoded(cache.rows[found], [item for item, ok in zip(items, found, strict=True) if ok], failures)


def _identity(item: NamedImage) -> str:
    try:
        stat = item.path.stat()
        content = stat.st_size, stat.st_mtime_ns
    except OSError:
        content = None
    return repr((os.path.abspath(item.path), content, item.box))


def _why(item: NamedImage) -> str:
    """Why a picture has no key: it is opened once more, as rows keep no words."""
    try:
        item.open()
    except ImageError as error:
        return str(error)
    return f"{item.path}: has no key (it opens now, so it did not where it was encoded, or the model gave nothing finite)"


def _rows_by_ray(encoder: Encoder, items: Sequence[NamedImage], batch: int) -> Iterator[np.ndarray]:
    """As Encoder.rows, by actors of Ray Data: one for each GPU of the cluster if the model runs on one, else for each CPU.

    Paths and boxes travel to them, never pixels, so every node must see the pictures under the same paths. RAY_ADDRESS names
    a running cluster; without it a local one is started, and stopped at the end.
    """
    try:
        import ray.data
    except ImportError as error:
        raise EvcapError(f"--engine ray needs Ray ({error}): pip install -e '.[cluster]'") from None
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(
                os.environ.get("RAY_ADDRESS", "local"),
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EvcapError(f"Ray does not start or answer: {' '.join(str(error).split())}") from None
    try:
        data, done = _ray_dataset(encoder, items, batch), 0
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells each plan and its progress
        for task in data.iter_batches(batch_size=None):
            if not np.array_equal(task["number"], np.arange(done, done + len(task["number"]))):
                raise EvcapError(f"Ray lost the order of the pictures behind the first {done}; run again, or without Ray")
            done += len(task["number"])
            yield from (task["key"][start : start + batch] for start in range(0, len(task["key"]), batch))
    except ray.exceptions.RayError as error:
        cause = re.search(r"^[\w.]*(Error|Exception): .+$", str(error), re.MULTILINE)  # under the first traceback
        raise EvcapError(f"a Ray worker failed: {cause[0] if cause else ' '.join(str(error).split())}") from None
    finally:
        if own:
            ray.shutdown()


def _ray_dataset(encoder: Encoder, items: Sequence[NamedImage], batch: int):
    """The items as a Ray dataset with columns number and key (D), not yet computed."""
    import pyarrow
    import ray

    kind = "GPU" if next(encoder.captioner.model.parameters()).is_cuda else "CPU"
    workers = max(1, int(ray.cluster_resources().get(kind, 1)))
    # tasks of whole batches, so that these are cut where one process cuts them
    size = batch * min(BATCHES_A_TASK, ceil(len(items) / (batch * workers * 4)))
    columns = {"number": np.arange(len(items)), "path": [os.fsencode(os.path.abspath(item.path)) for item in items]}
    boxes = np.array([item.box or NO_BOX for item in items], np.float64)
    table = pyarrow.table(columns | dict(zip(CORNERS, boxes.T, strict=True)))
    blocks = [table.slice(start, size) for start in range(0, len(items), size)]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    preset = str(preset_path(encoder.preset).resolve())
    return ray.data.from_arrow(blocks).map_batches(
        RayWorker,
        fn_constructor_args=(preset, encoder.trained and encoder.trained.resolve(), encoder.fingerprint, batch),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        **{f"num_{kind.lower()}s": 1},
    )


class RayWorker:
    """An actor of Ray: loads the preset once, then turns batches of paths and boxes into keys."""

    def __init__(self, preset: str, trained: Path | None, fingerprint: str, batch: int):
        self.encoder, self.batch = Encoder(preset, trained), batch
        if self.encoder.fingerprint != fingerprint:
            raise EvcapError("the encoder on a worker is another one; install the same evcap and weights on every node")

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        boxes = [None if isnan(x1) else (x1, *rest) for x1, *rest in zip(*(rows[c].tolist() for c in CORNERS), strict=True)]
        paths = [Path(os.fsdecode(path)) for path in rows["path"]]
        items = [NamedImage("", path, "", box) for path, box in zip(paths, boxes, strict=True)]
        return {"number": rows["number"], "key": np.concatenate(list(self.encoder.rows(items, self.batch)))}
