"""What the folder of an image tower says of itself: sizes, patch grid and normalisation, read without opening its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evcap.errors import EvcapError
from evcap.text_files import one_line
from evcap.weights.sources import local_or_hub

PLAIN = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}  # of a processor that does not normalise


@dataclass(frozen=True)
class Family:
    """How transformers calls one kind of tower. model: its class. Each function takes the tower's config.

    width: of a patch token. stride: pixels of a side of what one token stands for. prefix: class and register tokens.
    options: for the constructor; inputs: for each call. resized: "positions" are interpolated, "config" is told the size,
    "no" other size than its own. stages: it has feature maps of several resolutions.
    """

    model: str
    width: Callable = lambda config: config.hidden_size
    stride: Callable = lambda config: _side(config.patch_size)
    prefix: Callable = lambda config: 1
    options: dict = dataclasses.field(default_factory=dict)
    inputs: dict = dataclasses.field(default_factory=dict)
    resized: str = "positions"
    stages: bool = False


def _none(config) -> int:
    return 0


def _halved(config) -> int:
    return _side(config.patch_size) * 2 ** (len(config.depths) - 1)


INTERPOLATED = {"interpolate_pos_encoding": True}
CONVNEXT = {"width": lambda config: config.hidden_sizes[-1], "stride": _halved, "prefix": _none, "stages": True}
# by the `model_type` of the tower's own config: CLIP's and its like's lies within that of the whole
FAMILIES = {
    "vit": Family("ViTModel", options={"add_pooling_layer": False}, inputs=INTERPOLATED),
    "clip_vision_model": Family("CLIPVisionModel", inputs=INTERPOLATED),
    "siglip_vision_model": Family("SiglipVisionModel", prefix=_none, inputs=INTERPOLATED),
    "dinov2": Family("Dinov2Model"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", prefix=lambda config: 1 + config.num_register_tokens),
    "blip_2_vision_model": Family("Blip2VisionModel", inputs=INTERPOLATED),
    "swinv2": Family(
        "Swinv2Model",
        stride=_halved,
        prefix=_none,
        options={"add_pooling_layer": False},
        resized="config",
        stages=True,
    ),
    "convnext": Family("ConvNextModel", resized="config", **CONVNEXT),
    "convnextv2": Family("ConvNextV2Model", resized="config", **CONVNEXT),
    "hiera": Family(
        "HieraModel",
        width=lambda config: int(config.embed_dim * config.embed_dim_multiplier ** (len(config.depths) - 1)),
        stride=lambda config: config.patch_stride[0] * config.query_stride[0] ** config.num_query_pool,
        prefix=_none,
        options={"add_pooling_layer": False},
        resized="no",
        stages=True,
    ),
}


def tower_settings(
    source: str, image_size: int, width: int, tokens: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The settings of a tower of transformers with all sizes in place: those of its folder, but for what a preset sets.

    source: its folder or hub name. image_size: pixels of a side, where the tower takes others than its own, or 0. width,
    tokens: what a preset says they are, or 0. mean, std: of the three colours, in place of the folder's, or none.
    The result is those of VisionConfig; patch_size is the pixels of a side of what one patch token stands for. Raises
    EvcapError for a folder that is no known tower, and for sizes that do not go together.
    """
    try:
        return _told(source, image_size, width, tokens, mean, std)
    except EvcapError:
        raise
    except Exception as error:  # of a folder that holds anything, transformers and torch have exceptions of their own
        raise EvcapError(f"image tower '{source}' cannot be opened: {one_line(error)}") from None


def _told(source, image_size, width, tokens, mean, std) -> dict[str, Any]:
    config = read_config(source)
    family, processor = FAMILIES[config.model_type], _processor(source)
    own = _side(getattr(config, "image_size", None) or 0, source)
    usual = own if family.resized == "no" else _processed_size(processor) or own
    size, stride = image_size or usual, family.stride(config)
    if family.resized == "no" and size != own:
        raise EvcapError(f"image tower '{source}' takes images of {own} pixels only, not image_size: {size}")
    if size < stride or (size % stride and size != own):  # SigLIP's 384 pixels are 27 patches of 14 and a rest
        raise EvcapError(f"image tower '{source}' takes an image_size that {stride} divides, not {size}")
    told = {
        "image_size": size,
        "width": family.width(config),
        "tokens": family.prefix(config) + (size // stride) ** 2,
        "mean": mean or _channels(processor, "image_mean", source),
        "std": std or _channels(processor, "image_std", source),
        "patch_size": stride,
    }
    for name, given in (("width", width), ("tokens", tokens)):
        if given not in (0, told[name]):
            raise EvcapError(f"image tower '{source}' has {name} {told[name]} at {size} pixels, not {given}: leave it out")
    return told


def read_config(source: str):
    """The config of the tower in a folder, or under a hub name, as transformers reads it; of CLIP and its like the vision side.

    Raises EvcapError for what cannot be read and for a kind of model that is no known tower.
    """
    from transformers import AutoConfig  # slow import, needed by these towers only

    where = local_or_hub(source)
    try:
        whole = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
        raise EvcapError(f"image tower '{source}' cannot be opened: {' '.join(str(error).split())[:200]}") from None
    config = getattr(whole, "vision_config", None) or whole
    if config.model_type not in FAMILIES:
        raise EvcapError(f"image tower '{source}' is of kind '{config.model_type}', known: {', '.join(FAMILIES)}")
    return config


def _processor(source: str) -> dict:
    """What the image processor beside the weights is set to; empty without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(local_or_hub(source))
    except (OSError, ValueError, KeyError):
        return {}
    settings = settings if isinstance(settings, dict) else {}
    return settings | PLAIN if settings.get("do_normalize") is False else settings


def _processed_size(processor: dict) -> int:
    """Pixels of a side of what a processor hands on: it crops after it resizes. 0: it does not say, or says two."""
    crops = processor.get("do_center_crop", "crop_size" in processor)
    size = (crops and processor.get("crop_size")) or processor.get("size") or 0
    if isinstance(size, dict):
        sides = {size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))}
        size = sides.pop() if len(sides) == 1 else 0
    return size if isinstance(size, int) else 0


def _channels(processor: dict, name: str, source: str) -> list[float]:
    values = processor.get(name)
    if isinstance(values, list) and len(values) == 3 and all(isinstance(value, (int, float)) for value in values):
        return [float(value) for value in values]
    setting = name.removeprefix("image_")
    raise EvcapError(f"image tower '{source}' has no preprocessor_config.json with {name}: set vision.{setting}, three numbers")


def _side(size: int | list[int] | tuple[int, ...], source: str = "") -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise EvcapError(f"image tower '{source}' is made for images or patches of {tuple(size)} pixels, which are not square")
    return sides.pop()
