"""What looks at tiles and reads phrases: both give vectors of one space, whose cosines say how well they fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from evcap.captioner import Captioner
from evcap.errors import EvcapError
from evcap.language.similarity import TextTower
from evcap.model.dual_encoder import DualEncoder


class Tower(Protocol):
    """shape: (Q,D) of what one tile gives; image_size: pixels of a side that it takes without resampling;
    encoder_fingerprint: short hash that tells whose vectors they are."""

    shape: tuple[int, int]
    image_size: int
    encoder_fingerprint: str

    def query_features(self, images: Sequence[Image.Image], batch_size: int) -> torch.Tensor:
        """Images -> (n,Q,D) float32 on the CPU."""

    def read(self, phrases: Sequence[str]) -> torch.Tensor:
        """Phrases -> (n,D) float32 unit vectors on the CPU."""


class QueryTower:
    """The captioner's own query features, and its text projection: what a captioner has without further weights."""

    def __init__(self, captioner: Captioner):
        """Raises EvcapError for a preset without text projection."""
        preset = captioner.preset
        if captioner.model.text_projection is None:
            raise EvcapError(f"preset '{preset.name}' has no text tower: name a CLIP in `text_tower`")
        self.query_features = captioner.query_features
        self.read = TextTower(captioner.model.text_projection)
        self.shape = (preset.image_queries, preset.image_qformer.width)
        self.image_size = preset.vision.image_size
        self.encoder_fingerprint = captioner.encoder_fingerprint


def open_tower(captioner: Captioner) -> Tower:
    """The tower of a captioner's preset: the CLIP it names, or else its own. Raises EvcapError where there is neither."""
    name = captioner.preset.text_tower
    return ClipTower(name, captioner.device) if name else QueryTower(captioner)


class ClipTower:
    """A dual encoder of transformers, CLIP or SigLIP: one vector a tile. RemoteCLIP and GeoRSCLIP are CLIPs, once converted."""

    def __init__(self, folder: str | Path, device: torch.device | None = None):
        """folder: as `DualEncoder` takes its source."""
        self._encoder = DualEncoder(folder, device)
        self.image_size = self._encoder.image_size
        self.read = self._encoder.texts

    @cached_property
    def shape(self) -> tuple[int, int]:
        return 1, self.read(["a"]).shape[1]

    @cached_property
    def encoder_fingerprint(self) -> str:
        return self._encoder.fingerprint()

    def query_features(self, images: Sequence[Image.Image], batch_size: int) -> torch.Tensor:
        # squashed, as the captioner sees it: the usual crop of the middle would leave out what lies at the border of a tile
        square = [image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC) for image in images]
        return self._encoder.images(square)[:, None]
