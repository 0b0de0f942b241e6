"""The chain, in order: patch tokens -> Q -> names -> V -> [Q,V] projected -> prompt -> caption (EVCap, arXiv 2311.15879)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from evcap.config import DecodingConfig, Preset
from evcap.errors import EvcapError
from evcap.language.model import Block, Hypothesis, LanguageModel, PackedCaptions
from evcap.model.name_fusion import NameFusion, Retrieved
from evcap.model.qformer import QFormer
from evcap.model.vision import VisionEncoder
from evcap.runtime import full_precision

# what parts of the model were called in files of trained tensors, and are called now
NOW = {"patch_door.": "patch_norm.", "qformer.door.": "qformer.query_norm.", "guest_feed_forward.": "text_feed_forward."}
FORMER = re.compile("|".join(re.escape(name) for name in NOW))


class PatchEmbeddingNorm(nn.Module):
    """LayerNorm and learned positions for patch tokens of a convolutional tower, which carry neither.

    The positions are of a square grid; for another one they are interpolated, as ViT does (arXiv 2010.11929, section 3.2).
    """

    def __init__(self, tokens: int, width: int, prefix: int = 0):
        """tokens: of one image, the first `prefix` of which are class and register tokens and lie on no grid."""
        super().__init__()
        self.prefix = prefix
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(1, tokens, width))

    def forward(self, patches: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """patches (B,prefix+rows*columns,C) of a grid (rows, columns), by default its own. ValueError if it is another."""
        side = math.isqrt(self.position.shape[1] - self.prefix)
        position = self.position
        if grid not in (None, (side, side)):
            first, square = position[:, : self.prefix], position[:, self.prefix :]
            square = square.view(1, side, side, -1).permute(0, 3, 1, 2)
            square = nn.functional.interpolate(square, grid, mode="bicubic").flatten(2).transpose(1, 2)
            position = torch.cat([first, square], dim=1)
        if patches.shape[1] != position.shape[1]:
            raise ValueError(f"{patches.shape[1]} patch tokens are no grid of {position.shape[1]}")
        return self.norm(patches) + position


class QueryEncoder(nn.Module):
    """From pixels to the query features that names are retrieved with: an image tower and the image Q-Former.

    text_projection, where a preset has one, brings sentences into the space of the query features.
    """

    def __init__(self, preset: Preset, backbone: nn.Module):
        super().__init__()
        self.preset = preset
        vision, width = preset.vision, preset.image_qformer.width
        self.backbone = backbone
        prefix = getattr(self.backbone, "prefix", 0)
        self.patch_norm = PatchEmbeddingNorm(vision.tokens, vision.width, prefix) if preset.patch_positions else None
        self.image_qformer = QFormer(preset.image_qformer, preset.image_queries, vision.width)
        self.text_projection = nn.Linear(preset.text_width, width) if preset.text_width else None

    @property
    def device(self) -> torch.device:
        return self.image_qformer.queries.device

    def patch_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B,3,S,S) float32 -> patch tokens (B,P,C) float32 of the tower, never under autocast."""
        with full_precision(pixels.device):
            return self.backbone(pixels)

    def query_features(self, patches: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Patch tokens (B,P,C), of whatever count, -> Q (B,32,W). grid: their rows and columns, if not the preset's own."""
        queries = self.image_qformer(self.normed(patches, grid))
        return nn.functional.normalize(queries, dim=-1) if self.preset.unit_queries else queries

    def normed(self, patches: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Patch tokens as the Q-Former takes them."""
        return patches if self.patch_norm is None else self.patch_norm(patches, grid)


class EVCap(QueryEncoder):
    """All tensors of one captioner. Sizes come from the preset alone; build under `torch.device("meta")` to only count."""

    def __init__(self, preset: Preset, language: LanguageModel, backbone: nn.Module):
        super().__init__(preset, backbone)
        self.fusion = NameFusion(preset)
        self.projection = nn.Linear(preset.image_qformer.width, preset.language.hidden)
        self.language = language

    def name_features(self, queries: torch.Tensor, retrieved: Retrieved) -> torch.Tensor:
        """Q (B,32,W) and names -> V (B,8,W)."""
        return self.fusion(retrieved, queries)

    def visual_vectors(self, queries: torch.Tensor, retrieved: Retrieved) -> torch.Tensor:
        """concat[Q,V] projected into the language model: (B,40,d)."""
        return self.projection(torch.cat([queries, self.name_features(queries, retrieved)], dim=1))

    def loss(
        self,
        queries: torch.Tensor,
        retrieved: Retrieved,
        captions: PackedCaptions,
        tail_slots: int = 0,
        further: Sequence[Block] = (),
    ) -> torch.Tensor:
        """Mean cross-entropy of the caption tokens of B images. further: blocks of the prompt behind the visual vectors."""
        vectors = self.visual_vectors(queries, retrieved)
        return self.language.loss(self.language.prompt(vectors, retrieved.names, tail_slots, further), captions)

    def generate(
        self,
        queries: torch.Tensor,
        retrieved: Retrieved,
        num_captions: int,
        decoding: DecodingConfig,
        further: Sequence[Block] = (),
    ) -> list[list[Hypothesis]]:
        """`num_captions` captions for each of B images, likeliest first."""
        vectors = self.visual_vectors(queries, retrieved)
        return self.language.decode(self.language.prompt(vectors, retrieved.names, 0, further), num_captions, decoding)


def adapted_parts(model: QueryEncoder) -> dict[str, nn.Module]:
    """The modules of the image tower that pretraining adapts, by their names in it; mostly none."""
    return model.backbone.adapted_parts() if isinstance(model.backbone, VisionEncoder) else {}


def trained_parts(model: QueryEncoder) -> dict[str, torch.Tensor]:
    """The tensors that no other file gives: neither the image tower's, but for blocks that pretraining adapts, nor the language
    model's.

    Nor, without BLIP-2, the word embeddings, which are MiniLM's; nor, with it, its Q-Former, but for the query tokens.
    """
    elsewhere = ("image_qformer.layers.", "image_qformer.query_norm.") if model.preset.blip2 else ("fusion.embeddings.",)
    adapted = tuple(f"backbone.{part}." for part in adapted_parts(model))

    def frozen(name: str) -> bool:
        lora = name.endswith((".down", ".up")) and name.startswith("language.")
        return not lora and name.startswith(("backbone.", "language.", *elsewhere)) and not name.startswith(adapted)

    return {name: tensor for name, tensor in model.state_dict().items() if not frozen(name)}


def load_parts(model: QueryEncoder, given: dict[str, torch.Tensor], where: str) -> None:
    """Copy trained tensors into the model: all of them, each of its shape; EvcapError names the first that does not fit.

    An encoder alone takes its own and leaves those of the rest of EVCap.
    """
    given = {FORMER.sub(lambda match: NOW[match[0]], name): tensor for name, tensor in given.items()}
    if not isinstance(model, EVCap):
        given = {name: tensor for name, tensor in given.items() if not name.startswith(("fusion.", "projection.", "language."))}
    fill(trained_parts(model), given, where)


def fill(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy the given tensors into those that are wanted: all of them, each of its shape; EvcapError names the first that does
    not fit."""
    for name, tensor in wanted.items():
        if name not in given:
            raise EvcapError(f"{where}: tensor '{name}' {tuple(tensor.shape)} is missing; the file fits another preset")
        if given[name].shape != tensor.shape:
            raise EvcapError(f"{where}: tensor '{name}' is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}")
    for name in given.keys() - wanted.keys():
        raise EvcapError(f"{where}: unexpected tensor '{name}'; the file fits another preset")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])
