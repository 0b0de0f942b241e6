"""Numbers recorded from the public DynRefer release with small random weights, reproduced through eval/check_parity.py."""

import json
import shutil

import pytest
import torch
from cli_tools import run_recipe
from places import GOLDEN
from safetensors.torch import load_file, save_file

from eval import check_parity
from evcap.parity.dynrefer.compare import compare_regions

CASES = {"boxes", "boxes_outside", "region", "hash", "views", "text", "roi", "align", "visual", "tag", "asl", "rtc"}
TEXTS = {"control_words", "caption_cleaning", "attribute_texts", "schedule", "groups"}


@pytest.fixture
def recording(tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(GOLDEN / "dynrefer", tmp_path / "recording")


def change(file, name, changed):
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    tensors[name] = changed(tensors[name])
    save_file(tensors, file)


def test_the_recording_is_reproduced():
    result = json.loads(run_recipe(check_parity.main, GOLDEN / "dynrefer").stdout)
    assert result["passed"] and not result["failed"] and set(result["cases"]) == CASES | TEXTS
    found = {name: value for case in result["cases"].values() for name, value in case.items()}
    assert result["compared"] == len(found) > 70
    for name, value in found.items():
        if isinstance(value, bool):
            assert value, name
        elif name.endswith(".dct"):
            assert value <= 1e-2, name
        else:
            assert value <= (0 if name.startswith(("boxes", "region.", "hash.", "views.boxes")) else 1e-4), name
    assert {"results.densecap", "results.ovad_map_percent"} <= set(result["not_covered"])


@pytest.mark.parametrize(
    ("weight", "seen_in"),
    [
        ("cvem_align.offset_mask.bias", ["align.offset_mask", "align.output", "visual.fused"]),
        ("cvem_align.value_proj.weight", ["align.value", "align.output", "visual.fused"]),
        ("cvem_mlp.2.bias", ["visual.fused"]),
        ("text_encoder.transformer.resblocks.1.attn.in_proj_bias", ["text.output", "state.clip_embeds"]),
        ("text_encoder.text_projection", ["text.output", "state.ov_embeds"]),
        ("tag_head.encoder.layer.0.output.dense.bias", ["tag.logits", "tag.loss_weighted", "tag.grad_x_v_weighted"]),
        ("attr_text_proj.weight", ["rtc.similarity", "rtc.two_ranks.loss_weighted_rank1"]),
        ("attr_t", ["rtc.loss_weighted", "rtc.two_ranks.grad_x_v_weighted_rank0"]),
    ],
)
def test_a_changed_weight_is_noticed(weight, seen_in, recording):
    change(recording / "state.safetensors", weight, lambda t: t + torch.linspace(0.1, 0.6, t.numel()).view_as(t))
    result = compare_regions(recording)
    assert not result["passed"] and set(seen_in) <= set(result["failed"])


@pytest.mark.parametrize(
    "name", ["boxes.in_view", "boxes.view_int", "region.mask_boxes", "hash.img1.bits", "hash.edge.ratios_v4", "views.boxes"]
)
def test_a_changed_number_is_noticed(name, recording):
    change(recording / "tensors.safetensors", name, lambda t: t + (torch.arange(t.numel()) == 0).view_as(t).to(t.dtype))
    result = compare_regions(recording)
    assert not result["passed"] and result["failed"][0] == name


def test_a_recording_of_another_method_is_refused(recording):
    meta = json.loads((recording / "meta.json").read_text())
    meta["constants"]["dcn"]["stride"] = 2
    (recording / "meta.json").write_text(json.dumps(meta))
    told = run_recipe(check_parity.main, recording, code=1)
    assert not told.stdout and "the recording has dcn.stride 2, evcap 1" in told.stderr


def test_a_missing_weight_is_told_in_one_line(recording):
    tensors = {k: v.clone() for k, v in load_file(recording / "state.safetensors").items() if k != "cvem_mlp.0.weight"}
    save_file(tensors, recording / "state.safetensors")
    told = run_recipe(check_parity.main, recording, code=1)
    assert "no tensor for 'view_fusion.mlp.0.weight'" in told.stderr and len(told.stderr.strip().splitlines()) == 1
