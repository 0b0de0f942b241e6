"""data/convert_weights.py through its entry point, on small files in the real layouts; and the model that comes of them."""

import pickle
from pathlib import Path

import pytest
import torch
import yaml
from lavis_files import lavis_qformer, lavis_tower, release_tensors, small_paper_preset, write_paper_files
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from data.convert_weights import app
from evcap.captioner import Captioner
from evcap.model.name_fusion import NameEmbeddings


def convert(*arguments) -> tuple[int, str, str]:
    """The command inside this process: importing torch anew takes longer than all it does here."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """LAVIS' two files, the release's checkpoint and fusion, BERT, a language model, and a preset that names them."""
    folder = tmp_path_factory.mktemp("weights")
    write_paper_files(folder, str(folder))
    torch.save({"model": release_tensors(small_paper_preset()), "epoch": 0}, folder / "000.pt")
    return folder


@pytest.fixture(scope="module")
def sources(folder) -> list[Path]:
    return [folder / "eva_vit_g.pth", folder / "blip2_pretrained.pth"]


def test_check_lists_what_is_taken_and_what_is_left_out(folder, sources):
    code, out, _ = convert("check", *sources, "--preset", folder / "preset.yaml")
    assert code == 0
    assert "a block behind the last that BLIP-2 reads" in out and "text branch of the Q-Former" in out
    tower = sum(t.numel() for k, t in lavis_tower(small_paper_preset(), blocks_more=0).items()) + 2 * 32 + 3 * 32
    assert f"{tower:,}" in out  # with ln_vision, and key biases of zero


def test_check_names_what_lacks(folder, sources):
    code, out, err = convert("check", sources[1], "--preset", folder / "preset.yaml")
    assert code == 1 and not out
    assert "eva_vit_g.pth" in err and len(err.strip().splitlines()) == 1


def test_release_and_captions_from_lavis_files(folder, sources):
    """000.pt, the pickled memory and BLIP-2's files become a captioner; the same through the converted files."""
    preset = folder / "preset.yaml"
    assert convert("release", folder / "000.pt", "--output", folder / "trained.safetensors", "--preset", preset)[0] == 0
    assert convert("blip2", *sources, "--output", folder / "blip2.safetensors", "--preset", preset)[0] == 0
    assert convert("blip2", *sources, "--output", folder / "blip2", "--preset", preset)[0] == 0
    pickled = (torch.randn(3, 24), ["Frisbee!", "teddy (bear)", "dog"])
    (folder / "ext_memory.pkl").write_bytes(pickle.dumps(pickled))
    assert convert("memory", folder / "ext_memory.pkl", "--output", folder / "memory", "--preset", preset)[0] == 0
    photo = Image.radial_gradient("L").convert("RGB")
    said = []
    for number, blip2 in enumerate((list(map(str, sources)), [str(folder / "blip2.safetensors")], [str(folder / "blip2")])):
        settings = yaml.safe_load(preset.read_text()) | {"blip2": blip2}
        path = folder / f"preset-{number}.yaml"
        path.write_text(yaml.safe_dump(settings))
        captioner = Captioner.load(path)
        said.append((captioner.encoder_fingerprint, captioner.caption(photo)))
    assert said[0] == said[1] == said[2]
    assert {hit.name for hit in said[0][1].names} <= {"frisbee", "teddy bear", "dog"} and said[0][1].names


@pytest.mark.parametrize("names", ["plain", "old"])
def test_start_takes_berts_layers(names, folder):
    """Self-attention, both feed-forwards and embeddings are BERT's; cross-attention is drawn; [DEC] gets the mean word."""
    state = {}
    for key, tensor in release_tensors(small_paper_preset(), seed=7).items():
        if key.startswith("Qformer_txt.bert.") and "crossattention" not in key and "_query" not in key:
            key = key.removeprefix("Qformer_txt.")
            state[key.replace("LayerNorm.weight", "LayerNorm.gamma") if names == "old" else key] = tensor
    state["bert.embeddings.word_embeddings.weight"] = state["bert.embeddings.word_embeddings.weight"][:30522]
    torch.save(state, folder / "bert.bin")
    output = folder / "start.safetensors"
    code, out, err = convert("start", "--bert", folder / "bert.bin", "--output", output, "--preset", folder / "preset.yaml")
    assert code == 0, err
    made = load_file(output)
    layer = "bert.encoder.layer.1."
    value = state[f"{layer}attention.self.value.weight"]
    torch.testing.assert_close(made["fusion.qformer.layers.1.self_attention.value.weight"], value)
    for side in ("text", "query"):
        up = made[f"fusion.qformer.layers.1.{side}_feed_forward.up.weight"]
        torch.testing.assert_close(up, state[f"{layer}intermediate.dense.weight"])
    word = made["fusion.embeddings.word.weight"]
    torch.testing.assert_close(word[30522], word[:30522].mean(0))
    drawn = made["fusion.qformer.layers.0.cross_attention.value.weight"]
    assert 0.015 < drawn.std() < 0.025
    torch.testing.assert_close(made["image_qformer.queries"], lavis_qformer(small_paper_preset())["query_tokens"])


@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_start_embeds_names_as_bert_does(whole, folder):
    """Words, positions and the type that names have, against transformers' own; `whole`: with BERT's head, as on the hub."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(vocab_size=30522, **sizes)).eval()
    bert.bert.embeddings.token_type_embeddings.weight.normal_()  # so that each row shows
    (bert if whole else bert.bert).save_pretrained(folder / "bert")
    output = folder / "start.safetensors"
    code, _, err = convert("start", "--bert", folder / "bert", "--output", output, "--preset", folder / "preset.yaml")
    assert code == 0, err
    own = NameEmbeddings(30523, 24, 1e-12)
    start = "fusion.embeddings."
    own.load_state_dict({key.removeprefix(start): t for key, t in load_file(output).items() if key.startswith(start)})
    ids = torch.randint(30522, (3, 160))
    torch.testing.assert_close(own(ids), bert.bert.embeddings(ids))


def test_token_types_of_another_width_are_named(folder):
    state = {k.removeprefix("Qformer_txt."): t for k, t in release_tensors(small_paper_preset()).items()}
    torch.save(state | {"bert.embeddings.token_type_embeddings.weight": torch.zeros(2, 23)}, folder / "bert.bin")
    options = ["--output", folder / "start.safetensors", "--preset", folder / "preset.yaml"]
    code, _, err = convert("start", "--bert", folder / "bert.bin", *options)
    assert code == 1 and "'embeddings.token_type.weight' is (1, 23), expected (1, 24)" in err and err.count("\n") == 1


def test_start_without_bert_draws_with_a_seed(folder):
    made = []
    for seed in (1, 1, 2):
        preset = folder / "preset.yaml"
        assert convert("start", "--output", folder / "drawn.safetensors", "--seed", seed, "--preset", preset)[0] == 0
        made.append(load_file(folder / "drawn.safetensors"))
    key = "fusion.qformer.layers.2.self_attention.key.weight"
    assert torch.equal(made[0][key], made[1][key]) and not torch.equal(made[0][key], made[2][key])
