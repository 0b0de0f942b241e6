"""The last blocks of a tower that pretraining adapts: where the tower is cut, what is trained, shipped and told from others."""

import dataclasses

import pytest
import torch
import yaml
from tiny import tiny_language
from tiny_run import config_for, here, world

from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.model.build import build_encoder
from evcap.model.evcap import EVCap, QueryEncoder, load_parts, trained_parts
from evcap.model.fingerprint import encoder_fingerprint
from evcap.model.towers import build_backbone
from evcap.weights.wheels import read_safetensors

EMBEDDED = load_preset("embedded")


def preset(first: int | None):
    return dataclasses.replace(EMBEDDED, vision=dataclasses.replace(EMBEDDED.vision, adapted_from=first))


def encoder(first: int | None, seed: int = 0) -> QueryEncoder:
    """Random weights; the same for the same seed, wherever the tower is cut."""
    torch.manual_seed(seed)
    return QueryEncoder(preset(first), build_backbone(preset(first).vision)).eval()


@torch.inference_mode()
@pytest.mark.parametrize(("first", "shape"), [(None, (81, 1280)), (1, (16, 144, 144)), (10, (88, 18, 18)), (15, (120, 18, 18))])
def test_both_parts_are_the_tower(first, shape):
    tower = encoder(first).backbone
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 288, 288)
    kept = tower.frozen(pixels)
    assert tuple(kept.shape[1:]) == shape == tower.frozen_shape(EMBEDDED.vision)
    torch.testing.assert_close(tower.adapted(kept), encoder(None).backbone(pixels))
    torch.testing.assert_close(tower(pixels), encoder(None).backbone(pixels))


def test_batch_norms_keep_their_statistics():
    tower = encoder(15).backbone.train()
    before = {name: value.clone() for name, value in tower.named_buffers()}
    tower(torch.randn(2, 3, 64, 64))
    assert before and all(torch.equal(value, before[name]) for name, value in tower.named_buffers())


@pytest.mark.parametrize("first", [0, -1, 24, 100])
def test_a_block_that_is_not_there(first):
    with pytest.raises(EvcapError, match=f"adapted_from is {first}"):
        build_encoder(preset(first), None)


def test_adapted_blocks_ship_and_tell_encoders_apart():
    plain, one, other = encoder(None), encoder(15), encoder(15)
    names = trained_parts(one).keys() - trained_parts(plain).keys()
    blocks = {name.split(".")[3] for name in names if "_blocks" in name}
    assert blocks == {str(n) for n in range(15, len(one.backbone.network._blocks))}
    assert {name.split(".")[2] for name in names} == {"_blocks", "_conv_head", "_bn1"}
    fingerprints = {encoder_fingerprint(model) for model in (plain, one, other)}
    assert len(fingerprints) == 2  # where the tower is cut tells too
    with torch.no_grad():
        other.backbone.network._blocks[15]._bn0.weight.add_(0.25)
    assert encoder_fingerprint(other) not in fingerprints
    load_parts(one, trained_parts(other), "a file")
    assert encoder_fingerprint(one) == encoder_fingerprint(other)
    with pytest.raises(EvcapError, match=r"a file: tensor 'backbone\.network\._blocks\.15\.\S+' .* is missing"):
        load_parts(one, trained_parts(plain), "a file")


def test_an_encoder_takes_its_part_of_a_whole_models_tensors():
    language = tiny_language(lora_rank=2)
    whole = EVCap(dataclasses.replace(preset(15), language=language.config), language, build_backbone(preset(15).vision))
    alone = encoder(15, seed=3)
    load_parts(alone, trained_parts(whole), "a file")
    assert encoder_fingerprint(alone) == encoder_fingerprint(whole)


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_pretraining_moves_the_blocks_at_their_own_rate(rate):
    adapted = world() / "adapted.yaml"
    adapted.write_text("base: preset.yaml\nname: adapted\nvision: {adapted_from: 20}\n")
    output = f"adapted-{rate}"
    config = config_for("pretrain", output, tower_rate=rate, zoom=0.5)
    settings = yaml.safe_load(config.read_text()) | {"preset": str(adapted), "start_from": None}
    config.write_text(yaml.safe_dump(settings))
    here("pretrain", config)
    tensors = read_safetensors(world() / output / "last.safetensors")
    fresh = trained_parts(build_encoder(load_preset(adapted), None))
    moved = {n for n, t in tensors.items() if n.startswith("backbone.") and not torch.equal(t, fresh[n].half())}
    assert moved == ({n for n in fresh if n.startswith("backbone.") and n.endswith(("weight", "bias"))} if rate else set())


def test_a_rate_without_blocks_to_adapt_is_refused():
    text = here("pretrain", config_for("pretrain", "no-blocks", tower_rate=1e-3), code=1)
    assert "need a preset with vision.adapted_from" in text
