"""Choosing among the beams: the likeliest caption is not always the one that looks most like the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evcap.config import DecodingConfig
from evcap.language.model import Hypothesis
from evcap.language.phrases import PhraseModel
from evcap.language.similarity import TextTower, nearest_query
from evcap.memory.names import NameFinder


class BeamChoice:
    """Orders hypotheses by score + itc_weight x image-text similarity + phrase_weight x fit of the wording.

    Similarity is that of the contrast in pretraining, fit that of the phrase model. An edited memory may say what the image
    does not show (a bike renamed dragon), and similarity would turn it back: so hypotheses that say the first retrieved name
    lead. Nearest in the literature: reranking captions by CLIPScore (arXiv 2104.08718); the rule for the name is ours.
    """

    def __init__(self, text_projection: nn.Linear | None):
        """text_projection: sentence embeddings (n,384) -> (n,W), the space of the query features; None = no similarity."""
        self._read = text_projection and TextTower(text_projection)

    @torch.inference_mode()
    def similarity(self, queries: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """Q (B,32,W) and captions of each image -> for each (n,) float32 in -1..1, the cosine of the nearest query."""
        rows = self._read([text for row in texts for text in row]).split([len(row) for row in texts])
        return [nearest_query(picture[None], row)[0] for picture, row in zip(queries, rows, strict=True)]

    def __call__(
        self,
        queries: torch.Tensor,
        hypotheses: Sequence[list[Hypothesis]],
        names: Sequence[Sequence[str]],
        decoding: DecodingConfig,
        phrases: PhraseModel | None = None,
    ) -> list[list[Hypothesis]]:
        """Q (B,32,W), hypotheses of B images, likeliest first, and their retrieved names -> the hypotheses, best first.

        decoding: gives the weights of similarity and wording. phrases: None = wording does not count.
        """
        texts = [[h.text for h in row] for row in hypotheses]
        values = [torch.tensor([h.score for h in row]) for row in hypotheses]
        if decoding.itc_weight:
            similarity = self.similarity(queries, texts)
            values = [v + decoding.itc_weight * s for v, s in zip(values, similarity, strict=True)]
        if decoding.phrase_weight and phrases is not None:
            fit = phrases(queries, texts)
            values = [v + decoding.phrase_weight * f for v, f in zip(values, fit, strict=True)]
        ordered = []
        for row, own_values, own_names in zip(hypotheses, values, names, strict=True):
            finder, first = NameFinder(own_names), own_names[:1]
            leads = [any(match.name in first for match in finder.find(h.text)) for h in row]
            best_first = sorted(zip(leads, own_values.tolist(), row, strict=True), key=lambda entry: entry[:2], reverse=True)
            ordered.append([hypothesis for *_, hypothesis in best_first])
        return ordered
