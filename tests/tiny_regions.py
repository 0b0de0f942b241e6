"""Regions on a tiny EVCap: its tower, whose rows are counted, a memory, a captioner's part for a describer, a region model."""

import dataclasses
from types import SimpleNamespace

import torch
from PIL import Image
from tiny import tiny_language, tiny_preset
from torch import nn

from evcap.config import QFormerConfig, RegionConfig
from evcap.memory.memory import VisualNameMemory
from evcap.model.evcap import EVCap
from evcap.model.vision import VisionEncoder
from evcap.regions.model import RegionModel

HEAD = QFormerConfig(width=16, layers=2, heads=2, intermediate=32, dropout=0.1)
REGIONS = RegionConfig(
    views=3,
    hidden=12,
    inner=8,
    residual=True,
    head=HEAD,
    words="\nWords: {words}",
    words_tokens=24,
    after="\nRegion:",
    lora_rank=2,
    tag_threshold=0.5,
)


class TinyTower(VisionEncoder):
    """Four patch tokens of 20 channels: colours of the quarters of an image. `rows` tells how many images it has seen."""

    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(3 * 64, 20)
        self.rows = 0

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return 2, 2

    def identifying(self) -> dict[str, torch.Tensor]:
        return dict(self.state_dict())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.rows += len(pixels)
        cells = nn.functional.adaptive_avg_pool2d(pixels, 16).unfold(2, 8, 8).unfold(3, 8, 8)  # (B,3,2,2,8,8)
        return self.mixed(cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))


def tiny_spine(seed: int = 0, lora_rank: int = 0, regions: RegionConfig = REGIONS, **language) -> EVCap:
    """The whole chain, tiny, with the word pieces of the real name tokenizer."""
    language = tiny_language(seed, lora_rank, **language)
    preset = dataclasses.replace(tiny_preset(language.config), vocab_size=30522, regions=regions)
    torch.manual_seed(seed)
    model = EVCap(preset, language, TinyTower()).eval()
    nn.init.normal_(model.image_qformer.queries)
    return model


def scrambled(model: RegionModel, seed: int = 1) -> RegionModel:
    """With tensors of its own that are all far from 0, so that each shows in what comes out."""
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.trained().values():
            tensor.add_(torch.randn(tensor.shape, generator=make) * 0.2)
    return model.eval()


def tiny_captioner(model: EVCap, names=("red bus", "dog", "kite", "grey wolf")) -> SimpleNamespace:
    """What a describer takes of a captioner."""
    keys = torch.randn(len(names), model.preset.image_qformer.width, generator=torch.Generator().manual_seed(5))
    memory = VisualNameMemory.build(keys, list(names), ["test"] * len(names), [f"{n}.png" for n in names], "tiny")
    captioner = SimpleNamespace(model=model, preset=model.preset, memory=memory)
    captioner.retrieve = lambda queries: captioner.memory.retrieve(queries, captioner.preset.memory)
    return captioner


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image on which no two places look alike."""
    small = torch.randint(0, 256, (height // 4, width // 4, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(small.to(torch.uint8).numpy()).resize((width, height), Image.Resampling.BICUBIC)
