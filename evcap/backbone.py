"""Frozen image towers: pixels (B,3,S,S) -> patch tokens (B,P,C)."""

from __future__ import annotations

import torch
from torch import nn

from evcap.config import VisionConfig

ON_CPU = 8  # pictures that go through EfficientNet together on CPUs: twice as fast as 32, whose maps outgrow the cache


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite2 without its classifier; each position of the last feature map is one patch token.

    The image size should stay even through five halvings (224, 256, 288): TensorFlow's "same" padding turns
    symmetric on odd sizes and the features lose quality there.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet  # slow import, needed by this tower only

        # image_size None = padding computed from each input, so that any size works
        self.network = EfficientNet.from_name("efficientnet-lite2", image_size=None)
        self.network._fc = nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B,3,S,S) normalised float -> (B, (S/32)^2, 1280), row by row, values in 0..6."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        parts = pixels.split(ON_CPU) if pixels.device.type == "cpu" else [pixels]
        maps = torch.cat([self.network.extract_features(part) for part in parts])
        return maps.flatten(2).transpose(1, 2)


class Blip2Vit(nn.Module):
    """BLIP-2's EVA-CLIP ViT-g with its final LayerNorm (transformers' Blip2VisionModel); token 0 is the class token."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        from transformers import Blip2VisionConfig, Blip2VisionModel  # slow import, needed by this tower only

        self.network = Blip2VisionModel(
            Blip2VisionConfig(
                hidden_size=config.width,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=1e-6,
                hidden_act="gelu",
            )
        )
        self.network.post_layernorm.eps = 1e-5  # LAVIS keeps this norm outside the tower, with PyTorch's default eps

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B,3,S,S) normalised float -> (B, 1 + (S/patch)^2, width) float32; the tower itself may be half precision."""
        return self.network(pixels.to(self.network.dtype)).last_hidden_state.float()


TOWERS = {"efficientnet-lite2": EfficientNetLite, "blip2-vit": Blip2Vit}


def build_backbone(config: VisionConfig) -> nn.Module:
    """The tower named by `config.kind`, in eval mode, not trainable. Raises ValueError for an unknown kind."""
    if config.kind not in TOWERS:
        raise ValueError(f"unknown vision tower '{config.kind}', known: {', '.join(TOWERS)}")
    return TOWERS[config.kind](config).eval().requires_grad_(False)
