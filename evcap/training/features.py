"""Frozen features computed once and kept on disk: patch tokens for pretraining, query features for training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from evcap.config import MemoryConfig
from evcap.datasets.coco import CaptionedImage
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


def _weights(model: QueryEncoder) -> str:
    """What tells the frozen tower's weights from others of its kind."""
    tensors = model.backbone.identifying()
    return fingerprint(tensors, {}) if tensors else EFFICIENTNET.sha256


def _looker(model: QueryEncoder, paths: Sequence[Path], mirrored: bool) -> Callable[[int, int], torch.Tensor]:
    """A function (start, stop) -> patch tokens of these images, opened as whoever captions them opens them."""
    vision, device = model.preset.vision, model.device

    @torch.inference_mode()
    def look(start: int, stop: int) -> torch.Tensor:
        images = list(prefetched(lambda path: open_image(path, vision.opened_side), paths[start:stop], BATCH))
        pixels = to_tensor(images, vision.image_size, vision.mean, vision.std).to(device)
        return model.patch_tokens(pixels.flip(-1) if mirrored else pixels)

    return look


def _identities(records: Sequence[CaptionedImage], data: Path) -> list[tuple[str, int, int]]:
    """What tells these images from others, and from themselves once somebody has replaced them."""
    stats = [(record.path.relative_to(data), record.path.stat()) for record in records]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def cached_patches(
    model: QueryEncoder,
    records: Sequence[CaptionedImage],
    data: Path,
    mirrored: bool = False,
    progress: Progress = silent,
    share: Share = ALONE,
) -> np.ndarray:
    """Patch tokens of all images by the frozen tower as a memory map (N,P,C) float16. share: see below."""
    vision = model.preset.vision
    paths = [r.path for r in records]
    key = {
        "files": _identities(records, data),
        "flip": mirrored,
        "vision": dataclasses.asdict(vision),
        "weights": _weights(model),
        "precision": "float32",
    }
    cache = RowStore(cache_folder() / "features", key, len(paths), (vision.tokens, vision.width))
    title = "patch tokens" + (", mirrored" if mirrored else "")
    with progress(len(paths) // share[1], title) as advance:
        cache.fill(_looker(model, paths, mirrored), BATCH, advance, share)
    return cache.rows


def cached_queries(
    model: QueryEncoder,
    records: Sequence[CaptionedImage],
    data: Path,
    encoder: str,
    mirrored: bool = False,
    progress: Progress = silent,
    share: Share = ALONE,
) -> np.ndarray:
    """Q of all images by the frozen image Q-Former of fingerprint `encoder`, as a memory map (N,32,W) float16.

    share: of several processes each computes its part; all must have returned before the rows are read.
    """
    shape = (model.preset.image_queries, model.preset.image_qformer.width)
    key = {"files": _identities(records, data), "flip": mirrored, "encoder": encoder, "precision": "float32"}
    cache = RowStore(cache_folder() / "features", key, len(records), shape)
    if cache.done == len(records):
        return cache.rows
    title = "query features" + (", mirrored" if mirrored else "")
    with progress(len(records) // share[1], title) as advance:
        if model.preset.blip2:  # 257 x 1408 numbers an image: too many to keep
            look = _looker(model, [r.path for r in records], mirrored)
        else:
            patches = cached_patches(model, records, data, mirrored, progress, share)

            def look(start: int, stop: int) -> torch.Tensor:
                return torch.from_numpy(patches[start:stop]).float().to(model.device)

        @torch.inference_mode()
        def compute(start: int, stop: int) -> torch.Tensor:
            with full_precision(model.device):
                return model.query_features(look(start, stop))

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
            found = memory.search(rows[part].astype("float32"), rule.top_k, rule.sub_top_k, rule.names, exclude=images[part])
            names += [[name.name for name in row] for row in found]
            advance(len(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(names))
    return names
