"""CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv 2104.08718) by any CLIP of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from evcap.images.opening import open_image
from evcap.model.dual_encoder import DualEncoder

WEIGHT = 2.5  # of a cosine, as in the paper: scores lie in 0..1 about as those of other measures
PROMPT = "A photo depicts "  # before every caption and reference, as in the paper
BATCH = 32


class ClipScorer:
    """source: folder or hub name of a CLIP. The paper's figures are of ViT-B/32; other models give other scales."""

    def __init__(self, source: str | Path):
        self._encoder = DualEncoder(source)

    def score(
        self, said: Mapping[int | str, str], references: Mapping[int | str, Sequence[str]], files: Mapping[int | str, Path]
    ) -> dict[str, float]:
        """Means in percent over the captions `said`, {image id: caption}, with their references and image files.

        Raises ImageError for a file that is no readable image.
        """
        plain, referenced = [], []
        keys = list(said)
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            seen = self._encoder.images([open_image(files[key]) for key in part])
            captions = self._texts([said[key] for key in part])
            plain.append(WEIGHT * cosine_similarity(seen, captions).clamp_min(0))
            nearest = [
                cosine_similarity(caption[None], self._texts(references[key])).max().clamp_min(0)
                for key, caption in zip(part, captions, strict=True)
            ]
            near = torch.stack(nearest)
            referenced.append(2 * plain[-1] * near / (plain[-1] + near).clamp_min(1e-12))
        return {
            "CLIPScore": 100 * torch.cat(plain).mean().item(),
            "RefCLIPScore": 100 * torch.cat(referenced).mean().item(),
        }

    def _texts(self, captions: Sequence[str]) -> torch.Tensor:
        return self._encoder.texts([PROMPT + caption for caption in captions])
