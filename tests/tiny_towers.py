"""Folders of tiny image towers with random weights, as `save_pretrained` of transformers writes them."""

import json
from pathlib import Path

import torch
import transformers as t

from evcap.config import VisionConfig, measured

LAYERS = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = LAYERS | {"image_size": 64, "patch_size": 16}
TEXT = LAYERS | {"vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
STAGES = {"depths": [1, 1, 2, 1], "image_size": 64}


def _blip2() -> t.PreTrainedModel:
    qformer = LAYERS | {"encoder_hidden_size": 24, "vocab_size": 50}
    language = t.OPTConfig(vocab_size=50, hidden_size=24, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2)
    return t.Blip2ForConditionalGeneration(
        t.Blip2Config(vision_config=VIT, qformer_config=qformer, text_config=language.to_dict(), num_query_tokens=3)
    )


# the model that a folder holds, and how many class and register tokens come before the patch tokens
FAMILIES = {
    "vit": (lambda: t.ViTForImageClassification(t.ViTConfig(**VIT)), 1),
    "clip": (lambda: t.CLIPModel(t.CLIPConfig(vision_config=VIT, text_config=TEXT)), 1),
    "clip-vision": (lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**VIT)), 1),
    "siglip": (lambda: t.SiglipModel(t.SiglipConfig(vision_config=VIT, text_config=TEXT)), 0),
    "dinov2": (lambda: t.Dinov2Model(t.Dinov2Config(**VIT, mlp_ratio=2)), 1),
    "dinov2-registers": (
        lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, num_register_tokens=3)),
        4,
    ),
    "blip2": (_blip2, 1),
    "swinv2": (
        lambda: t.Swinv2ForImageClassification(
            t.Swinv2Config(**STAGES, embed_dim=8, num_heads=[1, 2, 2, 4], window_size=4, patch_size=4)
        ),
        0,
    ),
    "convnext": (lambda: t.ConvNextForImageClassification(t.ConvNextConfig(**STAGES, hidden_sizes=[4, 8, 12, 16])), 0),
    "convnextv2": (lambda: t.ConvNextV2Model(t.ConvNextV2Config(**STAGES, hidden_sizes=[4, 8, 12, 16])), 0),
    "hiera": (
        lambda: t.HieraForImageClassification(
            t.HieraConfig(depths=[1, 1, 2, 1], image_size=[64, 64], embed_dim=8, num_heads=[1, 2, 2, 4], mlp_ratio=2.0)
        ),
        0,
    ),
}
STAGED = ("swinv2", "convnext", "convnextv2", "hiera")  # towers with a pyramid
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def tower_folder(folder: Path, family: str, seed: int = 0) -> Path:
    """A folder with the weights of a family and an image processor's settings."""
    torch.manual_seed(seed)
    model = FAMILIES[family][0]().eval()
    for parameter in model.parameters():  # fresh ones are so small that towers tell images hardly apart
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 64}, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def settings_of(folder, **changes) -> VisionConfig:
    return measured(VisionConfig(kind="transformers", source=str(folder), **changes))


def pixels(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(4))
