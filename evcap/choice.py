"""Choosing among the beams: the likeliest caption is not always the one that looks most like the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evcap.language import Hypothesis
from evcap.text import SentenceEmbedder, clean_caption
from evcap.vocabulary import NameFinder


class BeamChoice:
    """Orders hypotheses by score + weight x image-text similarity, that of the contrast in pretraining.

    The memory decides which names are said, the picture the rest: an edited memory may say what the picture does not show
    (a bike renamed dragon), so a hypothesis that lacks a retrieved name of the likeliest one stays behind those that have
    them all, and of these the ones that say the first retrieved name lead. Nearest in the literature: reranking captions
    by CLIPScore (arXiv 2104.08718); the rules for names are ours.
    """

    def __init__(self, text_projection: nn.Linear):
        """text_projection: sentence embeddings (n,384) -> (n,W), the space of the query features."""
        self._project = text_projection
        self._embed = SentenceEmbedder()

    @torch.inference_mode()
    def similarity(self, queries: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """Q (B,32,W) and captions of each picture -> for each (n,) float32 in -1..1, the cosine of the nearest query."""
        flat = [clean_caption(text) for row in texts for text in row]
        rows = nn.functional.normalize(self._project(self._embed(flat)), dim=-1).split([len(row) for row in texts])
        queries = nn.functional.normalize(queries.float(), dim=-1)
        return [(picture @ row.T).amax(0) for picture, row in zip(queries, rows, strict=True)]

    def __call__(
        self, queries: torch.Tensor, hypotheses: Sequence[list[Hypothesis]], names: Sequence[Sequence[str]], weight: float
    ) -> list[list[Hypothesis]]:
        """Q (B,32,W), hypotheses of B pictures, likeliest first, and their retrieved names -> the hypotheses, best first."""
        similarity = self.similarity(queries, [[h.text for h in row] for row in hypotheses])
        ordered = []
        for row, similar, own_names in zip(hypotheses, similarity, names, strict=True):
            finder = NameFinder(own_names)
            said = [{match.name for match in finder.find(h.text)} for h in row]
            first = set(own_names[:1])
            values = [h.score + weight * v for h, v in zip(row, similar.tolist(), strict=True)]
            rank = [(s >= said[0], s >= first, value) for s, value in zip(said, values, strict=True)]
            best_first = sorted(zip(rank, row, strict=True), key=lambda pair: pair[0], reverse=True)
            ordered.append([hypothesis for _, hypothesis in best_first])
        return ordered
