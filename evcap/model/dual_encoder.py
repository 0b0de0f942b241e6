"""Dual encoders of transformers, CLIP or SigLIP: images and texts as vectors of one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from evcap.errors import EvcapError
from evcap.runtime import pick_device, tower_dtype
from evcap.weights.sources import local_or_hub, opened
from evcap.weights.wheels import fingerprint


class DualEncoder:
    """source: folder of a model with tokenizer and image processor, or a hub name. device: a GPU where there is one.

    Raises EvcapError for what is no such model.
    """

    def __init__(self, source: str | Path, device: torch.device | None = None):
        from transformers import AutoModel, AutoProcessor

        source, self.device = local_or_hub(source), device or pick_device()
        with opened(f"CLIP '{source}'"):
            model = AutoModel.from_pretrained(source, trust_remote_code=False, dtype=tower_dtype(True, self.device))
            self._processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        if not hasattr(model, "get_text_features"):
            raise EvcapError(f"'{source}' is no CLIP or SigLIP: it has no text side")
        self._model = model.to(self.device).eval()
        self.image_size: int = model.config.vision_config.image_size

    def fingerprint(self) -> str:
        """Short hash of its weights and settings."""
        return fingerprint({k: v.cpu().half() for k, v in self._model.state_dict().items()}, self._model.config.to_dict())

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images, resized and cropped as the model's own processor does -> (n,D) float32 on the CPU."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self.device, dtype=self._model.dtype)
        return _vectors(self._model.get_image_features(**inputs)).float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> (n,D) float32 unit vectors on the CPU."""
        inputs = self._processor(text=list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return nn.functional.normalize(_vectors(self._model.get_text_features(**inputs)).float(), dim=-1).cpu()


def _vectors(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output
