"""BLIP-2's tensors out of LAVIS' and transformers' files, against transformers' own classes and a tower written out."""

import json

import pytest
import torch
from lavis_files import bert_shapes, lavis_qformer, lavis_tower, small_paper_preset, tower_shapes, tower_written_out
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Blip2Config, Blip2QFormerModel, Blip2VisionModel

from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.model.build import skeleton
from evcap.model.evcap import EVCap
from evcap.model.towers import build_backbone
from evcap.weights.blip2 import frozen_tensors, load_blip2, our_name, read_blip2, reason_to_leave_out, renamed, to_transformers


@pytest.fixture(scope="module")
def preset():
    return small_paper_preset()


@pytest.fixture
def files(preset, tmp_path):
    """eva_vit_g.pth and blip2_pretrained.pth in LAVIS' form."""
    torch.save(lavis_tower(preset), tmp_path / "eva_vit_g.pth")
    torch.save({"model": lavis_qformer(preset), "epoch": 3}, tmp_path / "blip2_pretrained.pth")
    return [tmp_path / "eva_vit_g.pth", tmp_path / "blip2_pretrained.pth"]


def model_of(preset, sources) -> EVCap:
    with torch.device("meta"):
        backbone = build_backbone(preset.vision)
    model = EVCap(preset, nn.Identity(), backbone)
    load_blip2(model, sources, torch.float32)
    return model.eval()


