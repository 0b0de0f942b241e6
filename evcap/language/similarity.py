"""How much an image, seen through its query features, looks like a sentence: the similarity of the contrast in pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evcap.language.sentences import clean_caption, sentence_embedder


def nearest_query(queries: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    """Cosine of each sentence with the nearest query: (B,Q,W), unit rows (n,W) -> (B,n) float32 in -1..1.

    As BLIP-2's image-text contrast compares (arXiv 2301.12597, section 3.2). The queries need not be of unit length.
    """
    queries = queries.float()
    lengths = queries.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # divided by last: there are fewer cosines than features
    return ((queries @ sentences.T) / lengths).amax(1)


class TextTower:
    """Sentences -> (n,W) float32 unit vectors in the space of the query features, on the CPU."""

    def __init__(self, projection: nn.Linear):
        """projection: sentence embeddings (n,384) -> (n,W), trained with the queries."""
        self._project = projection

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str]) -> torch.Tensor:
        embedded = sentence_embedder()([clean_caption(sentence) for sentence in sentences])
        return nn.functional.normalize(self._project(embedded.to(self._project.weight.device)), dim=-1).cpu()
