"""CIDEr of single captions as a training reward (self-critical training, arXiv 1612.00563)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer

from evcap.text import plain_words


class _Corpus(list):
    """A few references that count as a whole training set: CiderScorer takes the set's size from len()."""

    def __init__(self, items, size: int):
        super().__init__(items)
        self.size = size

    def __len__(self) -> int:
        return self.size


class CiderReward:
    """pycocoevalcap's CIDEr with document frequencies counted once, over the references of the training set."""

    def __init__(self, references: Sequence[Sequence[str]]):
        corpus = CiderScorer()
        for row in references:
            corpus += (None, [_plain(r) for r in row])
        corpus.compute_doc_freq()
        self._frequency, self._size = corpus.document_frequency, len(references)

    def __call__(self, captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> torch.Tensor:
        """k captions of each of B pictures against their references -> (B,k) float32, 10 = perfect."""
        scorer = CiderScorer()
        for row, truth in zip(captions, references, strict=True):
            truth = [_plain(r) for r in truth]
            for caption in row:
                scorer += (_plain(caption), truth)
        scorer.document_frequency = self._frequency
        scorer.crefs = _Corpus(scorer.crefs, self._size)
        return torch.tensor(scorer.compute_cider(), dtype=torch.float32).view(len(captions), -1)


def _plain(caption: str) -> str:
    return " ".join(plain_words(caption))
