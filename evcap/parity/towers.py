"""BLIP-2's image tower as recordings have it, whose sizes and eps are their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import nn

from evcap.config import VisionConfig, load_preset
from evcap.model.vision import Blip2Vit


def tower_config(sizes: Mapping[str, float], heads: int) -> VisionConfig:
    """The paper's tower with a recording's sizes: image, patch, width, depth and mlp_ratio."""
    return dataclasses.replace(
        load_preset("evcap-vicuna-13b").vision,
        image_size=sizes["image"],
        width=sizes["width"],
        tokens=(sizes["image"] // sizes["patch"]) ** 2 + 1,
        patch_size=sizes["patch"],
        depth=sizes["depth"],
        heads=heads,
        intermediate=int(sizes["width"] * sizes["mlp_ratio"]),
    )


def set_norms(tower: Blip2Vit, inner: float, last: float) -> None:
    """eps of the LayerNorms inside, and of the one behind the blocks."""
    for norm in (module for module in tower.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = inner
    tower.network.post_layernorm.eps = last
