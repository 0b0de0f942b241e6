"""From a preset's settings of its image tower to the tower."""

from __future__ import annotations

from evcap.config import VisionConfig
from evcap.model.transformers_tower import TransformersTower
from evcap.model.vision import Blip2Vit, EfficientNetLite, VisionEncoder

TOWERS = {"efficientnet-lite2": EfficientNetLite, "blip2-vit": Blip2Vit, "transformers": TransformersTower}


def build_backbone(config: VisionConfig) -> VisionEncoder:
    """The tower named by `config.kind`, untrained, in eval mode, not trainable. Raises ValueError for an unknown kind."""
    if config.kind not in TOWERS:
        raise ValueError(f"unknown vision tower '{config.kind}', known: {', '.join(TOWERS)}")
    return TOWERS[config.kind](config).eval().requires_grad_(False)
