"""The losses of region heads: tags by an asymmetric loss, texts by a sigmoid contrast over all processes (DynRefer)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import nn

if TYPE_CHECKING:
    from evcap.regions.heads import RegionTextHead

TAG_WEIGHT, TEXT_WEIGHT = 0.01, 0.5  # beside the caption loss; the first goes with a sum over batches of 64


def asymmetric_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma_negative: float = 7.0,
    gamma_positive: float = 0.0,
    clip: float = 0.05,
    least: float = 1e-8,
) -> torch.Tensor:
    """Logits (R,T), targets (R,T) 1 or 0 -> the sum of cross-entropies, easy ones discounted (ASL, arXiv 2009.14119).

    clip: probability up to which a wrong tag costs nothing. The discount, (1 - p of the truth) ** gamma, has no gradient.
    least: what a logarithm sees at least.
    """
    positive = logits.sigmoid()
    negative = (1 - positive + clip).clamp(max=1)
    holds = targets > 0
    truth = torch.where(holds, positive, negative)
    with torch.no_grad():
        discount = torch.where(holds, (1 - truth) ** gamma_positive, (1 - truth) ** gamma_negative)
    return -(discount * truth.clamp(min=least).log()).sum()


def region_text_loss(
    head: RegionTextHead, regions: torch.Tensor, texts: torch.Tensor, same: torch.Tensor | None = None
) -> torch.Tensor:
    """Query features of regions (B,Q,W) and the features of each one's text (B,E) -> sigmoid loss over all pairs, per region.

    The mean of two directions: the regions of all processes with this one's texts, and this one's regions with all texts. What
    is gathered is a constant, this process's own part of it too, as in the release. Every process has the same B.
    same: (B,) int64, equal where texts are: such pairs match, too. Without it each region matches its own text alone.
    """
    state = PartialState()
    same = torch.arange(len(texts), device=texts.device) + state.process_index * len(texts) if same is None else same
    if state.num_processes == 1:  # both directions are one
        return -_agreement(head, regions, texts, _equal(same, same)) / len(regions)
    with torch.no_grad():
        gathered = gather(regions.contiguous()), gather(texts.contiguous())
        everywhere = gather(same)
    matched = _equal(everywhere, same), _equal(same, everywhere)
    return two_way_loss(head, regions, texts, *gathered, *matched)


def _equal(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first[:, None] == second).float()


def two_way_loss(
    head: RegionTextHead,
    regions: torch.Tensor,
    texts: torch.Tensor,
    all_regions: torch.Tensor,
    all_texts: torch.Tensor,
    by_text: torch.Tensor,
    by_region: torch.Tensor,
) -> torch.Tensor:
    """`region_text_loss` of one process, given what all of them have: regions (N,Q,W) and texts (N,E), and which pairs match,
    1 or 0: all regions with this one's texts (N,B), this one's regions with all texts (B,N)."""
    both = _agreement(head, all_regions, texts, by_text) + _agreement(head, regions, all_texts, by_region)
    return -both / (2 * len(regions))


def _agreement(head: RegionTextHead, regions: torch.Tensor, texts: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Sum of log-probabilities that each pair of a region and a text is what it is: matched, 1, or not, 0."""
    return nn.functional.logsigmoid((2 * matched - 1) * head.logits(head(regions, texts).float())).sum()


def class_loss(head: RegionTextHead, regions: torch.Tensor, names: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Query features (R,Q,W), features (C,E) of the names of all classes, labels (R,) int64 -> mean cross-entropy of the scores
    by which classes are told apart afterwards, 0 of no region. Not of the release, whose batches are large enough to hold most
    classes."""
    logits = head(regions, names).float() * head.log_scale.exp()
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))


def choice_loss(head: RegionTextHead, regions: torch.Tensor, texts: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Query features (R,Q,W), features (R,A,E) of A texts of each region, of which the one `right` (R,) int64 holds -> mean
    cross-entropy of the scores, 0 of no region. Texts that differ in one word are alike to a contrast with other regions'."""
    if not len(right):
        return texts.new_zeros(())
    own = torch.arange(len(right), device=right.device)
    scores = head(regions, texts.flatten(0, 1)).unflatten(1, texts.shape[:2])[own, own]  # few regions: all pairs cost little
    return nn.functional.cross_entropy(scores.float() * head.log_scale.exp(), right)
