"""The captioner as users hold it: images in, captions with their retrieved names out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from evcap.config import GeneratorConfig, Preset, assets_folder, load_preset
from evcap.errors import EvcapError
from evcap.generators.evcap import EvcapGenerator
from evcap.generators.generator import Generator, Seen, Unanswered, at_most
from evcap.generators.opening import LaterGenerator
from evcap.generators.options import begins_empty, check_decoding, check_generator, chosen, decoding_of, encoder_tensors
from evcap.images.inputs import Picture, as_list, open_picture
from evcap.images.opening import to_tensor
from evcap.language.phrases import PhraseModel
from evcap.memory.keys import mean_keys
from evcap.memory.memory import VisualNameMemory
from evcap.memory.ranking import RetrievedName
from evcap.model.build import build_encoder, build_model
from evcap.model.evcap import EVCap, QueryEncoder
from evcap.model.fingerprint import encoder_fingerprint
from evcap.runtime import full_precision, pick_device

if TYPE_CHECKING:
    from evcap.regions.describe import RegionDescriber, RegionDescription


@dataclass(frozen=True)
class Caption:
    """What the captioner says of one image: the best caption, all captions best first, and the retrieved names."""

    caption: str
    captions: list[str]
    names: list[RetrievedName]


class Captioner:
    """A model with a memory. `memory` may be assigned or edited at any time; captions follow at once, without training.

    generator: who writes; by default the model's own language model, if it has one. config: what it was opened from.
    """

    def __init__(
        self,
        model: QueryEncoder,
        memory: VisualNameMemory | None = None,
        generator: Generator | None = None,
        config: GeneratorConfig | None = None,
    ):
        self.model = model.eval()
        self.preset: Preset = model.preset
        self._opened_from: str | Path = model.preset.name
        self.generator_config = config or GeneratorConfig()
        if generator is None and isinstance(model, EVCap):
            generator = EvcapGenerator(model)
        self.generator: Generator | None = generator
        if self.preset.decoding.itc_weight and model.text_projection is None:
            raise EvcapError(f"preset '{self.preset.name}': decoding.itc_weight needs the text projection, set text_width")
        self.encoder_fingerprint = encoder_fingerprint(model)
        if memory is None:
            memory = VisualNameMemory.empty(self.preset.image_qformer.width, self.encoder_fingerprint)
        self.memory = memory

    @classmethod
    def load(
        cls,
        preset: str | Path = "embedded",
        memory: str | Path | VisualNameMemory | None = None,
        trained: str | Path | None = None,
        device: str | None = None,
        merged: bool = True,
        generator: str | GeneratorConfig | None = None,
    ) -> Captioner:
        """Open a preset's trained tensors and its memory, or others in their place.

        merged: False keeps adapters apart from the language model's weights, which then can answer without them, too.
        device: "cpu", "cuda", "cuda:1"; by default a CUDA GPU where there is one.
        generator: who writes, in place of the preset's: as `evcap.generators.options.chosen` takes it. One that is a model
        beside evcap's is opened at the first caption: names, keys and features need none. A preset of BLIP-2 needs no trained
        tensors then, and without a memory of its own it begins with an empty one.
        The preset's phrase model belongs to its own trained tensors; `trained` comes without one.
        Raises EvcapError with one line when a part is missing, damaged or made for another model.
        """
        settings = load_preset(preset)
        config = chosen(settings, generator)
        check_generator(config, settings)
        if config.kind == "evcap":
            if settings.assets is None and (trained is None or memory is None):
                raise EvcapError(f"preset '{settings.name}' ships no trained tensors; name a folder under 'assets' in its YAML")
            captioner = cls._with_language_model(preset, settings, trained, device, merged)
        else:
            place = pick_device(device)
            model = build_encoder(settings, encoder_tensors(preset, settings, trained), place)
            captioner = cls(model, generator=LaterGenerator(config, settings, place), config=config)
        captioner._opened_from = preset
        own = assets_folder(preset, settings) / "memory"
        if isinstance(memory, VisualNameMemory):
            if memory.encoder != captioner.encoder_fingerprint:
                raise EvcapError("the memory was made by another encoder; build it again with this preset")
            captioner.memory = memory
        elif memory is not None or not begins_empty(settings, config, own):
            captioner.memory = VisualNameMemory.open(memory or own, captioner.encoder_fingerprint)
        return captioner

    @classmethod
    def _with_language_model(
        cls, preset: str | Path, settings: Preset, trained: str | Path | None, device: str | None, merged: bool
    ) -> Captioner:
        assets = assets_folder(preset, settings)
        model = build_model(settings, trained or assets / "trained.safetensors", device=pick_device(device))
        if merged:
            model.language.merge()
        captioner = cls(model)
        if settings.decoding.phrase_weight and trained is None:
            captioner.phrases = PhraseModel.open(assets / "phrases.safetensors", captioner.encoder_fingerprint)
        return captioner

    @property
    def phrases(self) -> PhraseModel | None:
        """What helps EVCap's own generator to choose among the beams; may be assigned at any time. None = wording does not
        count, whatever the preset says."""
        return getattr(self.generator, "phrases", None)

    @phrases.setter
    def phrases(self, phrases: PhraseModel | None) -> None:
        if not isinstance(self.generator, EvcapGenerator):
            raise EvcapError("a phrase model chooses among the beams of EVCap's own generator only")
        self.generator.phrases = phrases

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
        ways = (num_captions, beams, min_length, max_length, batch_size)
        if not self.side:
            captions = self.caption_features(self.query_features(pictures, batch_size), *ways)
            return captions[0] if single else captions
        waiting, replies = iter(pictures), []
        while batch := [open_picture(picture, self.image_side) for picture in islice(waiting, batch_size)]:
            replies += self._replies(self.query_features(batch, batch_size), *ways, batch)
        captions = _all_answered(replies)
        return captions[0] if single else captions

    @torch.inference_mode()
    def caption_patches(self, patches: torch.Tensor, grid: tuple[int, int] | None = None, **options) -> list[Caption]:
        """Caption from patch tokens (N,P,C), those of the tower or any made of them: their count and grid are free.

        grid: their rows and columns, if not those of the preset's own image size. options: as `caption_features` takes them.
        """
        with full_precision(self.device):
            queries = self.model.query_features(patches.to(self.device), grid).cpu()
        return self.caption_features(queries, **options)

    def regions(self, image: Picture, boxes: Sequence[Sequence[float]], **options) -> list[RegionDescription]:
        """What is in boxes (x1,y1,x2,y2), in pixels of an image as stored; as `RegionDescriber.describe_stored`."""
        return self.region_describer.describe_stored(image, boxes, **options)

    @cached_property
    def region_describer(self) -> RegionDescriber:
        from evcap.regions.describe import RegionDescriber  # what photos do not need

        return RegionDescriber.open(self, self._opened_from)

    def caption_features(
        self,
        queries: torch.Tensor,
        num_captions: int = 1,
        beams: int | None = None,
        min_length: int | None = None,
        max_length: int | None = None,
        batch_size: int = 16,
        images: Sequence[Image.Image] | None = None,
    ) -> list[Caption]:
        """Caption from Q (N,32,W) float32, as `query_features` gives it: the memory may have changed since.

        images: the N images, RGB, for a generator that looks at them (`side` is not 0).
        Raises Unanswered, with all that came of the others, if an endpoint fails for some of them.
        """
        return _all_answered(self._replies(queries, num_captions, beams, min_length, max_length, batch_size, images))

    def _replies(
        self,
        queries: torch.Tensor,
        num_captions: int,
        beams: int | None,
        min_length: int | None,
        max_length: int | None,
        batch_size: int,
        images: Sequence[Image.Image] | None = None,
    ) -> list[Caption | Exception]:
        if self.generator is None:
            raise EvcapError("this captioner has a vision model alone, and none that writes")
        if self.side and images is None:
            raise EvcapError(f"generator '{self.generator_config.kind}' looks at pixels: query features alone are not enough")
        given = {"beams": beams, "min_length": min_length, "max_length": max_length}
        usual = decoding_of(self.preset, self.generator_config)
        decoding = dataclasses.replace(usual, **{k: v for k, v in given.items() if v is not None})
        if min(decoding.beams, num_captions, decoding.max_length) < 1 or decoding.min_length > decoding.max_length:
            raise EvcapError("beams, num_captions and max_length must be at least 1, min_length at most max_length")
        check_decoding(self.generator_config, decoding)
        results = []
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            names = self.retrieve(batch)
            shown = [at_most(image, self.side) for image in images[start : start + batch_size]] if self.side else None
            seen = Seen(batch, [[n.name for n in row] for row in names], shown)
            try:
                said = self.generator.captions(seen, num_captions, decoding)
            except Unanswered as error:
                said = error.replies
            results += [t if isinstance(t, Exception) else Caption(t[0], t, row) for t, row in zip(said, names, strict=True)]
        return results

    @property
    def side(self) -> int:
        """Pixels of the longer side of the images that the generator is shown; 0 = it takes query features alone."""
        return self.generator.side if self.generator else 0

    @property
    def image_side(self) -> int:
        """To how many pixels a side larger images may be shrunk while they are opened: far more than the tower looks at."""
        return max(self.preset.vision.opened_side, self.side)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def names(self, images: Picture | Iterable[Picture], batch_size: int = 16) -> list[list[RetrievedName]]:
        """Names the memory gives for each image, best first; of one image a list of one."""
        return self.retrieve(self.query_features(images, batch_size))

    def retrieve(self, queries: torch.Tensor) -> list[list[RetrievedName]]:
        """Q (N,32,W) -> names by the preset's retrieval rule."""
        return self.memory.retrieve(queries, self.preset.memory)

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
        opened = [open_picture(image, vision.opened_side) for image in images]
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


def _all_answered(replies: list[Caption | Exception]) -> list[Caption]:
    if any(isinstance(reply, Exception) for reply in replies):
        raise Unanswered(replies)
    return replies
