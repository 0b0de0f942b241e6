"""Checkpoints of the DynRefer release: what was trained in one file, the text tower in EVA-CLIP's, each tensor in its place."""

import pytest
import torch
from places import GOLDEN
from safetensors.torch import load_file
from torch import nn

from evcap.config import QFormerConfig
from evcap.errors import EvcapError
from evcap.regions.heads import RegionTextHead, TagHead
from evcap.regions.text_tower import build_text_tower
from evcap.regions.view_fusion import ViewFusion
from evcap.weights.dynrefer import our_name, read_dynrefer

HEAD = QFormerConfig(32, 2, 4, 128)
TEXT = {"width": 32, "layers": 2, "heads": 4, "context": 12, "vocabulary": 80, "features": 20}


@pytest.fixture
def parts() -> nn.ModuleDict:
    """At the sizes of the recording."""
    return nn.ModuleDict(
        {
            "view_fusion": ViewFusion(64, 3, 1),
            "tag_head": TagHead(48, 20, HEAD),
            "region_text_head": RegionTextHead(48, 20, HEAD),
            "text_tower": build_text_tower(**TEXT),
            "projection": nn.Linear(48, 24),
        }
    )


@pytest.fixture
def files(tmp_path):
    """A checkpoint as the release saves it, and EVA-CLIP's file with its image tower."""
    state = load_file(GOLDEN / "dynrefer" / "state.safetensors")
    trained = {k: v for k, v in state.items() if not k.startswith("text_encoder.")}
    trained |= {"t5_proj.weight": torch.ones(24, 48), "t5_proj.bias": torch.zeros(24)}
    torch.save({"model": trained, "optimizer": {}, "epoch": 4}, tmp_path / "checkpoint_4.pth")
    text = {k.replace("text_encoder.", "text."): v for k, v in state.items() if k.startswith("text_encoder.")}
    torch.save(text | {"visual.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "eva_clip.pt")
    return [tmp_path / "checkpoint_4.pth", tmp_path / "eva_clip.pt"], state


def test_every_tensor_finds_its_place(files, parts):
    sources, state = files
    placed = read_dynrefer(sources, parts.state_dict())
    parts.load_state_dict(placed.tensors)
    torch.testing.assert_close(parts["view_fusion"].align.offsets.weight, state["cvem_align.offset_mask.weight"])
    torch.testing.assert_close(parts["region_text_head"].bias, state["attr_b"])
    joined = state["text_encoder.transformer.resblocks.1.attn.in_proj_weight"]
    attention = parts["text_tower"].text_model.encoder.layers[1].self_attn
    torch.testing.assert_close(attention.k_proj.weight, joined[32:64])
    torch.testing.assert_close(parts["text_tower"].text_projection.weight.T, state["text_encoder.text_projection"])
    assert {"clip_embeds", "visual.cls_token", "text.logit_scale"} <= set(placed.left_out)
    assert (parts["projection"].weight == 1).all()


def test_a_file_of_the_other_language_model_has_no_projection(files, parts):
    with pytest.raises(EvcapError, match="no tensor for 'projection.weight'"):
        read_dynrefer(files[0], parts.state_dict(), "llm_proj")
    assert our_name("llm_proj.bias", "llm_proj") == "projection.bias" and our_name("llm_proj.bias") is None


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("text.transformer.resblocks.0.attn.in_proj_weight", (2, 32), r"is \(2, 32\), expected \(96, 32\)"),
        ("text.text_projection", (20, 32), r"is \(20, 32\), expected \(32, 20\)"),
        ("text.positional_embedding", (7, 32), r"is \(7, 32\), expected \(12, 32\)"),
    ],
)
def test_tensors_of_another_size_are_named(name, shape, said, files, parts):
    sources, _ = files
    text = torch.load(sources[1], weights_only=True)
    torch.save(text | {name: torch.zeros(shape)}, sources[1])
    with pytest.raises(EvcapError, match=said) as raised:
        read_dynrefer(sources, parts.state_dict())
    assert name in str(raised.value)


def test_the_text_tower_reads_up_to_the_end_token(parts):
    torch.manual_seed(0)
    ids = torch.tensor([[78, 5, 6, 79, 0, 0, 0, 0, 0, 0, 0, 0]])
    tower = parts["text_tower"]
    other = torch.where(torch.arange(12) > 3, 7, ids)
    torch.testing.assert_close(tower(ids).text_embeds, tower(other).text_embeds)
    assert not any(tensor.requires_grad for tensor in tower.parameters())