@torch.no_grad()
def outputs(model: EVCap, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    patches = model.backbone(pixels)
    return patches, model.query_features(patches)


@torch.no_grad()
def test_lavis_files_give_lavis_outputs(preset, files):
    """The tower as written out from LAVIS' names, the Q-Former as transformers computes it."""
    pixels = torch.randn(2, 3, 28, 28)
    patches, queries = outputs(model_of(preset, files), pixels)
    state = lavis_qformer(preset)
    tower = tower_written_out(lavis_tower(preset), pixels, preset.vision.depth, preset.vision.heads)
    expected = nn.functional.layer_norm(tower, (32,), state["ln_vision.weight"], state["ln_vision.bias"], 1e-5)
    torch.testing.assert_close(patches, expected, atol=2e-5, rtol=1e-5)
    qformer = Blip2QFormerModel(blip2_config(preset).qformer_config).eval()
    theirs = {}
    for name in qformer.state_dict():
        old = name.replace("attention.attention", "attention.self")
        old = old.replace("layernorm.", "embeddings.LayerNorm.") if old.startswith("layernorm") else old
        theirs[name] = state[f"Qformer.bert.{old}"]
    qformer.load_state_dict(theirs)
    expected = qformer(query_embeds=state["query_tokens"].expand(2, -1, -1), encoder_hidden_states=patches)
    torch.testing.assert_close(queries, expected.last_hidden_state, atol=2e-5, rtol=1e-5)


def blip2_config(preset) -> Blip2Config:
    from data.convert_weights import transformers_config

    return Blip2Config(**transformers_config(preset))


@torch.no_grad()
def test_round_trip_through_our_file_and_a_folder_of_transformers(preset, files, tmp_path):
    pixels = torch.randn(2, 3, 28, 28)
    wanted = frozen_tensors(skeleton(preset))
    save_file(read_blip2(files, wanted).tensors, tmp_path / "ours.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(to_transformers(read_blip2([tmp_path / "ours.safetensors"], wanted).tensors), folder / "model.safetensors")
    first = outputs(model_of(preset, files), pixels)
    for sources in ([tmp_path / "ours.safetensors"], [folder]):
        for a, b in zip(first, outputs(model_of(preset, sources), pixels), strict=True):
            assert torch.equal(a, b)
    # and transformers itself takes the folder's tensors, all of them, and sees the same
    tensors = load_file(folder / "model.safetensors")
    tower = Blip2VisionModel(blip2_config(preset).vision_config).eval()
    tower.load_state_dict({k.removeprefix("vision_model."): v for k, v in tensors.items() if k.startswith("vision_model.")})
    tower.post_layernorm.eps = 1e-5
    assert torch.equal(tower(pixels).last_hidden_state, first[0])
    qformer = Blip2QFormerModel(blip2_config(preset).qformer_config)
    qformer.load_state_dict({k.removeprefix("qformer."): v for k, v in tensors.items() if k.startswith("qformer.")})
    rest = {k for k in tensors if not k.startswith(("vision_model.", "qformer."))}
    assert rest == {"query_tokens"}


def test_only_the_shards_that_hold_something_are_opened(preset, files, tmp_path):
    """A folder as transformers writes it: two shards of BLIP-2, one of a language model that is not even there."""
    tensors = to_transformers(read_blip2(files, frozen_tensors(skeleton(preset))).tensors)
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n].contiguous() for n in part}, tmp_path / f"model-{number}.safetensors")
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    places |= {"language_model.lm_head.weight": "model-2.safetensors", "language_projection.weight": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    placed = read_blip2([tmp_path], frozen_tensors(skeleton(preset)))
    assert set(placed.left_out) == {"language_model.lm_head.weight", "language_projection.weight"}
    assert set(placed.tensors) == set(frozen_tensors(skeleton(preset)))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(EvcapError, match="lacks model-1.safetensors, which model.safetensors.index.json names"):
        read_blip2([tmp_path], frozen_tensors(skeleton(preset)))


def test_what_is_left_out_says_why(preset, files):
    left_out = read_blip2(files, frozen_tensors(skeleton(preset))).left_out
    assert left_out["blocks.3.attn.q_bias"] == "a block behind the last that BLIP-2 reads"
    assert left_out["Qformer.bert.encoder.layer.1.intermediate.dense.weight"] == "text branch of the Q-Former"
    assert left_out["Qformer.cls.predictions.bias"] == left_out["itm_head.weight"] == "a head of pretraining"
    assert left_out["t5_proj.bias"] == "projection into another language model"
    assert "not known to evcap" not in left_out.values()
    assert reason_to_leave_out("something.else") == "not known to evcap"


def test_the_first_of_two_sources_counts(preset, files, tmp_path):
    """A file of ours with other numbers beside LAVIS' two, whose tower has its biases in two parts."""
    wanted = frozen_tensors(skeleton(preset))
    lavis = read_blip2(files, wanted)
    save_file({name: tensor + 1 for name, tensor in lavis.tensors.items()}, tmp_path / "other.safetensors")
    other = load_file(tmp_path / "other.safetensors")
    first, last = (
        read_blip2(sources, wanted)
        for sources in ([*files, tmp_path / "other.safetensors"], [tmp_path / "other.safetensors", *files])
    )
    for placed, expected in ((first, lavis.tensors), (last, other)):
        assert placed.tensors.keys() == expected.keys() == wanted.keys()
        assert all(torch.equal(placed.tensors[name], tensor) for name, tensor in expected.items())
    assert set(first.left_out.items()) == set(lavis.left_out.items()) | {(n, "an earlier source has it") for n in wanted}
    assert last.left_out["query_tokens"] == last.left_out["blocks.0.attn.v_bias"] == "an earlier source has it"
    assert last.left_out["blocks.3.attn.q_bias"] == "a block behind the last that BLIP-2 reads"


def test_missing_and_misshapen_tensors_are_named(preset, files, tmp_path):
    wanted = frozen_tensors(skeleton(preset))
    with pytest.raises(EvcapError, match=r"no tensor for 'backbone\..*' \(1, 1, 32\); LAVIS keeps the image tower in"):
        read_blip2(files[1:], wanted)
    tower = lavis_tower(preset)
    torch.save(tower | {"blocks.1.mlp.fc1.weight": torch.zeros(48, 31)}, files[0])
    with pytest.raises(EvcapError, match=r"eva_vit_g.pth: tensor 'blocks.1.mlp.fc1.weight' is \(48, 31\), expected \(48, 32\)"):
        read_blip2(files, wanted)
    del tower["blocks.2.attn.v_bias"]
    torch.save(tower, files[0])
    with pytest.raises(EvcapError, match="no v_bias beside it"):
        read_blip2(files, wanted)


# -- the paper's size, names and shapes only


def paper_tower() -> dict[str, tuple[int, ...]]:
    return tower_shapes(1408, 39, 6144, 224, 14)


def test_the_releases_tower_is_counted():
    """The sizes that the facts about the release give: 511 tensors, 985,894,528 numbers."""
    shapes = paper_tower()
    assert len(shapes) == 511
    assert sum(torch.Size(s).numel() for s in shapes.values()) == 985_894_528


@pytest.fixture(scope="module")
def paper():
    preset = load_preset("evcap-vicuna-13b")
    return {name: tuple(t.shape) for name, t in frozen_tensors(skeleton(preset)).items()}


def test_every_tensor_of_lavis_layout_finds_its_place(paper):
    shapes = {f"visual_encoder.{k}": s for k, s in paper_tower().items()}
    shapes |= {"ln_vision.weight": (1408,), "ln_vision.bias": (1408,), "query_tokens": (1, 32, 768)}
    shapes |= bert_shapes("Qformer", 768, 12, 3072, 2, 1408)
    placed, left = {}, []
    for name, shape in shapes.items():
        ours = our_name(name)
        if ours is None:
            left.append(name)
        else:
            placed[ours] = shape
    assert left and all(reason_to_leave_out(name) == "text branch of the Q-Former" for name in left)
    for name in [n for n in placed if n.endswith("q_bias")]:
        (width,), _ = placed.pop(name), placed.pop(name.replace("q_bias", "v_bias"))
        placed[name.replace("q_bias", "qkv.bias")] = (3 * width,)
    assert placed == paper


def test_every_tensor_of_transformers_layout_finds_its_place(paper):
    config = Blip2Config()
    with torch.device("meta"):
        parts = {"vision_model": Blip2VisionModel(config.vision_config), "qformer": Blip2QFormerModel(config.qformer_config)}
    shapes = {f"{p}.{k}": tuple(v.shape) for p, module in parts.items() for k, v in module.state_dict().items()}
    shapes["query_tokens"] = (1, 32, 768)
    assert sum(torch.Size(s).numel() for k, s in shapes.items() if k.startswith("vision_model.")) == 985_952_256
    assert {our_name(k): s for k, s in shapes.items()} == paper
    assert {k for k in to_transformers({our_name(k): torch.empty(0) for k in shapes})} == set(shapes)


def test_names_of_no_layout():
    assert renamed("a.1.b", {"a.{n}.": "c.{n}."}) == "c.1.b"
    assert renamed("ab.1.b", {"a": "c"}) is None
    assert our_name("lm_head.weight") is None
