"""What else is asked of a region: which tags hold, how well a text fits. Features of texts are the queries of a decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from evcap.config import QFormerConfig
from evcap.model.qformer import Attention, FeedForward

DECODER = QFormerConfig(width=256, layers=2, heads=4, intermediate=1024, dropout=0.1)  # the paper's


class QueryDecoder(nn.Module):
    """Layers of cross-attention and feed-forward, post-norm, without self-attention: each query stands for itself."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"cross_attention": Attention(config, config.width), "feed_forward": FeedForward(config)})
            for _ in range(config.layers)
        )

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """queries (T,W), context (R,P,W) -> (R,T,W)."""
        stream = queries[None]  # the first layer projects it once for all regions
        for layer in self.layers:
            stream = layer["feed_forward"](layer["cross_attention"](stream, context))
        return stream


class TagHead(nn.Module):
    """One logit for each text of a vocabulary, any vocabulary: does it hold for the region? (RAM's tagging head.)"""

    def __init__(self, vision_width: int, text_width: int, config: QFormerConfig = DECODER):
        """vision_width: of the query features of a region. text_width: of the features of texts."""
        super().__init__()
        self.vision = nn.Linear(vision_width, config.width)
        self.text = nn.Linear(text_width, config.width)
        self.decoder = QueryDecoder(config)
        self.score = nn.Linear(config.width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, regions: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Query features of regions (R,Q,W) and features of texts (T,E), not normalised -> (R,T)."""
        return self.score(self.decoded(regions, texts)).squeeze(-1)

    def decoded(self, regions: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.text(texts), self.vision(regions))


class RegionTextHead(TagHead):
    """How well each text fits each region: captions, classes, attributes. Raw scores rank; `log_scale` and `bias` serve the
    loss alone (SigLIP, arXiv 2303.15343)."""

    def __init__(self, vision_width: int, text_width: int, config: QFormerConfig = DECODER):
        super().__init__(vision_width, text_width, config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def decoded(self, regions: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(super().decoded(regions, texts), dim=-1)

    def logits(self, scores: torch.Tensor) -> torch.Tensor:
        return scores * self.log_scale.exp() + self.bias


def tags_above(logits: torch.Tensor, names: Sequence[str], threshold: float) -> list[list[str]]:
    """The tags of each region whose probability is above the threshold: logits (R,T) -> R lists, in the vocabulary's order."""
    return [[names[place] for place in row.nonzero()[:, 0].tolist()] for row in logits.sigmoid() > threshold]


def likeliest_tags(logits: torch.Tensor, names: Sequence[str], threshold: float) -> list[list[str]]:
    """As `tags_above`, most probable first."""
    above = logits.sigmoid() > threshold
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    return [[names[place] for place in row[:count].tolist()] for row, count in zip(ranked, above.sum(1).tolist(), strict=True)]


def best_text(scores: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The best of each thing's texts, which stand one after the other: scores (R,T), counts of texts that sum to T -> (R,A)."""
    return torch.stack([part.amax(1) for part in scores.split(list(counts), dim=1)], dim=1)
