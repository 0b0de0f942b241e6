"""Image towers: pixels (B,3,S,S) -> patch tokens (B,P,C). Frozen, but for last blocks that a preset adapts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evcap.config import VisionConfig

ON_CPU = 8  # images that go through EfficientNet together on CPUs: twice as fast as 32, whose maps outgrow the cache


class VisionEncoder(nn.Module):
    """A tower: pixels (B,3,H,W) -> patch tokens (B,P,C) float32, `prefix` class tokens, then those of `grid` by rows.

    It is frozen as far as `frozen` computes. What comes behind, `adapted`, may be trained; most towers have nothing there.
    """

    prefix = 0

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens that an image of so many pixels gives."""
        raise NotImplementedError

    def pyramid(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps (B,C,h,w), finest first, of towers that have several resolutions; () for the others."""
        return ()

    def identifying(self) -> dict[str, torch.Tensor]:
        """Tensors that tell frozen weights from others of the kind, few enough to hash at once; {} if there are no others."""
        return {}

    def frozen(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the frozen part makes of pixels: the same for an image as long as the weights are, and so worth keeping."""
        return self(pixels)

    def frozen_shape(self, config: VisionConfig) -> tuple[int, ...]:
        """Of what `frozen` gives of one image."""
        return config.tokens, config.width

    def adapted(self, frozen: torch.Tensor) -> torch.Tensor:
        """From what the frozen part gives to patch tokens."""
        return frozen

    def adapted_parts(self) -> dict[str, nn.Module]:
        """The modules that `adapted` runs through, by their names in this one."""
        return {}


class EfficientNetLite(VisionEncoder):
    """EfficientNet-Lite2 without its classifier; each position of the last feature map is one patch token.

    The image size should stay even through five halvings (224, 256, 288): TensorFlow's "same" padding turns
    symmetric on odd sizes and the features lose quality there. Batch norms keep their ImageNet statistics in training.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet  # slow import, needed by this tower only

        # image_size None = padding computed from each input, so that any size works
        self.network = EfficientNet.from_name("efficientnet-lite2", image_size=None)
        self.network._fc = nn.Identity()
        blocks = len(self.network._blocks)
        self.first = blocks if config.adapted_from is None else config.adapted_from
        if not 0 < self.first <= blocks:
            raise ValueError(f"adapted_from is {self.first}, an efficientnet-lite2 has blocks 1 to {blocks - 1} to adapt")
        self._adapts = config.adapted_from is not None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B,3,S,S) normalised float -> (B, (S/32)^2, 1280), row by row, values in 0..6."""
        return torch.cat([_tokens(self._last_map(self._first_map(part))) for part in _parts(pixels)])

    def frozen(self, pixels: torch.Tensor) -> torch.Tensor:
        """The map (B,C,h,w) in front of the adapted blocks, or patch tokens where none is adapted."""
        if not self._adapts:
            return self(pixels)
        return torch.cat([self._first_map(part) for part in _parts(pixels)])

    def frozen_shape(self, config: VisionConfig) -> tuple[int, ...]:
        if not self._adapts:
            return super().frozen_shape(config)
        blocks = self.network._blocks
        side = -(-config.image_size // 2 ** (1 + sum(map(_halves, blocks[: self.first]))))
        return blocks[self.first]._block_args.input_filters, side, side

    def adapted(self, frozen: torch.Tensor) -> torch.Tensor:
        """As `frozen` gives it, or another size of map -> patch tokens (B,P,1280)."""
        return _tokens(self._last_map(frozen)) if self._adapts else frozen

    def adapted_parts(self) -> dict[str, nn.Module]:
        network = self.network
        if not self._adapts:
            return {}
        parts = {f"network._blocks.{i}": block for i, block in enumerate(network._blocks) if i >= self.first}
        return parts | {"network._conv_head": network._conv_head, "network._bn1": network._bn1}

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Stays in eval mode: the statistics of its batch norms are ImageNet's."""
        return super().train(False)

    def _first_map(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self._stem(pixels)
        for block in self.network._blocks[: self.first]:
            x = block(x)
        return x

    def _last_map(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.network._blocks[self.first :]:
            x = block(x)
        return self._head(x)

    def _stem(self, pixels: torch.Tensor) -> torch.Tensor:
        network = self.network
        return network._swish(network._bn0(network._conv_stem(pixels.contiguous(memory_format=torch.channels_last))))

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        network = self.network
        return network._swish(network._bn1(network._conv_head(x)))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 32), -(-width // 32)

    def pyramid(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps at strides 4, 8, 16 and 32 with 24, 48, 120 and 1280 channels; the last holds the patch tokens."""
        blocks, maps, x = self.network._blocks, [], self._stem(pixels)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            x = block(x)
            stride = pixels.shape[-1] / x.shape[-1]
            if following is not None and _halves(following) and stride >= 4:
                maps.append(x)
        return *maps, self._head(x)


def _parts(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
    return pixels.split(ON_CPU) if pixels.device.type == "cpu" else [pixels]


def _tokens(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).transpose(1, 2)


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
