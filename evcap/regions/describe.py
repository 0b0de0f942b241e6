"""Regions of an image described: views -> patch tokens -> Q -> names, tags, class -> caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from evcap.config import DecodingConfig, Preset, assets_folder
from evcap.datasets.coco import read_name_list
from evcap.errors import EvcapError
from evcap.images.inputs import Picture, open_picture
from evcap.images.opening import to_tensor
from evcap.images.orientation import stored_orientation, stored_size, to_upright
from evcap.language.rerank import BeamChoice
from evcap.memory.ranking import RetrievedName
from evcap.model.build import build_language
from evcap.model.evcap import EVCap
from evcap.regions.control_words import control_words
from evcap.regions.heads import RegionTextHead, likeliest_tags
from evcap.regions.model import RegionModel, open_regions
from evcap.regions.texts import TextFeatures
from evcap.regions.views import checked_regions, crop_views, located_views, selected_ratios, view_scores
from evcap.runtime import full_precision

if TYPE_CHECKING:
    from evcap.captioner import Captioner

TOWER = 32  # views that go through the image tower together


@dataclass(frozen=True)
class RegionDescription:
    """What is said of one region.

    box: (x1,y1,x2,y2) in pixels, cut to the image. captions: best first. names: of the memory, best first. tags: of the
    vocabulary, those that are above the threshold, most probable first. class_name: of the list of classes the one that fits
    best, "" without a list. views: t of the views that were looked at, 0 the region alone, 1 the whole image.
    """

    box: tuple[float, float, float, float]
    captions: list[str]
    names: list[RetrievedName]
    tags: list[str]
    class_name: str
    views: list[float]

    @property
    def caption(self) -> str:
        """The best caption."""
        return self.captions[0]


class Vocabulary:
    """Texts that a head is asked for, with their features, which are computed once."""

    def __init__(self, texts: Sequence[str], features: TextFeatures):
        self.texts = list(texts)
        self.features = features(self.texts)


class RegionDescriber:
    """Describes regions with the memory of a captioner, as it is at the moment."""

    def __init__(self, captioner: Captioner, model: RegionModel, tags: Sequence[str] = (), classes: Sequence[str] = ()):
        """tags, classes: texts, any; no words, no class where there are none."""
        preset = captioner.preset
        self.captioner, self.model, self.config = captioner, model.eval(), model.config
        self.texts = TextFeatures(model.config, model.text_tower, preset.text_tower)
        self.set_tags(tags)
        self.set_classes(classes)
        self._choice = _RegionChoice(model.region_text_head, self.texts)

    @classmethod
    def open(cls, captioner: Captioner, name: str | Path, trained: str | Path | None = None) -> RegionDescriber:
        """The describer of a preset that was opened as `captioner`. name: what the preset was read from.

        trained: tensors in place of the preset's regions.safetensors. Raises EvcapError for a preset without regions, and for
        files that are missing or do not fit.
        """
        preset, spine = captioner.preset, captioner.model
        check_regions(preset)
        if isinstance(spine, EVCap):
            language = spine.language
        else:
            language = build_language(preset.language, preset.language.precision, spine.device)
        folder = assets_folder(name, preset)
        model = open_regions(spine, language, trained or folder / "regions.safetensors")
        return cls(captioner, model, _listed(folder / "tags.txt"), _listed(folder / "classes.txt"))

    def set_tags(self, tags: Sequence[str]) -> None:
        self.tags = Vocabulary(tags, self.texts)

    def set_classes(self, classes: Sequence[str]) -> None:
        self.classes = Vocabulary(classes, self.texts)

    def describe_stored(self, picture: Picture, boxes: Sequence[Sequence[float]], **options) -> list[RegionDescription]:
        """As `describe`, of an image that still has to be opened, boxes in its pixels as stored: cameras store images turned.

        The boxes of what is returned are those of the upright image. Raises ImageError, too.
        """
        orientation, image = stored_orientation(picture), open_picture(picture)
        checked_regions(boxes, *stored_size(image.size, orientation))
        return self.describe(image, [to_upright(box, orientation, image.size) for box in boxes], **options)

    def describe(
        self,
        image: Image.Image,
        boxes: Sequence[Sequence[float]],
        task: str = "auto",
        words: Sequence[str] = (),
        num_captions: int = 1,
        decoding: DecodingConfig | None = None,
        batch_size: int = 32,
    ) -> list[RegionDescription]:
        """Regions of an RGB image, boxes (x1,y1,x2,y2) in its pixels -> what is said of each, in their order.

        task: see `selected_ratios`. words: the user's own control words, which captions should use. Raises EvcapError with
        one line for the first box that cannot be described, for words that are one text, and for numbers below 1.
        """
        if isinstance(words, str):
            raise EvcapError(f"words is the text '{words[:40]}': give a list, as in ['red', 'shirt']")
        if min(num_captions, batch_size) < 1:
            raise EvcapError("num_captions and batch_size must be at least 1")
        regions = checked_regions(boxes, *image.size)
        if not len(regions):
            return []
        ratios = selected_ratios(view_scores(image, regions), self.config.views, task)
        described: list[RegionDescription] = []
        for part, queries in self.query_features(image, regions, ratios, batch_size):
            said = self.tell(queries, words, num_captions, decoding or self.config.decoding)
            for box, row, t in zip(regions[part].tolist(), said, ratios[part].tolist(), strict=True):
                described.append(RegionDescription(tuple(box), *row, t))
        return described

    @torch.inference_mode()
    def query_features(
        self, image: Image.Image, regions: np.ndarray, ratios: np.ndarray, batch_size: int = 32
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Q (R,32,W) float32 of parts of the regions (N,4), looked at in views t (N,V): (which part, its Q).

        Every crop goes through the tower once, however many regions share it, as all do the whole image.
        """
        size = self.model.size
        crops, inside = located_views(regions, ratios, *image.size, size)
        unique, of = np.unique(crops.reshape(-1, 4), axis=0, return_inverse=True)
        of = of.reshape(crops.shape[:2])
        last = np.zeros(len(unique), np.int64)  # the region that each crop is needed for last
        np.maximum.at(last, of, np.arange(len(regions))[:, None])
        shared: dict[int, torch.Tensor] = {}
        for start in range(0, len(regions), batch_size):
            part = slice(start, start + batch_size)
            wanted = sorted(set(of[part].reshape(-1).tolist()) - shared.keys())
            tokens = shared | dict(zip(wanted, self._tokens(image, unique[wanted]), strict=True))
            stacked = torch.stack([torch.stack([tokens[view] for view in row]) for row in of[part].tolist()])
            shared = {view: rows for view, rows in tokens.items() if last[view] >= part.stop}
            boxes = torch.from_numpy(inside[part]).to(self.model.device)
            with full_precision(self.model.device):
                queries = self.model.queries(stacked, boxes).float()
            yield part, queries

    def _tokens(self, image: Image.Image, crops: np.ndarray) -> list[torch.Tensor]:
        """Patch tokens (P,C) of each crop (n,4)."""
        vision, rows = self.captioner.preset.vision, []
        for start in range(0, len(crops), TOWER):
            views = crop_views(image, crops[start : start + TOWER], vision.image_size)
            pixels = to_tensor(views, vision.image_size, vision.mean, vision.std).to(self.model.device)
            rows += self.captioner.model.patch_tokens(pixels).unbind()
        return rows

    @torch.inference_mode()
    def certainty(self, image: Image.Image, boxes: Sequence[Sequence[float]], batch_size: int = 32) -> np.ndarray:
        """How sure it is that there is something in each of N boxes of an RGB image, (N,) float32, comparable among them.

        The best region-text score of the classes, without them the highest probability of a tag. Boxes are looked at alone and
        in the whole image, which goes through the tower once: each costs as little as an image. Raises EvcapError without
        classes and tags, and for a box that cannot be described.
        """
        if not (self.classes.texts or self.tags.texts):
            raise EvcapError("windows are chosen by classes or tags, and this describer has none: give it some")
        regions = checked_regions(boxes, *image.size)
        ratios = np.tile([0.0, *[1.0] * (self.config.views - 1)], (len(regions), 1))
        best = []
        for _, queries in self.query_features(image, regions, ratios, batch_size):
            if self.classes.texts:
                best.append(self.scores(queries, self.classes.features).amax(1))
            else:
                best.append(self.model.tag_head(queries, self.tags.features.to(queries.device)).sigmoid().amax(1).cpu())
        return torch.cat(best).numpy()

    @torch.inference_mode()
    def tell(
        self, queries: torch.Tensor, words: Sequence[str], num_captions: int, decoding: DecodingConfig
    ) -> list[tuple[list[str], list[RetrievedName], list[str], str]]:
        """Q (R,32,W) -> captions, names, tags and class of each region."""
        tags, classes = self.tags_of(queries), self.classes_of(queries)
        found = self.captioner.retrieve(queries.cpu())
        names = [[name.name for name in row] for row in found]
        as_words = names if self.config.names_as_words else [[]] * len(names)
        controls = [control_words([*more, *row], words) for more, row in zip(as_words, tags, strict=True)]
        choosing = bool(decoding.itc_weight)
        count = max(decoding.beams, num_captions) if choosing else num_captions
        hypotheses = self.model.captions(queries, names, controls, count, decoding)
        if choosing:
            hypotheses = self._choice(queries, hypotheses, names, decoding)
        captions = [[h.text for h in row[:num_captions]] for row in hypotheses]
        return list(zip(captions, found, tags, classes, strict=True))

    def tags_of(self, queries: torch.Tensor) -> list[list[str]]:
        """Tags above the threshold of each region, from Q (R,32,W), most probable first."""
        if not self.tags.texts:
            return [[] for _ in queries]
        logits = self.model.tag_head(queries, self.tags.features.to(queries.device)).cpu()
        return likeliest_tags(logits, self.tags.texts, self.config.tag_threshold)

    def classes_of(self, queries: torch.Tensor) -> list[str]:
        """The class of each region that fits best, from Q (R,32,W)."""
        if not self.classes.texts:
            return ["" for _ in queries]
        best = self.scores(queries, self.classes.features).argmax(1)
        return [self.classes.texts[number] for number in best.tolist()]

    @torch.inference_mode()
    def scores(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Raw region-text scores (R,T) on the CPU of Q (R,32,W) with the features of texts (T,E)."""
        return self.model.region_text_head(queries, features.to(queries.device)).cpu()


class _RegionChoice(BeamChoice):
    """Chooses among the beams by the region-text score, where photos have the contrast of pretraining."""

    def __init__(self, head: RegionTextHead, texts: TextFeatures):
        super().__init__(None)
        self._head, self._texts = head, texts

    def similarity(self, queries: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        features = self._texts([text for row in texts for text in row]).to(queries.device)
        rows = features.split([len(row) for row in texts])
        return [self._head(region[None], row)[0].cpu() for region, row in zip(queries, rows, strict=True)]


def check_regions(preset: Preset) -> None:
    """Raises EvcapError for a preset that says nothing of regions."""
    if preset.regions is None:
        raise EvcapError(f"preset '{preset.name}' says nothing of regions: its YAML has no `regions`")


def _listed(path: Path) -> list[str]:
    return [row[0] for row in read_name_list(path)] if path.exists() else []
