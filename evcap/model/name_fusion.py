"""Retrieved names meet the image: names + Q -> V, the filtered name features (EVCap, arXiv 2311.15879, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evcap.config import Preset
from evcap.model.qformer import QFormer
from evcap.weights.wheels import MINILM_TOKENIZER

SEPARATOR = " [SEP] "
MAX_PIECES = 160  # word pieces kept of a joined name list, as in the EVCap release


@dataclass(frozen=True)
class Retrieved:
    """What was retrieved for B images: names, best first, and their word pieces, ids (B,L) int64 and mask (B,L) bool."""

    names: list[list[str]]
    ids: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> Retrieved:
        return Retrieved(self.names, self.ids.to(device), self.mask.to(device))


class NameEmbeddings(nn.Module):
    """BERT's input embeddings: word + position, LayerNorm. Names are all of token type 0, whose row is in the positions."""

    def __init__(self, vocab_size: int, width: int, eps: float, positions: int = 512):
        super().__init__()
        self.word = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B,L) int64 -> (B,L,W)."""
        return self.norm(self.word(ids) + self.position.weight[: ids.shape[1]])


class NameFusion(nn.Module):
    """T_obj and Q in one stream; only T_obj looks at the embedded names; its outputs are V."""

    def __init__(self, preset: Preset):
        super().__init__()
        config = preset.name_qformer
        self.embeddings = NameEmbeddings(preset.vocab_size, config.width, config.layer_norm_eps)
        self.qformer = QFormer(config, preset.name_queries, config.width, has_text_branch=True)

    def forward(self, retrieved: Retrieved, queries: torch.Tensor) -> torch.Tensor:
        """Names of B images and their Q (B,32,W) -> V (B,8,W)."""
        return self.qformer(self.embeddings(retrieved.ids), retrieved.mask, appended=queries)


class NameTokenizer:
    """BERT-uncased word pieces of name lists joined by [SEP]."""

    def __init__(self, tokenizer_json: str):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(tokenizer_json)
        self._tokenizer.enable_padding(pad_id=0)
        self._tokenizer.enable_truncation(MAX_PIECES)

    def __call__(self, names: Sequence[Sequence[str]]) -> Retrieved:
        """B lists of names. An empty list becomes [CLS] [SEP]."""
        rows = self._tokenizer.encode_batch([SEPARATOR.join(row) for row in names])
        ids = torch.tensor([row.ids for row in rows])
        return Retrieved(
            [list(row) for row in names], ids, torch.tensor([row.attention_mask for row in rows], dtype=torch.bool)
        )


def name_tokenizer() -> NameTokenizer:
    """BERT-uncased word pieces, from the MiniLM wheel."""
    return NameTokenizer(str(MINILM_TOKENIZER.locate()))
