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
from evcap.language.sentences import SentenceEmbedder
from evcap.memory.memory import VisualNameMemory
from evcap.memory.ranking import image_key
from evcap.model.evcap import QueryEncoder
from evcap.prefetch import prefetched
from evcap.progress import tqdm
from evcap.runtime import full_precision
from evcap.weights.wheels import EFFICIENTNET, MINILM_WEIGHTS, cache_folder

BATCH = 64  # images that go through the frozen parts together
RETRIEVED = 256  # images of one search
Share = tuple[int, int]  # (this process, number of processes): each computes its share of the batches
ALONE: Share = (0, 1)


class FeatureCache:
    """Rows of float16 features in one flat file, with a mark for each row that is done; resumes after a kill.

    `rows` is a memory map of shape (items, *shape), shared by all processes of a machine. Keyed by `key`: other items,
    settings or weights make another file.
    """

    def __init__(self, folder: str | Path, key: dict, items: int, shape: tuple[int, ...]):
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.f16"
        known = self.path.exists()
        self.rows = _mapped(self.path, np.float16, (items, *shape))
        self._marks = _mapped(folder / f"{name}.rows", np.uint8, (items,))
        if not known:  # without its rows, deleted to free the disk, the progress means nothing
            self._marks[:] = 0

    @property
    def done(self) -> int:
        """How many rows are there."""
        return int(np.count_nonzero(self._marks))

    def fill(
        self, compute: Callable[[int, int], torch.Tensor], batch: int, advance: Callable[[int], None], share: Share = ALONE
    ) -> None:
        """Compute what is missing of this process's share: `compute(start, stop)` gives rows (stop-start, *shape).

        advance: feeds a bar with the number of rows, those done before included.
        """
        todo = set(self.missing(batch, share))
        for start, stop in self._batches(batch, share):
            if (start, stop) in todo:
                self.rows[start:stop] = compute(start, stop).to(torch.float16).cpu().numpy()
                self.rows.flush()
                self._marks[start:stop] = 1  # after the rows: a killed process leaves no mark without its row
                self._marks.flush()
            advance(stop - start)

    def missing(self, batch: int, share: Share = ALONE) -> list[tuple[int, int]]:
        """The batches (start, stop) that `fill` will compute, in order; all but the last are `batch` long."""
        return [(start, stop) for start, stop in self._batches(batch, share) if not self._marks[start:stop].all()]

    def _batches(self, batch: int, share: Share) -> list[tuple[int, int]]:
        starts = range(share[0] * batch, len(self.rows), share[1] * batch)
        return [(start, min(start + batch, len(self.rows))) for start in starts]


def _mapped(path: Path, dtype, shape: tuple[int, ...]) -> np.memmap:
    """The array in a file, zeros where it was not written yet. Safe when several processes create the file at once."""
    with path.open("ab") as file:
        file.truncate(max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
    return np.memmap(path, dtype, "r+", shape=shape)


def _looker(model: QueryEncoder, paths: Sequence[Path], mirrored: bool) -> Callable[[int, int], torch.Tensor]:
    """A function (start, stop) -> patch tokens of these images, opened as whoever captions them opens them."""
    vision, device = model.preset.vision, model.device

    @torch.inference_mode()
    def look(start: int, stop: int) -> torch.Tensor:
        images = list(prefetched(lambda path: open_image(path, 2 * vision.image_size), paths[start:stop], BATCH))
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
    quiet: bool = False,
    share: Share = ALONE,
) -> np.ndarray:
    """Patch tokens of all images by the frozen tower as a memory map (N,P,C) float16. share: see below."""
    vision = model.preset.vision
    paths = [r.path for r in records]
    key = {
        "files": _identities(records, data),
        "flip": mirrored,
        "vision": dataclasses.asdict(vision),
        "weights": EFFICIENTNET.sha256,
        "precision": "float32",
    }
    cache = FeatureCache(cache_folder() / "features", key, len(paths), (vision.tokens, vision.width))
    title = "patch tokens" + (", mirrored" if mirrored else "")
    with tqdm(total=len(paths) // share[1], desc=title, unit="img", disable=quiet) as bar:
        cache.fill(_looker(model, paths, mirrored), BATCH, bar.update, share)
    return cache.rows


def cached_queries(
    model: QueryEncoder,
    records: Sequence[CaptionedImage],
    data: Path,
    encoder: str,
    mirrored: bool = False,
    quiet: bool = False,
    share: Share = ALONE,
) -> np.ndarray:
    """Q of all images by the frozen image Q-Former of fingerprint `encoder`, as a memory map (N,32,W) float16.

    share: of several processes each computes its part; all must have returned before the rows are read.
    """
    shape = (model.preset.image_queries, model.preset.image_qformer.width)
    key = {"files": _identities(records, data), "flip": mirrored, "encoder": encoder, "precision": "float32"}
    cache = FeatureCache(cache_folder() / "features", key, len(records), shape)
    if cache.done == len(records):
        return cache.rows
    title = "query features" + (", mirrored" if mirrored else "")
    with tqdm(total=len(records) // share[1], desc=title, unit="img", disable=quiet) as bar:
        if model.preset.blip2:  # 257 x 1408 numbers an image: too many to keep
            look = _looker(model, [r.path for r in records], mirrored)
        else:
            patches = cached_patches(model, records, data, mirrored, quiet, share)

            def look(start: int, stop: int) -> torch.Tensor:
                return torch.from_numpy(patches[start:stop]).float().to(model.device)

        @torch.inference_mode()
        def compute(start: int, stop: int) -> torch.Tensor:
            with full_precision(model.device):
                return model.query_features(look(start, stop))

        cache.fill(compute, BATCH, bar.update, share)
    return cache.rows


def cached_names(
    memory: VisualNameMemory, rows: np.ndarray, images: Sequence[str], rule: MemoryConfig, key: str, quiet: bool = False
) -> list[list[str]]:
    """Names of each image from its Q (N,32,W), its own memory entries left out; on disk until the memory changes.

    images: the images' file names, which memory entries may spell otherwise (`image_key`). key: tells these rows from others.
    """
    told = json.dumps([key, memory.fingerprint(), dataclasses.asdict(rule), list(map(image_key, images))]).encode()
    path = cache_folder() / "features" / f"{hashlib.sha256(told).hexdigest()[:16]}.names.json"
    if path.exists():
        return json.loads(path.read_bytes())
    names = []
    for start in tqdm(range(0, len(rows), RETRIEVED), desc="retrieval", unit="batch", disable=quiet):
        part = slice(start, start + RETRIEVED)
        found = memory.search(rows[part].astype("float32"), rule.top_k, rule.sub_top_k, rule.names, exclude=images[part])
        names += [[name.name for name in row] for row in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(names))
    return names


def cached_sentences(texts: Sequence[str], quiet: bool = False) -> torch.Tensor:
    """Sentence embeddings (N,384) float32 of the frozen embedder, kept on disk."""
    key = {"texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(), "weights": MINILM_WEIGHTS.sha256}
    cache = FeatureCache(cache_folder() / "features", key, len(texts), (384,))
    if cache.done < len(texts):
        embed = SentenceEmbedder()
        with tqdm(total=len(texts), desc="sentences", unit="text", disable=quiet) as bar:
            cache.fill(lambda start, stop: embed(texts[start:stop]), 256, bar.update)
    return torch.from_numpy(cache.rows[:].astype(np.float32))
