"""data/convert_weights.py dynrefer through its entry point: a checkpoint of the release's layout becomes a region model's."""

import dataclasses

import pytest
import torch
import yaml
from lavis_files import lavis_qformer, small_paper_preset
from places import GOLDEN
from safetensors.torch import load_file
from tiny import tiny_language
from typer.testing import CliRunner

from data.convert_weights import app
from evcap.config import QFormerConfig, load_preset
from evcap.model.evcap import QueryEncoder
from evcap.model.towers import build_backbone
from evcap.regions import model as region_model
from evcap.regions.model import open_regions
from evcap.regions.text_tower import build_text_tower

LAYOUTS = {"dynrefer-flan-t5-xl": "t5_proj", "dynrefer-vicuna-7b": "llm_proj"}


@pytest.fixture(autouse=True)
def small_text_tower(monkeypatch):
    """Of the recording's size."""
    small = {"width": 32, "layers": 2, "heads": 4, "context": 12, "vocabulary": 80, "features": 20}
    monkeypatch.setattr(region_model, "build_text_tower", lambda: build_text_tower(**small))


@pytest.fixture(params=LAYOUTS)
def preset(request, tmp_path):
    """A shipped preset at the sizes of the recording."""
    shipped, paper = load_preset(request.param), small_paper_preset()
    found = dataclasses.replace(
        shipped,
        vision=dataclasses.replace(paper.vision, width=64, tokens=37, image_size=84),
        image_qformer=QFormerConfig(width=48, layers=4, heads=4, intermediate=96),
        image_queries=6,
        language=dataclasses.replace(shipped.language, hidden=32),
        regions=dataclasses.replace(shipped.regions, text_width=20, head=QFormerConfig(32, 2, 4, 128)),
    )
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(dataclasses.asdict(found)))
    return found


@pytest.fixture
def sources(preset, tmp_path):
    """What was trained, EVA-CLIP's text tower, and BLIP-2, in three files; and all their tensors."""
    state, blip2 = load_file(GOLDEN / "dynrefer" / "state.safetensors"), lavis_qformer(preset)
    trained = {k: v for k, v in state.items() if not k.startswith("text_encoder.")}
    trained |= {k: v + 1 for k, v in blip2.items() if k.startswith("Qformer.bert.encoder")}
    projection = LAYOUTS[preset.name]
    trained |= {f"{projection}.weight": torch.randn(32, 48), f"{projection}.bias": torch.randn(32)}
    if preset.regions.control_vector:
        trained["cem_memory"] = torch.randn(32)
    text = {k.replace("text_encoder.", "text."): v for k, v in state.items() if k.startswith("text_encoder.")}
    paths = [tmp_path / name for name in ("checkpoint_4.pth", "eva_clip_psz14.pt", "blip2_pretrained.pth")]
    for path, content in zip(paths, ({"model": trained, "epoch": 4}, text, {"model": blip2}), strict=True):
        torch.save(content, path)
    return paths, blip2 | text | trained


def convert(*arguments):
    result = CliRunner().invoke(app, ["dynrefer", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_tensors_land_in_the_region_model(preset, sources, tmp_path):
    paths, theirs = sources
    output = tmp_path / "regions.safetensors"
    code, out, err = convert(*paths, "--output", output, "--preset", tmp_path / "small.yaml")
    assert code == 0 and f"wrote {output}" in out, err
    encoder = QueryEncoder(preset, build_backbone(preset.vision))
    model = open_regions(encoder, tiny_language(before="", after=""), output)
    found, projection = model.trained(), LAYOUTS[preset.name]
    for ours, name in {
        "view_fusion.align.value.weight": "cvem_align.value_proj.weight",
        "view_fusion.mlp.2.bias": "cvem_mlp.2.bias",
        "tag_head.score.weight": "tag_fc.weight",
        "region_text_head.log_scale": "attr_t",
        "image_qformer.queries": "query_tokens",
        "image_qformer.layers.0.self_attention.query.weight": "Qformer.bert.encoder.layer.0.attention.self.query.weight",
        "text_tower.text_model.final_layer_norm.bias": "text.ln_final.bias",
        "projection.weight": f"{projection}.weight",
        "projection.bias": f"{projection}.bias",
    }.items():
        torch.testing.assert_close(found[ours].flatten(), theirs[name].flatten(), msg=ours)
    assert ("control_embedding" in found) == preset.regions.control_vector
    if preset.regions.control_vector:
        torch.testing.assert_close(found["control_embedding"].flatten(), theirs["cem_memory"].flatten())


def test_a_file_that_is_missing_among_them_is_told_in_one_line(sources, tmp_path):
    output = tmp_path / "regions.safetensors"
    for left, name in enumerate(["", "text_tower.", "image_qformer.queries"]):
        given = [path for place, path in enumerate(sources[0]) if place != left]
        code, out, err = convert(*given, "--output", output, "--preset", tmp_path / "small.yaml")
        assert code == 1 and not out and f"no tensor for '{name}" in err and len(err.strip().splitlines()) == 1
    assert not output.exists()


def test_a_preset_without_regions_is_refused(sources, tmp_path):
    code, _, err = convert(*sources[0], "--output", tmp_path / "regions.safetensors", "--preset", "blip2-flan-t5-xl")
    assert code == 1 and "says nothing of regions" in err
