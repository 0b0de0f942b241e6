"""LoRA: starts as the identity, merges into the weights, and alone of the language model is trained and saved."""

import torch
from tiny import tiny_evcap, tiny_llm

from evcap.language.lora import LoraLinear, add_lora, merge_lora, plain_twin
from evcap.model.evcap import load_parts, trained_parts

IDS = torch.arange(3, 15).view(2, 6)
LAYERS, TARGETS = 2, 7


def adapters(model):
    return {n: p for n, p in model.named_parameters() if n.endswith((".down", ".up"))}


def shake(model, seed=1):
    """Give every adapter a product that is not zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters(model).values():
            parameter.normal_(std=0.2)


@torch.no_grad()
def test_fresh_adapters_change_nothing():
    llm = tiny_llm()
    before = llm(IDS).logits
    add_lora(llm, 4, 32.0)
    assert torch.equal(llm(IDS).logits, before)


@torch.no_grad()
def test_adapter_adds_the_scaled_low_rank_product():
    base = torch.nn.Linear(5, 7)
    lora = LoraLinear(base, rank=2, alpha=6.0)
    lora.up.normal_()
    x = torch.randn(3, 5)
    expected = base(x) + 3.0 * (x @ lora.down.T @ lora.up.T)
    torch.testing.assert_close(lora(x), expected)


@torch.no_grad()
def test_merged_equals_wrapped():
    llm = tiny_llm()
    plain = llm(IDS).logits
    add_lora(llm, 4, 32.0)
    shake(llm)
    wrapped = llm(IDS).logits
    assert (wrapped - plain).abs().max() > 0.1  # the adapters do something, or the test would show nothing
    merge_lora(llm)
    assert not any(isinstance(m, LoraLinear) for m in llm.modules())
    torch.testing.assert_close(llm(IDS).logits, wrapped, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_merge_into_bfloat16_keeps_the_opinion():
    llm = tiny_llm(spread=0.1)
    add_lora(llm, 4, 8.0)
    shake(llm)
    wrapped = llm(IDS).logits.log_softmax(-1)
    llm.to(torch.bfloat16)
    merge_lora(llm)
    merged = llm(IDS).logits.float().log_softmax(-1)
    assert (wrapped.exp() * (wrapped - merged)).sum(-1).max() < 0.01  # KL divergence in nats; weights have 8 bits


@torch.no_grad()
def test_the_plain_twin_answers_as_before_over_the_same_tensors():
    llm = tiny_llm()
    plain = llm(IDS).logits
    add_lora(llm, 4, 32.0)
    shake(llm)
    wrapped, twin = llm(IDS).logits, plain_twin(llm)
    assert torch.equal(twin(IDS).logits, plain)
    assert torch.equal(llm(IDS).logits, wrapped)
    assert {p.data_ptr() for p in twin.parameters()} <= {p.data_ptr() for p in llm.parameters()}
    llm.model.layers[0].mlp.up_proj.base.weight.zero_()  # one weight, whoever looks
    assert (twin(IDS).logits - plain).abs().max() > 0.01


def test_every_projection_of_every_layer_is_wrapped():
    llm = tiny_llm()
    add_lora(llm, 4, 32.0)
    assert sum(isinstance(m, LoraLinear) for m in llm.modules()) == LAYERS * TARGETS
    assert not isinstance(llm.lm_head, LoraLinear)


def test_trained_parts_hold_exactly_the_adapters_of_the_language_model():
    model = tiny_evcap(lora_rank=2)
    saved = {n for n in trained_parts(model) if n.startswith("language.")}
    assert saved == {f"language.{n}" for n in adapters(model.language)}
    assert len(saved) == LAYERS * TARGETS * 2
    assert {p for n, p in model.language.named_parameters() if p.requires_grad} == set(adapters(model.language).values())


def test_trained_parts_are_all_that_a_second_model_needs():
    first, second = tiny_evcap(seed=0), tiny_evcap(seed=5)
    shake(first)
    second.language.llm.load_state_dict(first.language.llm.state_dict() | trained_language(second))
    second.fusion.embeddings.load_state_dict(first.fusion.embeddings.state_dict())
    load_parts(second, trained_parts(first), "test")
    for (name, mine), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def trained_language(model):
    return {k: v for k, v in model.language.llm.state_dict().items() if k.endswith((".down", ".up"))}
