"""The losses of pretraining: image and text in one space (BLIP-2, arXiv 2301.12597, section 3.2), words, classes."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from evcap.language.sentences import content_words


def info_nce(similarity: torch.Tensor, count: int, temperature: float = 0.07) -> torch.Tensor:
    """Similarity (B, B*count + m): row b's own texts are b*count ..., the last m belong to no row; contrast both ways."""
    logits = similarity / temperature
    owner = torch.arange(len(logits), device=logits.device).repeat_interleave(count)
    column = torch.arange(len(owner), device=logits.device)
    to_text = nn.functional.log_softmax(logits, dim=1)[owner, column]
    to_image = nn.functional.log_softmax(logits[:, : len(owner)], dim=0)[owner, column]
    return -(to_text.mean() + to_image.mean()) / 2


def word_loss(singles: torch.Tensor, mean: torch.Tensor, words: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which words do the captions say? Sigmoid loss on cosines, for the best query and for the mean of all queries.

    singles (B,32,W), mean (B,W), words (w,W) of unit length; targets (B,w): 1 said, 0 not said, -1 not counted. The
    constants put a cosine of 0 at the base rate of a word; the mean of unlike queries cannot come as close as one of them.
    """
    total = 0.0
    for logits in (20 * ((singles @ words.T).amax(1) - 0.3), 30 * (mean @ words.T - 0.2)):
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets.clamp_min(0), reduction="none")
        total = total + (loss * (targets >= 0)).sum() / (targets > 0).sum().clamp_min(1)
    return total / 2


def similarity_penalty(singles: torch.Tensor, allowed: float = 0.4) -> torch.Tensor:
    """Penalty on queries of one image that all say the same: their mean pairwise cosine above `allowed`."""
    count = singles.shape[1]
    mean = (singles.sum(1).square().sum(-1) - count) / (count * (count - 1))
    return nn.functional.relu(mean - allowed).mean()


def word_targets(captions: list[list[str]], least: int = 8) -> tuple[list[str], torch.Tensor]:
    """Words said in at least `least` images, and targets (N,w) int8: 1 two captions or more, -1 one, 0 none."""
    said = [Counter(w for c in row for w in set(content_words(c))) for row in captions]
    pictures = Counter(w for counts in said for w in counts)
    words = sorted(w for w, n in pictures.items() if n >= least)
    place = {w: i for i, w in enumerate(words)}
    targets = torch.zeros(len(captions), len(words), dtype=torch.int8)
    for row, counts in enumerate(said):
        for word, count in counts.items():
            if word in place:
                targets[row, place[word]] = 1 if count > 1 else -1
    return words, targets


def class_loss(singles: torch.Tensor, mean: torch.Tensor, names: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Which class does the tower's own classifier see? Divergence from its probabilities, for the best query and the mean.

    singles (B,32,W), mean (B,W), names (n,W) of unit length: the classes' names; teacher (B,n): rows sum to 1. So query
    features keep what the tower knows of things that captions seldom say (distillation: Hinton et al. 2015, arXiv 1503.02531).
    """
    total = 0.0
    for logits in (20 * (singles @ names.T).amax(1), 25 * (mean @ names.T)):
        total = total + nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean")
    return total / 2
