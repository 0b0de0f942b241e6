"""Image towers of transformers, of the families of evcap/weights/tower_settings.py, behind the interface of the others."""

from __future__ import annotations

import torch
from torch import nn

from evcap.config import VisionConfig
from evcap.errors import EvcapError
from evcap.model.vision import VisionEncoder
from evcap.runtime import full_precision, tower_dtype
from evcap.weights.sources import local_or_hub, opened
from evcap.weights.tower_settings import FAMILIES, read_config

LARGE = 500_000_000  # parameters from which a tower is of half precision off the CPU: ViT-g and DINOv2-g, not ViT-L
OPTIONAL = ("pooler.", "head.")  # tensors behind the patch tokens
SAMPLED = 64  # values of each tensor that tell whose weights they are


class TransformersTower(VisionEncoder):
    """A tower of transformers; its settings have their sizes in place (`config.measured`). network: None = untrained."""

    def __init__(self, config: VisionConfig, network: nn.Module | None = None):
        super().__init__()
        own = _resized(config)
        self._family = FAMILIES[own.model_type]
        self._stride = config.patch_size
        self.prefix = self._family.prefix(own)
        self.network = _model_class(self._family.model)(own, **self._family.options) if network is None else network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B,3,H,W) normalised float -> (B, prefix + rows * columns, width) float32: the library's last hidden state."""
        if self._family.stages:
            return self.pyramid(pixels)[-1].flatten(2).transpose(1, 2)
        with full_precision(pixels.device):
            return self.network(pixels.to(self.network.dtype), **self._family.inputs).last_hidden_state.float()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self._stride, width // self._stride

    def pyramid(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The map at the end of each stage, before it is made coarser; the last holds the patch tokens. () for plain ViTs."""
        if not self._family.stages:
            return ()
        with full_precision(pixels.device):
            maps = STAGES[self._family.model](self.network, pixels.to(self.network.dtype))
        return tuple(stage.float() for stage in maps)

    def identifying(self) -> dict[str, torch.Tensor]:
        """Some values of every tensor, in an order that does not depend on names, which versions of transformers change."""
        rows = []
        for parameter in self.network.parameters():
            flat = parameter.detach().flatten()
            rows.append(flat[:: max(1, len(flat) // SAMPLED)].cpu().to(torch.float16).numpy().tobytes())
        return {"sample": torch.frombuffer(bytearray(b"".join(sorted(rows))), dtype=torch.float16)}


def _swin_stages(network: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    embedded, size = network.embeddings(pixels)
    found = network.encoder(embedded, size, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    *maps, last = found.reshaped_hidden_states[1:]  # the first is what enters the first stage
    normed = network.layernorm(found.last_hidden_state)
    return *maps, normed.transpose(1, 2).reshape(last.shape)


def _convnext_stages(network: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return network(pixels, output_hidden_states=True).hidden_states[1:]


def _hiera_stages(network: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hiera's tokens lie by mask units; the library rolls these states back to rows and columns."""
    maps = network(pixels, output_hidden_states=True).reshaped_hidden_states[1:]
    return tuple(stage.permute(0, 3, 1, 2) for stage in maps)


STAGES = {
    "Swinv2Model": _swin_stages,
    "ConvNextModel": _convnext_stages,
    "ConvNextV2Model": _convnext_stages,
    "HieraModel": _hiera_stages,
}


def _resized(config: VisionConfig):
    """The tower's own config, with the preset's image size where the model is built for one and has no weights that show it."""
    own = read_config(config.source)
    if FAMILIES[own.model_type].resized == "config":
        own = own.__class__.from_dict(own.to_dict() | {"image_size": config.image_size})
    return own


def _model_class(name: str) -> type[nn.Module]:
    import transformers  # slow import, needed by these towers only

    return getattr(transformers, name)


def open_tower(config: VisionConfig, device: torch.device) -> TransformersTower:
    """A tower with its weights, in eval mode, not trainable, still on the CPU but of the precision it has on `device`.

    Raises EvcapError when it cannot be read or when some of its weights are missing.
    """
    own = _resized(config)
    family = FAMILIES[own.model_type]
    model = _model_class(family.model)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model(own, **family.options).parameters())
    dtype = tower_dtype(parameters >= LARGE, device)
    # BLIP-2's vision model, unlike CLIP's, does not find itself within the whole
    names = {r"^vision_model\.": ""} if family.model == "Blip2VisionModel" else None
    source = local_or_hub(config.source)
    with opened(f"image tower '{config.source}'"):
        network, loaded = model.from_pretrained(
            source, config=own, dtype=dtype, output_loading_info=True, key_mapping=names, **family.options
        )
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith(OPTIONAL))
    if missing:
        raise EvcapError(f"image tower '{config.source}' has no tensor '{missing[0]}' ({len(missing)} are missing)")
    return TransformersTower(config, network).eval().requires_grad_(False)
