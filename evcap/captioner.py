"""The captioner as users hold it: images in, captions with their retrieved names out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from evcap.config import Preset, assets_folder, fingerprinted, load_preset
from evcap.errors import EvcapError
from evcap.images.inputs import Picture, as_list, open_picture
from evcap.images.opening import to_tensor
from evcap.language.phrases import PhraseModel
from evcap.language.rerank import BeamChoice
from evcap.memory.keys import mean_keys
from evcap.memory.memory import VisualNameMemory
from evcap.memory.ranking import RetrievedName
from evcap.model.build import build_model, name_tokenizer
from evcap.model.evcap import QueryEncoder
from evcap.model.vision import VisionEncoder
from evcap.runtime import full_precision, pick_device
from evcap.weights.wheels import fingerprint


@dataclass(frozen=True)
class Caption:
    """What the captioner says of one image: the best caption, all captions best first, and the retrieved names."""

    caption: str
    captions: list[str]
    names: list[RetrievedName]


def encoder_fingerprint(model: QueryEncoder) -> str:
    """Short hash of what is trained or set on the way from pixels to memory keys: the image Q-Former, the vision settings."""
    norms = {} if model.patch_norm is None else model.patch_norm.state_dict()
    # the names under which tensors were hashed when the first memories were made
    tensors = {k.replace("query_norm.", "door."): v.to(torch.float16) for k, v in model.image_qformer.state_dict().items()}
    tensors.update({f"door.{k}": v.to(torch.float16) for k, v in norms.items()})
    if isinstance(model.backbone, VisionEncoder):
        tensors.update({f"tower.{k}": v.to(torch.float16) for k, v in model.backbone.identifying().items()})
    return fingerprint(tensors, fingerprinted(model.preset.vision))


class Captioner:
    """A model with a memory. `memory` may be assigned or edited at any time; captions follow at once, without training.

    So may `phrases`, which helps to choose among the beams; None = wording does not count, whatever the preset says.
    """

    def __init__(self, model: QueryEncoder, memory: VisualNameMemory | None = None):
        self.model = model.eval()
        self.preset: Preset = model.preset
        if self.preset.decoding.itc_weight and model.text_projection is None:
            raise EvcapError(f"preset '{self.preset.name}': decoding.itc_weight needs the text projection, set text_width")
        self.encoder_fingerprint = encoder_fingerprint(model)
        if memory is None:
            memory = VisualNameMemory.empty(self.preset.image_qformer.width, self.encoder_fingerprint)
        self.memory = memory
        self.phrases: PhraseModel | None = None
        self._tokenize = name_tokenizer()

    @classmethod
    def load(
        cls,
        preset: str | Path = "embedded",
        memory: str | Path | VisualNameMemory | None = None,
        trained: str | Path | None = None,
        device: str | None = None,
        merged: bool = True,
    ) -> Captioner:
        """Open a preset's trained tensors and its memory, or others in their place.

        merged: False keeps adapters apart from the language model's weights, which then can answer without them, too.
        device: "cpu", "cuda", "cuda:1"; by default a CUDA GPU where there is one.
        The preset's phrase model belongs to its own trained tensors; `trained` comes without one.
        Raises EvcapError with one line when a part is missing, damaged or made for another model.
        """
        settings = load_preset(preset)
        if settings.assets is None and (trained is None or memory is None):
            raise EvcapError(f"preset '{settings.name}' ships no trained tensors; name a folder under 'assets' in its YAML")
        assets = assets_folder(preset, settings)
        model = build_model(settings, trained or assets / "trained.safetensors", device=pick_device(device))
        if merged:
            model.language.merge()
        captioner = cls(model)
        if settings.decoding.phrase_weight and trained is None:
            captioner.phrases = PhraseModel.open(assets / "phrases.safetensors", captioner.encoder_fingerprint)
        if isinstance(memory, VisualNameMemory):
            if memory.encoder != captioner.encoder_fingerprint:
                raise EvcapError("the memory was made by another encoder; build it again with this preset")
            captioner.memory = memory
        else:
            captioner.memory = VisualNameMemory.open(memory or assets / "memory", captioner.encoder_fingerprint)
        return captioner

    def caption(
        self,
        images: Picture | Iterable[Picture],
        num_captions: int = 1,
        beams: int | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        batch_size: int = 16,
    ) -> Caption | list[Caption]:
        """Caption one image (-> Caption) or several, also from a generator (-> list in the same order).

        An image is a path, a PIL image, a uint8 array (H,W,3) in RGB or (H,W) in grey, the bytes of an image file, or a
        file opened in binary mode.
        beams, min_length and max_length (in tokens) default to the preset's; num_captions <= beams or beams grow.
        Raises evcap.images.opening.ImageError for a file that is no readable image, EvcapError for what can be none.
        """
        pictures, single = as_list(images)
        queries = self.query_features(pictures, batch_size)
        captions = self.caption_features(queries, num_captions, beams, min_length, max_length, batch_size)
        return captions[0] if single else captions

    @torch.inference_mode()
    def caption_patches(self, patches: torch.Tensor, grid: tuple[int, int] | None = None, **options) -> list[Caption]:
        """Caption from patch tokens (N,P,C), those of the tower or any made of them: their count and grid are free.

        grid: their rows and columns, if not those of the preset's own image size. options: as `caption_features` takes them.
        """
        with full_precision(self.device):
            queries = self.model.query_features(patches.to(self.device), grid).cpu()
        return self.caption_features(queries, **options)

    @torch.inference_mode()
    def caption_features(
        self,
        queries: torch.Tensor,
        num_captions: int = 1,
        beams: int | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        batch_size: int = 16,
    ) -> list[Caption]:
        """Caption from Q (N,32,W) float32, as `query_features` gives it: the memory may have changed since."""
        given = {"beams": beams, "min_length": min_length, "max_length": max_length}
        decoding = dataclasses.replace(self.preset.decoding, **{k: v for k, v in given.items() if v is not None})
        if min(decoding.beams, num_captions, decoding.max_length) < 1 or decoding.min_length > decoding.max_length:
            raise EvcapError("beams, num_captions and max_length must be at least 1, min_length at most max_length")
        choosing = bool(decoding.itc_weight or (decoding.phrase_weight and self.phrases is not None))
        found = max(decoding.beams, num_captions) if choosing else num_captions
        results = []
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            names = self.retrieve(batch)
            plain = [[n.name for n in row] for row in names]
            retrieved = self._tokenize(plain).to(self.device)
            hypotheses = self.model.generate(batch.to(self.device), retrieved, found, decoding)
            if choosing:
                hypotheses = self._choice(batch, hypotheses, plain, decoding, self.phrases)
            captions = [[h.text for h in row[:num_captions]] for row in hypotheses]
            results += [Caption(texts[0], texts, row) for texts, row in zip(captions, names, strict=True)]
        return results

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def _choice(self) -> BeamChoice:
        return BeamChoice(self.model.text_projection)

    def names(self, images: Picture | Iterable[Picture], batch_size: int = 16) -> list[list[RetrievedName]]:
        """Names the memory gives for each image, best first; of one image a list of one."""
        return self.retrieve(self.query_features(images, batch_size))

    def retrieve(self, queries: torch.Tensor) -> list[list[RetrievedName]]:
        """Q (N,32,W) -> names by the preset's retrieval rule."""
        rule = self.preset.memory
        return self.memory.search(queries, rule.top_k, rule.sub_top_k, rule.names)

    @torch.inference_mode()
    def query_features(self, images: Picture | Iterable[Picture], batch_size: int = 16) -> torch.Tensor:
        """Images -> Q (N,32,W) float32, on the CPU whatever the model's device."""
        waiting, rows = iter(as_list(images)[0]), []
        with full_precision(self.device):
            while batch := list(islice(waiting, batch_size)):
                rows.append(self.model.query_features(self.patch_tokens(batch)).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.preset.image_queries, self.preset.image_qformer.width)

    @torch.inference_mode()
    def patch_tokens(self, images: Sequence[Picture]) -> torch.Tensor:
        """Images -> patch tokens (N,P,C) float32 of the frozen tower."""
        return self.model.patch_tokens(self.pixels(images).to(self.device))

    def pixels(self, images: Sequence[Picture], mirrored: Sequence[int] = ()) -> torch.Tensor:
        """Images -> (N,3,S,S) float32, as the tower wants them; those for which `mirrored` is 1 are mirrored."""
        vision = self.preset.vision
        # far larger images are shrunk while they are opened, as on the command line
        opened = [open_picture(image, 2 * vision.image_size) for image in images]
        pixels = to_tensor(opened, vision.image_size, vision.mean, vision.std)
        flip = torch.tensor(mirrored, dtype=torch.bool)
        if flip.any():
            pixels[flip] = pixels[flip].flip(-1)
        return pixels

    def keys(self, images: Picture | Iterable[Picture], batch_size: int = 16) -> np.ndarray:
        """Images -> memory keys (N,W) float32, see `mean_keys`."""
        return mean_keys(self.query_features(images, batch_size)).numpy()

    @torch.inference_mode()
    def attention(self, image: Picture) -> np.ndarray:
        """Where each of the 32 queries looks, (32,rows,columns) float32; each map sums to 1."""
        patches = self.model.normed(self.patch_tokens([image]))
        rows, columns = self.model.backbone.grid(*[self.preset.vision.image_size] * 2)
        maps = self.model.image_qformer.attention_map(patches)[0, :, self.model.backbone.prefix :]
        return maps.view(-1, rows, columns).float().cpu().numpy()
