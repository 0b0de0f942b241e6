"""BLIP-2's image tower as recordings have it, whose sizes and eps are their own."""

from __future__ import annotations

from torch import nn

from evcap.model.vision import Blip2Vit


def set_norms(tower: Blip2Vit, inner: float, last: float) -> None:
    """eps of the LayerNorms inside, and of the one behind the blocks."""
    for norm in (module for module in tower.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = inner
    tower.network.post_layernorm.eps = last
