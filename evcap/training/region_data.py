"""Regions to learn from, and the patch tokens of their views, computed once and kept on disk."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from evcap.datasets.collages import Collage, collage
from evcap.datasets.phrases import Region, read_class_boxes, read_phrases
from evcap.images.opening import open_image, to_tensor
from evcap.model.evcap import QueryEncoder, adapted_parts
from evcap.progress import Progress, silent
from evcap.regions.views import CANDIDATES, checked_regions, crop_views, located_views, selected_ratios, view_scores
from evcap.row_store import ALONE, RowStore, Share
from evcap.runtime import half_precision
from evcap.training.features import identities, tower_weights
from evcap.weights.wheels import cache_folder, fingerprint

BATCH = 64  # views that go through the tower together


@dataclass(frozen=True)
class RegionFile:
    """A file of regions below --data, and the folder of its images. classes: COCO's boxes, each called by its class alone."""

    file: str
    images: str
    classes: bool = False
    most: int = 0  # regions that are taken, drawn at random; 0 = all


@dataclass(frozen=True)
class Sample:
    """A region on a photo or a canvas. in_class: whether its one phrase is the name of a class and no description."""

    source: Path | Collage
    region: Region
    in_class: bool = False


def read_samples(files: Sequence[RegionFile], data: Path, collages: float, seed: int) -> list[Sample]:
    """Regions of several files, grouped by their image. collages: share of the photos that stand on a canvas with others."""
    draw = random.Random(seed)
    samples = []
    for file in files:
        read = read_class_boxes if file.classes else read_phrases
        regions = read(data / file.file, data / file.images)
        if file.most and file.most < len(regions):
            regions = [regions[number] for number in sorted(draw.sample(range(len(regions)), file.most))]
        photos = defaultdict(list)
        for region in regions:
            photos[region.path].append(region)
        groups = list(photos.values())
        draw.shuffle(groups)
        on_canvas = groups[: int(collages * len(groups))]
        while on_canvas:
            count = draw.randint(3, 6)
            taken, on_canvas = on_canvas[:count], on_canvas[count:]
            canvas, moved = collage(taken, draw)
            samples += [Sample(canvas, region, file.classes) for region in moved]
        for group in groups[int(collages * len(groups)) :]:
            samples += [Sample(region.path, region, file.classes) for region in group]
    return samples


def drawn_ratios(samples: Sequence[Sample], drawn: int, seed: int) -> np.ndarray:
    """t of the views that are kept of each sample, (N, 2 + drawn): the region's own, some at random, the whole image."""
    order = np.random.default_rng(seed).random((len(samples), len(CANDIDATES) - 1)).argsort(1)[:, :drawn]
    ends = np.zeros((len(samples), 1)), np.ones((len(samples), 1))
    return np.concatenate([ends[0], CANDIDATES[order], ends[1]], axis=1)


def drawn_views(kept: int, count: int, views: int, draw: np.random.Generator) -> np.ndarray:
    """Which of the `kept` views of `count` regions a step sees, (count,views): the first, then others, none twice; all in order
    where no more are kept."""
    if kept == views:
        return np.arange(views)[None].repeat(count, 0)
    others = 1 + draw.random((count, kept - 1)).argsort(1)[:, : views - 1]
    return np.concatenate([np.zeros((count, 1), np.int64), others], axis=1)


def hashed_ratios(samples: Sequence[Sample], views: int, task: str = "auto") -> np.ndarray:
    """t of the views that inference takes, (N,views)."""
    rows = np.zeros((len(samples), views))
    for numbers in _by_source(samples):
        source = samples[numbers[0]].source
        scores = view_scores(opened(source), _regions(samples, numbers))
        rows[numbers] = selected_ratios(scores, views, task)
    return rows


@dataclass(frozen=True)
class ViewTokens:
    """rows (U,P,C) float16: patch tokens of U crops. of (N,K): the rows of the K views of each sample. boxes (N,K,4) float32:
    where the region lies in each."""

    rows: np.ndarray
    of: np.ndarray
    boxes: np.ndarray

    def take(self, samples: Sequence[int], views: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B,V,P,C) and boxes (B,V,4) float32 of the `views` (B,V) among those kept of these samples."""
        places = np.asarray(samples)[:, None]
        tokens = self.rows[self.of[places, views]]
        return torch.from_numpy(tokens.astype(np.float32)), torch.from_numpy(self.boxes[places, views])


def cached_views(
    model: QueryEncoder,
    samples: Sequence[Sample],
    ratios: np.ndarray,
    data: Path,
    progress: Progress = silent,
    share: Share = ALONE,
) -> ViewTokens:
    """Patch tokens of views t (N,K) of samples, in the half precision of training; a crop that several share is kept once.

    share: of several processes each computes its part; all must have returned before the rows are read.
    """
    vision = model.preset.vision
    crops: dict[tuple[int, tuple[int, ...]], int] = {}
    sources: list[Path | Collage] = []
    of = np.zeros(ratios.shape, np.int64)
    boxes = np.zeros((*ratios.shape, 4), np.float32)
    for numbers in _by_source(samples):
        sources.append(samples[numbers[0]].source)
        size = samples[numbers[0]].region.size
        found, boxes[numbers] = located_views(_regions(samples, numbers), ratios[numbers], *size, vision.image_size)
        for number, row in zip(numbers, found.tolist(), strict=True):
            of[number] = [crops.setdefault((len(sources) - 1, tuple(crop)), len(crops)) for crop in row]
    wanted = list(crops)
    key = {
        "sources": [_identity(source, data) for source in sources],
        "crops": fingerprint({"crops": torch.tensor([[place, *crop] for place, crop in wanted])}, {}),
        "vision": asdict(vision),
        "weights": [tower_weights(model), fingerprint({k: v.half() for k, v in _adapted(model).items()}, {})],
        "precision": "half",
    }
    store = RowStore(cache_folder() / "features", key, len(wanted), (vision.tokens, vision.width))

    @torch.inference_mode()
    def look(start: int, stop: int) -> torch.Tensor:
        images, last, image = [], None, None
        for place, crop in wanted[start:stop]:
            image = image if place == last else opened(sources[place])
            images += crop_views(image, np.array(crop), vision.image_size)
            last = place
        pixels = to_tensor(images, vision.image_size, vision.mean, vision.std).to(model.device)
        with half_precision(model.device):
            return model.backbone(pixels)

    with progress(len(wanted) // share[1], "views", "view") as advance:
        store.fill(look, BATCH, advance, share)
    return ViewTokens(store.rows, of, boxes)


def opened(source: Path | Collage):
    """The photo or canvas, at its own size."""
    return open_image(source) if isinstance(source, Path) else source.image(open_image)


def _by_source(samples: Sequence[Sample]) -> list[list[int]]:
    groups = defaultdict(list)
    for number, sample in enumerate(samples):
        groups[sample.source].append(number)
    return list(groups.values())


def _regions(samples: Sequence[Sample], numbers: Sequence[int]) -> np.ndarray:
    return checked_regions([samples[number].region.box for number in numbers], *samples[numbers[0]].region.size)


def _adapted(model: QueryEncoder) -> dict[str, torch.Tensor]:
    return {f"{name}.{k}": v for name, part in adapted_parts(model).items() for k, v in part.state_dict().items()}


def _identity(source: Path | Collage, data: Path) -> list:
    parts = [(source, ())] if isinstance(source, Path) else source.parts
    return [[*each, list(box)] for each, (_, box) in zip(identities([path for path, _ in parts], data), parts, strict=True)]
