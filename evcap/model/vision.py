"""Frozen image towers: pixels (B,3,S,S) -> patch tokens (B,P,C)."""

from __future__ import annotations

import torch
from torch import nn

from evcap.config import VisionConfig

ON_CPU = 8  # images that go through EfficientNet together on CPUs: twice as fast as 32, whose maps outgrow the cache


class VisionEncoder(nn.Module):
    """A frozen tower: pixels (B,3,H,W) -> patch tokens (B,P,C) float32, `prefix` class tokens, then those of `grid` by rows."""

    prefix = 0

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens that an image of so many pixels gives."""
        raise NotImplementedError

    def pyramid(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps (B,C,h,w), finest first, of towers that have several resolutions; () for the others."""
        return ()

    def identifying(self) -> dict[str, torch.Tensor]:
        """Tensors that tell these weights from others of the kind, few enough to hash at once; {} if there are no others."""
        return {}


class EfficientNetLite(VisionEncoder):
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

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 32), -(-width // 32)

    def pyramid(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps at strides 4, 8, 16 and 32 with 24, 48, 120 and 1280 channels; the last holds the patch tokens."""
        network, maps = self.network, []
        x = network._swish(network._bn0(network._conv_stem(pixels.contiguous(memory_format=torch.channels_last))))
        for block, following in zip(network._blocks, [*network._blocks[1:], None], strict=True):
            x = block(x)
            stride = pixels.shape[-1] / x.shape[-1]
            if following is not None and _halves(following) and stride >= 4:
                maps.append(x)
        return *maps, network._swish(network._bn1(network._conv_head(x)))


def _halves(block: nn.Module) -> bool:
    stride = block._block_args.stride
    return (stride[0] if isinstance(stride, list) else stride) == 2


class Blip2Vit(VisionEncoder):
    """BLIP-2's EVA-CLIP ViT-g with its final LayerNorm (transformers' Blip2VisionModel); token 0 is the class token."""

    prefix = 1

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
        self._patch = config.patch_size
        self.network.post_layernorm.eps = 1e-5  # LAVIS keeps this norm outside the tower, with PyTorch's default eps

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B,3,S,S) normalised float -> (B, 1 + (S/patch)^2, width) float32; the tower itself may be half precision."""
        return self.network(pixels.to(self.network.dtype)).last_hidden_state.float()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self._patch, width // self._patch

    def identifying(self) -> dict[str, torch.Tensor]:
        """Three of its tensors: seconds faster than all."""
        last = self.network.encoder.layers[-1].mlp.fc2.weight
        patches, norm = self.network.embeddings.patch_embedding.weight, self.network.post_layernorm.weight
        return {"patches": patches, "last": last, "norm": norm}
