"""Frozen features computed once and kept on disk: patch tokens for pretraining, query features for training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from evcap.captioner import EVCap
from evcap.datasets import CaptionedImage
from evcap.images import open_image, to_tensor
from evcap.results import write_whole
from evcap.text import SentenceEmbedder
from evcap.weights import EFFICIENTNET, MINILM_WEIGHTS, cache_folder


class FeatureCache:
    """Rows of float16 features in one flat file, with the list of items it belongs to; resumes after a kill.

    `rows` is a memory map of shape (items, *shape). Keyed by `key`: other items, settings or weights make another file.
    """

    def __init__(self, folder: str | Path, key: dict, items: int, shape: tuple[int, ...]):
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.f16"
        self._progress = folder / f"{name}.done"
        mode = "r+" if self.path.exists() else "w+"
        self.rows = np.memmap(self.path, np.float16, mode, shape=(items, *shape))
        # without its rows, deleted to free the disk, the progress means nothing
        self.done = int(self._progress.read_text()) if mode == "r+" and self._progress.exists() else 0

    def fill(self, compute: Callable[[int, int], torch.Tensor], batch: int, advance: Callable[[int], None]) -> None:
        """Compute what is missing: `compute(start, stop)` gives rows (stop-start, *shape); `advance(n)` feeds a bar."""
        advance(self.done)
        while self.done < len(self.rows):
            stop = min(self.done + batch, len(self.rows))
            self.rows[self.done : stop] = compute(self.done, stop).to(torch.float16).cpu().numpy()
            self.rows.flush()
            write_whole(self._progress, str(stop))  # killed half way, it would be an empty file
            advance(stop - self.done)
            self.done = stop


def cached_patches(
    model: EVCap, records: Sequence[CaptionedImage], data: Path, mirrored: bool = False, quiet: bool = False
) -> np.ndarray:
    """Patch tokens of all pictures by the frozen tower, in bfloat16, as a memory map (N,P,C) float16."""
    vision = model.preset.vision
    paths = [r.path for r in records]
    key = {
        "files": [str(p.relative_to(data)) for p in paths],
        "flip": mirrored,
        "vision": dataclasses.asdict(vision),
        "weights": EFFICIENTNET.sha256,
    }
    cache = FeatureCache(cache_folder() / "features", key, len(paths), (vision.tokens, vision.width))

    @torch.inference_mode()
    def compute(start: int, stop: int) -> torch.Tensor:
        images = list(pool.map(open_image, paths[start:stop]))
        pixels = to_tensor(images, vision.image_size, vision.mean, vision.std)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.backbone(pixels.flip(-1) if mirrored else pixels)

    title = "patch tokens" + (", mirrored" if mirrored else "")
    with ThreadPoolExecutor(2) as pool, tqdm(total=len(paths), desc=title, unit="img", disable=quiet) as bar:
        cache.fill(compute, 64, bar.update)
    return cache.rows


def cached_queries(
    model: EVCap,
    records: Sequence[CaptionedImage],
    data: Path,
    encoder: str,
    mirrored: bool = False,
    quiet: bool = False,
) -> np.ndarray:
    """Q of all pictures by the frozen image Q-Former of fingerprint `encoder`, as a memory map (N,32,W) float16."""
    shape = (model.preset.image_queries, model.preset.image_qformer.width)
    key = {"files": [str(r.path.relative_to(data)) for r in records], "flip": mirrored, "encoder": encoder}
    cache = FeatureCache(cache_folder() / "features", key, len(records), shape)
    if cache.done == len(records):
        return cache.rows
    patches = cached_patches(model, records, data, mirrored, quiet)

    @torch.inference_mode()
    def compute(start: int, stop: int) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):  # captioning itself is float32 throughout
            return model.query_features(torch.from_numpy(patches[start:stop]).float())

    title = "query features" + (", mirrored" if mirrored else "")
    with tqdm(total=len(records), desc=title, unit="img", disable=quiet) as bar:
        cache.fill(compute, 64, bar.update)
    return cache.rows


def cached_sentences(texts: Sequence[str], quiet: bool = False) -> torch.Tensor:
    """Sentence embeddings (N,384) float32 of the frozen embedder, kept on disk."""
    key = {"texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(), "weights": MINILM_WEIGHTS.sha256}
    cache = FeatureCache(cache_folder() / "features", key, len(texts), (384,))
    if cache.done < len(texts):
        embed = SentenceEmbedder()
        with tqdm(total=len(texts), desc="sentences", unit="text", disable=quiet) as bar:
            cache.fill(lambda start, stop: embed(texts[start:stop]), 256, bar.update)
    return torch.from_numpy(cache.rows[:].astype(np.float32))
