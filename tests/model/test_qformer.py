"""The Q-Former against transformers' BLIP-2 layers and against loops written out from the description in the paper."""

import dataclasses
import math

import pytest
import torch
from qformer_reference import randomise, to_blip2, written_out
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from evcap.config import QFormerConfig
from evcap.model.qformer import QFormer

SMALL = QFormerConfig(width=24, layers=4, heads=3, intermediate=40, cross_attention_every=2)
CONTEXT = 20


def make(has_text_branch=False, **changes) -> QFormer:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **changes)
    return randomise(QFormer(config, queries=5, context_width=CONTEXT, has_text_branch=has_text_branch)).eval()


@pytest.fixture
def context():
    torch.manual_seed(1)
    return torch.randn(3, 7, CONTEXT)


@pytest.fixture
def appended():
    torch.manual_seed(2)
    return torch.randn(3, 6, SMALL.width)


MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False, True] * 3 + [False]])


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("eps", [1e-12, 1e-3])
def test_equals_transformers_blip2_qformer(context, every, eps):
    ours = make(cross_attention_every=every, layer_norm_eps=eps)
    blip2 = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=SMALL.width,
            num_hidden_layers=SMALL.layers,
            num_attention_heads=SMALL.heads,
            intermediate_size=SMALL.intermediate,
            cross_attention_frequency=every,
            encoder_hidden_size=CONTEXT,
            layer_norm_eps=eps,
        )
    ).eval()
    blip2.load_state_dict(to_blip2(ours), strict=True)
    queries = ours.queries.expand(len(context), -1, -1)
    expected = blip2(query_embeds=queries, encoder_hidden_states=context, encoder_attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(ours(context, MASK), expected, atol=1e-5, rtol=1e-5)
    expected = blip2(query_embeds=queries, encoder_hidden_states=context).last_hidden_state
    torch.testing.assert_close(ours(context), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("with_guests", [False, True])
def test_equals_loops_over_heads_and_positions(context, appended, every, mask, with_guests):
    ours = make(with_guests, cross_attention_every=every)
    riders = appended if with_guests else None
    expected = written_out(ours, context, mask, riders)
    torch.testing.assert_close(ours(context, mask, riders), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masked_context_has_no_influence(context):
    ours = make()
    changed = torch.where(MASK[..., None], context, torch.full_like(context, 50.0))
    torch.testing.assert_close(ours(changed, MASK), ours(context, MASK), atol=0, rtol=0)
    assert not torch.allclose(ours(changed)[1], ours(context)[1])


@torch.no_grad()
def test_a_mask_that_hides_nothing_changes_nothing(context):
    ours = make()
    everything = torch.ones(3, 7, dtype=torch.bool)
    torch.testing.assert_close(ours(context, everything), ours(context), atol=0, rtol=0)


@torch.no_grad()
def test_a_mask_that_hides_everything_gives_no_nan(context):
    assert make()(context, torch.zeros(3, 7, dtype=torch.bool)).isfinite().all()


@torch.no_grad()
def test_pictures_of_a_batch_are_independent(context, appended):
    for with_guests in (False, True):
        ours = make(with_guests)
        together = ours(context, MASK, appended if with_guests else None)
        for n in range(3):
            alone = ours(context[n : n + 1], MASK[n : n + 1], appended[n : n + 1] if with_guests else None)
            torch.testing.assert_close(alone[0], together[n], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_context_is_a_set(context):
    ours, order = make(), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(ours(context[:, order]), ours(context), atol=1e-5, rtol=1e-5)


def test_every_parameter_is_trained(context, appended):
    """Nothing is carried along that no output depends on; key biases alone cannot matter: softmax ignores them."""
    for with_guests in (False, True):
        ours = make(with_guests)
        ours(context, MASK, appended if with_guests else None).square().sum().backward()
        idle = [n for n, p in ours.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9]
        assert [n for n in idle if not n.endswith("key.bias")] == []


def test_dropout_acts_in_training_only(context):
    ours = make(dropout=0.3)
    assert torch.equal(ours(context), ours(context))
    ours.train()
    assert not torch.allclose(ours(context), ours(context))


@torch.no_grad()
def test_attention_map_of_one_layer(context):
    ours = make(layers=1)
    attention = ours.layers[0].cross_attention
    stream = ours.layers[0].self_attention(*[ours.query_norm(ours.queries)] * 2)
    for picture in range(3):
        expected = torch.zeros(5, 7)
        query, key = attention.query(stream[0]), attention.key(context[picture])
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            expected += (query[:, part] @ key[:, part].T / math.sqrt(8)).softmax(-1) / 3
        torch.testing.assert_close(ours.attention_map(context)[picture], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_attention_map_is_a_distribution_over_the_context(context, every):
    maps = make(cross_attention_every=every).attention_map(context)
    assert maps.shape == (3, 5, 7) and (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 5))


def test_fresh_weights_are_berts():
    torch.manual_seed(0)
    fresh = QFormer(dataclasses.replace(SMALL, width=96), 32, 96)
    assert abs(fresh.queries.std().item() - 0.02) < 0.002
    assert abs(fresh.layers[0].self_attention.query.weight.std().item() - 0.02) < 0.001
    assert (fresh.layers[0].self_attention.query.bias == 0).all()
