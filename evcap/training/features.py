"""Frozen features computed once and kept on disk: what the tower's frozen part gives for pretraining, query features for
training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from evcap.config import MemoryConfig
from evcap.files import write_text
from evcap.images.opening import open_image, to_tensor
from evcap.memory.memory import VisualNameMemory
from evcap.memory.ranking import image_key
from evcap.model.evcap import QueryEncoder
from evcap.prefetch import prefetched
from evcap.progress import Progress, silent
from evcap.row_store import ALONE, RowStore, Share
from evcap.runtime import full_precision
from evcap.weights.wheels import EFFICIENTNET, cache_folder, fingerprint

BATCH = 64  # images that go through the frozen parts together
RETRIEVED = 256  # images of one search


def tower_weights(model: QueryEncoder) -> str:
    """What tells the frozen tower's weights from others of its kind."""
    tensors = model.backbone.identifying()
    return fingerprint(tensors, {}) if tensors else EFFICIENTNET.sha256


def _looker(model: QueryEncoder, paths: Sequence[Path], mirrored: bool) -> Callable[[int, int], torch.Tensor]:
    """A function (start, stop) -> what the frozen part of the tower gives of these images, opened as captioners open them."""
    vision, device = model.preset.vision, model.device

    @torch.inference_mode()
    def look(start: int, stop: int) -> torch.Tensor:
        images = list(prefetched(lambda path: open_image(path, vision.opened_side), paths[start:stop], BATCH))
        pixels = to_tensor(images, vision.image_size, vision.mean, vision.std).to(device)
        with full_precision(model.device):
            return model.backbone.frozen(pixels.flip(-1) if mirrored else pixels)

    return look


def identities(paths: Sequence[Path], data: Path) -> list[tuple[str, int, int]]:
    """What tells these images from others, and from themselves once somebody has replaced them."""
    stats = [(path.relative_to(data), path.stat()) for path in paths]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def cached_features(
    model: QueryEncoder,
    paths: Sequence[Path],
    data: Path,
    mirrored: bool = False,
    progress: Progress = silent,
    share: Share = ALONE,
) -> np.ndarray:
    """What the frozen part of the tower gives of each image, as a memory map (N,...) float16: `backbone.adapted` makes patch
    tokens of it. Without adapted blocks these are they, (N,P,C). share: see below."""
    key = {
        "files": identities(paths, data),
        "flip": mirrored,
        "vision": dataclasses.asdict(model.preset.vision),
        "weights": tower_weights(model),
        "precision": "float32",
    }
    shape = model.backbone.frozen_shape(model.preset.vision)
    cache = RowStore(cache_folder() / "features", key, len(paths), shape)
    title = "frozen features" + (", mirrored" if mirrored else "")
    with progress(len(paths) // share[1], title) as advance:
        cache.fill(_looker(model, paths, mirrored), BATCH, advance, share)
    return cache.rows


def cached_queries(
    model: QueryEncoder,
    paths: Sequence[Path],
    data: Path,
    encoder: str,
    mirrored: bool = False,
    progress: Progress = silent,
    share: Share = ALONE,
) -> np.ndarray:
    """Q of each image by the image Q-Former of fingerprint `encoder`, as a memory map (N,32,W) float16.

    share: of several processes each computes its part; all must have returned before the rows are read.
    """
    shape = (model.preset.image_queries, model.preset.image_qformer.width)
    key = {"files": identities(paths, data), "flip": mirrored, "encoder": encoder, "precision": "float32"}
    cache = RowStore(cache_folder() / "features", key, len(paths), shape)
    if cache.done == len(paths):
        return cache.rows
    title = "query features" + (", mirrored" if mirrored else "")
    with progress(len(paths) // share[1], title) as advance:
        if model.preset.blip2:  # 257 x 1408 numbers an image: too many to keep
            look = _looker(model, paths, mirrored)
        else:
            features = cached_features(model, paths, data, mirrored, progress, share)

            def look(start: int, stop: int) -> torch.Tensor:
                return torch.from_numpy(features[start:stop]).float().to(model.device)

        @torch.inference_mode()
        def compute(start: int, stop: int) -> torch.Tensor:
            with full_precision(model.device):
                return model.query_features(model.backbone.adapted(look(start, stop)))

        cache.fill(compute, BATCH, advance, share)
    return cache.rows


def cached_names(
    memory: VisualNameMemory, rows: np.ndarray, images: Sequence[str], rule: MemoryConfig, key: str, progress: Progress = silent
) -> list[list[str]]:
    """Names of each image from its Q (N,32,W), its own memory entries left out; on disk until the memory changes.

    images: the images' file names, which memory entries may spell otherwise (`image_key`). key: tells these rows from others.
    """
    told = json.dumps([key, memory.fingerprint(), dataclasses.asdict(rule), list(map(image_key, images))]).encode()
    path = cache_folder() / "features" / f"{hashlib.sha256(told).hexdigest()[:16]}.names.json"
    if path.exists():
        return json.loads(path.read_bytes())
    names = []
    with progress(len(rows), "retrieval") as advance:
        for start in range(0, len(rows), RETRIEVED):
            part = slice(start, start + RETRIEVED)
            found = memory.retrieve(rows[part].astype("float32"), rule, images[part])
            names += [[name.name for name in row] for row in found]
            advance(len(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(names))
    return names
