"""One Q-Former for both jobs: the image queries that look at patch tokens, and the fusion that looks at names.

BERT-shaped, post-norm (BLIP-2, arXiv 2301.12597, section 3.1; name fusion: EVCap, arXiv 2311.15879, section 3.3).
"""

from __future__ import annotations

import torch
from torch import nn

from evcap.config import QFormerConfig


class Attention(nn.Module):
    """Multi-head attention with BERT's output projection, residual and LayerNorm; keys and values come from `context`."""

    def __init__(self, config: QFormerConfig, context_width: int):
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"a Q-Former of width {config.width} cannot have {config.heads} heads")
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(context_width, config.width)
        self.value = nn.Linear(context_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def weights(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B,T,W), (B,P,C), mask (B,P) True = visible -> attention (B,heads,T,P), rows sum to 1."""
        query, key = (self._split(f(t)) for f, t in ((self.query, x), (self.key, context)))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        # written out: on CPUs the fused kernel's backward pass is several times slower than these two products
        weights = self.dropout(self.weights(x, context, mask))
        mixed = (weights @ self._split(self.value(context))).transpose(1, 2).flatten(2)
        return self.norm(x + self.dropout(self.out(mixed)))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with GELU between, residual and LayerNorm."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.intermediate)
        self.down = nn.Linear(config.intermediate, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.dropout(self.down(nn.functional.gelu(self.up(x)))))


class QFormerLayer(nn.Module):
    def __init__(self, config: QFormerConfig, context_width: int, cross_attends: bool, has_text_branch: bool):
        super().__init__()
        self.self_attention = Attention(config, config.width)
        self.cross_attention = Attention(config, context_width) if cross_attends else None
        self.query_feed_forward = FeedForward(config)
        self.text_feed_forward = FeedForward(config) if has_text_branch else None

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None, queries: int) -> torch.Tensor:
        x = self.self_attention(x, x)
        head, appended = x[:, :queries], x[:, queries:]
        if self.cross_attention is not None:
            head = self.cross_attention(head, context, mask)
        head = self.query_feed_forward(head)
        if self.text_feed_forward is None:
            return head
        return torch.cat([head, self.text_feed_forward(appended)], dim=1)


class QFormer(nn.Module):
    """Transformer whose first positions, the learned queries, cross-attend to a context.

    With a text branch (the name fusion) further positions are appended to the stream: they share self-attention, have their
    own feed-forward (BERT's) and never see the context, and the stream enters raw, as in the EVCap release. Without it (the
    image Q-Former) the queries pass an embedding LayerNorm.
    """

    def __init__(self, config: QFormerConfig, queries: int, context_width: int, has_text_branch: bool = False):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, queries, config.width))
        self.query_norm = None if has_text_branch else nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(
                config,
                context_width,
                cross_attends=index % config.cross_attention_every == 0,
                has_text_branch=has_text_branch and index < config.layers - 1,  # nobody reads its last output
            )
            for index in range(config.layers)
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.queries, std=0.02)

    def forward(
        self, context: torch.Tensor, mask: torch.Tensor | None = None, appended: torch.Tensor | None = None
    ) -> torch.Tensor:
        """context (B,P,C), mask (B,P) True = visible, appended (B,G,W) or None -> the queries' outputs (B,queries,W)."""
        count = self.queries.shape[1]
        stream = self.queries.expand(len(context), -1, -1)
        if self.query_norm is not None:
            stream = self.dropout(self.query_norm(stream))
        if appended is not None:
            stream = torch.cat([stream, appended.to(stream.dtype)], dim=1)
        for layer in self.layers:
            stream = layer(stream, context, mask, count)
        return stream[:, :count]

    @torch.no_grad()
    def attention_map(self, context: torch.Tensor) -> torch.Tensor:
        """Where each query looks: cross-attention averaged over layers and heads, (B,P,C) -> (B,queries,P), rows sum to 1."""
        stream = self.queries.expand(len(context), -1, -1)
        stream = self.query_norm(stream)
        maps = []
        for layer in self.layers:
            if layer.cross_attention is not None:
                attended = layer.self_attention(stream, stream)
                maps.append(layer.cross_attention.weights(attended, context, None).mean(1))
            stream = layer(stream, context, None, stream.shape[1])
        return torch.stack(maps).mean(0)
