"""Losses of region heads: closed forms and loops; two processes against the halves of one, each with its own gradient."""

import math
import os
import subprocess
import sys

import pytest
import torch
from places import REPOSITORY
from region_pairs import SAME, SMALL, pairs

from evcap.regions.heads import RegionTextHead
from evcap.training.region_losses import asymmetric_loss, choice_loss, class_loss, region_text_loss


def test_the_asymmetric_loss_is_its_formula():
    logits, targets = torch.tensor([[0.4, -1.3], [2.0, -4.0]]), torch.tensor([[1, 0], [0, 0]])
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        n = min(1 - p + 0.05, 1.0)
        total += -math.log(p) * (1 - p) ** 2 if target else -math.log(n) * (1 - n) ** 3
    assert asymmetric_loss(logits, targets, gamma_negative=3, gamma_positive=2).item() == pytest.approx(total, rel=1e-5)


def test_a_wrong_tag_of_small_probability_costs_nothing_and_its_discount_has_no_gradient():
    assert asymmetric_loss(torch.tensor([[-3.0]]), torch.tensor([[0]])).item() == 0  # probability 0.047 < clip
    logits = torch.tensor([[1.0]], requires_grad=True)
    asymmetric_loss(logits, torch.tensor([[0]]), gamma_negative=7, clip=0.0).backward()
    p = 1 / (1 + math.exp(-1.0))
    assert logits.grad.item() == pytest.approx(p**7 * p, rel=1e-5)  # of -log(1 - p), times a constant p ** 7


def test_the_loss_of_a_head_that_says_nothing_is_known():
    """All scores 0: four regions with one matched and three other texts each."""
    head = RegionTextHead(6, 7, SMALL).eval()
    torch.nn.init.zeros_(head.score.weight)
    loss = region_text_loss(head, torch.randn(4, 3, 6), torch.randn(4, 7))
    assert loss.item() == pytest.approx(math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10)), rel=1e-6)


@pytest.mark.slow  # two processes
def test_two_processes_see_the_pairs_of_both(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(REPOSITORY / "tests" / "region_pairs.py"), str(tmp_path)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    head, regions, texts = pairs()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        own = slice(2 * rank, 2 * rank + 2)
        mine = regions[own].clone().requires_grad_()
        for names, numbers in (("loss", "gradient"), range(4)), (("shared", "shared gradient"), SAME):
            mine.grad, total = None, 0.0
            for region, text, first, second in (
                (regions, texts[own], range(4), range(own.start, own.stop)),
                (mine, texts, range(own.start, own.stop), range(4)),
            ):
                logits = head.logits(head(region, text))
                for i, row in enumerate(first):
                    for j, column in enumerate(second):
                        sign = 1 if numbers[row] == numbers[column] else -1
                        total = total + torch.log1p(torch.exp(-sign * logits[i, j])) / 4
            total.backward()
            torch.testing.assert_close(found[names[0]], total.detach())
            torch.testing.assert_close(found[names[1]], mine.grad)


@torch.no_grad()
def test_regions_with_the_same_text_match_it_too():
    head, regions, texts = pairs()
    logits, total = head.logits(head(regions, texts)), 0.0
    for i in range(4):
        for j in range(4):
            total += math.log1p(math.exp(-(1 if SAME[i] == SAME[j] else -1) * logits[i, j].item())) / 4
    assert region_text_loss(head, regions, texts, torch.tensor(SAME)).item() == pytest.approx(total, rel=1e-5)
    assert region_text_loss(head, regions, texts).item() != pytest.approx(total, rel=1e-3)
    each = region_text_loss(head, regions, texts, torch.arange(4) + 7)
    assert each.item() == pytest.approx(region_text_loss(head, regions, texts).item())


def test_the_class_loss_is_the_cross_entropy_of_scaled_scores():
    head, regions, names = pairs()
    labels = torch.tensor([2, 0, 3, 2])
    scores = (head(regions, names) * head.log_scale.exp()).tolist()
    total = sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(scores, labels.tolist(), strict=True))
    assert class_loss(head, regions, names, labels).item() == pytest.approx(total / 4, rel=1e-5)
    assert class_loss(head, regions[:0], names, labels[:0]).item() == 0  # where no set has classes


def test_the_choice_loss_sees_the_texts_of_its_own_region_alone():
    head, regions, texts = pairs()
    right, total = torch.tensor([1, 0]), 0.0
    for region, own, answer in zip(regions[:2], texts.split(2), right.tolist(), strict=True):
        row = (head(region[None], own)[0] * head.log_scale.exp()).tolist()
        total += math.log(sum(map(math.exp, row))) - row[answer]
    found = choice_loss(head, regions[:2], torch.stack(texts.split(2)), right)
    assert found.item() == pytest.approx(total / 2, rel=1e-5)
    assert choice_loss(head, regions[:0], texts.new_zeros(0, 11, texts.shape[1]), right[:0]).item() == 0
