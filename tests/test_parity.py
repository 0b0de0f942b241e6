"""Numbers recorded from the public EVCap release with tiny random weights, reproduced by this package.

The recording is no part of the repository: EVCAP_PARITY names its folder (meta.json, tensors.safetensors,
release_state.safetensors, llama_state.safetensors).
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from release_keys import from_release
from transformers import LlamaConfig, LlamaForCausalLM

from evcap.backbone import build_backbone
from evcap.build import name_tokenizer
from evcap.captioner import EVCap
from evcap.config import LanguageConfig, QFormerConfig, load_preset
from evcap.language import LanguageModel, PackedCaptions, Prompt
from evcap.memory import VisualNameMemory
from evcap.weights import read_safetensors

FOLDER = os.environ.get("EVCAP_PARITY")
pytestmark = pytest.mark.skipif(not FOLDER, reason="EVCAP_PARITY names no folder with a recording of the EVCap release")
IGNORED = -100


class NoText:
    """Stands where LanguageModel wants a tokenizer; the recording gives token ids."""

    bos_token_id = 1

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [0] if text == "\n" else []}


@pytest.fixture(scope="module")
def meta() -> dict:
    return json.loads((Path(FOLDER) / "meta.json").read_text())


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return read_safetensors(Path(FOLDER) / "tensors.safetensors")


@pytest.fixture(scope="module")
def preset(meta):
    """The paper's preset with the recording's sizes and no text around the vectors."""
    paper, bert, vit = load_preset("evcap-vicuna-13b"), meta["bert"], meta["vit"]
    qformer = QFormerConfig(
        width=bert["hidden_size"],
        layers=bert["layers"],
        heads=bert["heads"],
        intermediate=bert["intermediate"],
        cross_attention_every=bert["cross_attention_every"],
        layer_norm_eps=bert["layer_norm_eps"],
    )
    vision = dataclasses.replace(
        paper.vision,
        image_size=vit["image"],
        width=vit["width"],
        tokens=(vit["image"] // vit["patch"]) ** 2 + 1,
        patch_size=vit["patch"],
        depth=vit["depth"],
        heads=vit["heads"],
        intermediate=int(vit["width"] * vit["mlp_ratio"]),
    )
    return dataclasses.replace(
        paper,
        vision=vision,
        image_qformer=qformer,
        name_qformer=qformer,
        image_queries=meta["num_query"],
        name_queries=meta["num_name_query"],
        vocab_size=bert["vocab"],
        language=LanguageConfig(kind="recorded", hidden=meta["llama"]["hidden_size"], before="", after=""),
    )


@pytest.fixture(scope="module")
def model(meta, preset) -> EVCap:
    known = LlamaConfig().to_dict()
    sizes = {k: v for k, v in meta["llama"].items() if k in known and v is not None}
    llm = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager"))
    llm.load_state_dict(read_safetensors(Path(FOLDER) / "llama_state.safetensors"), strict=True)
    model = EVCap(preset, LanguageModel(preset.language, llm, NoText()), build_backbone(preset.vision))
    missing, unexpected = model.load_state_dict(
        from_release(read_safetensors(Path(FOLDER) / "release_state.safetensors")), strict=False
    )
    assert not unexpected
    assert all(name.startswith("language.") for name in missing)
    return model.float().eval()


@pytest.fixture(scope="module")
def memory(meta, recorded) -> VisualNameMemory:
    names = meta["memory_names"]
    sources, images = ["recorded"] * len(names), [str(n) for n in range(len(names))]
    return VisualNameMemory.build(recorded["memory_keys"].numpy(), names, sources, images, "recorded")


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    print(f"{what}: largest difference {(found - expected).abs().max():.1e}, largest value {expected.abs().max():.1e}")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_patch_tokens(model, recorded):
    close(model.backbone(recorded["pixels"]), recorded["patch_tokens"], "patch tokens")


@torch.no_grad()
def test_query_output(model, recorded):
    close(model.query_features(recorded["patch_tokens"]), recorded["query_output"], "query output")


def test_retrieved_names(memory, meta, recorded, preset):
    rule = preset.memory
    assert rule.names == meta["topn_flag"] + 1  # the flag is the last index kept
    found = memory.search(recorded["query_output"], rule.hits, rule.keep, rule.names)
    assert [[n.name for n in row] for row in found] == meta["retrieved_final"]


def test_hits_before_repeats_are_dropped(memory, meta, recorded):
    """Every entry under a name of its own shows the 32 hits in order; cleaned of numbers they are the recorded names."""
    numbered = VisualNameMemory(
        memory.keys, [f"{name} {n}" for n, name in enumerate(memory.names)], memory.sources, memory.images, "recorded"
    )
    expected = [list(dict.fromkeys(row)) for row in meta["retrieved_sorted_32"]]
    found = numbered.search(recorded["query_output"], 5, 32, 32)
    assert [list(dict.fromkeys(n.name.rsplit(" ", 1)[0] for n in row)) for row in found] == expected


def test_name_tokens(meta):
    ids, mask = name_tokenizer()(meta["retrieved_final"])
    assert ids.tolist() == meta["name_token_ids"]
    assert mask.long().tolist() == meta["name_attention_mask"]


@torch.no_grad()
def test_name_features_and_projection(model, meta, recorded):
    ids, mask = name_tokenizer()(meta["retrieved_final"])
    close(model.name_features(recorded["query_output"], ids, mask), recorded["name_features"], "name features")
    close(model.visual_vectors(recorded["query_output"], ids, mask), recorded["projected"], "projected")


@torch.no_grad()
def test_from_pixels_to_projection(model, memory, meta, recorded):
    """The whole chain at once, nothing taken from the recording on the way."""
    queries = model.query_features(model.backbone(recorded["pixels"]))
    names = [[n.name for n in row] for row in memory.search(queries)]
    close(model.visual_vectors(queries, *name_tokenizer()(names)), recorded["projected"], "projected, from pixels")


@torch.no_grad()
def test_logits_and_loss(model, recorded):
    language, projected, labels = model.language, recorded["projected"], recorded["labels"]
    bos = language.embed(torch.full((len(projected), 1), NoText.bos_token_id))
    prompt = torch.cat([bos, projected], dim=1)
    ids, mask = recorded["caption_ids"], recorded["attention_mask"]
    inputs = torch.cat([prompt, language.embed(ids)], dim=1)
    logits = language.llm(inputs_embeds=inputs, attention_mask=mask).logits
    real = mask.bool()
    close(logits[real], recorded["lm_logits"][real], "logits")

    taken = labels[:, prompt.shape[1] :] != IGNORED
    offset = torch.arange(ids.shape[1]).expand_as(ids)
    packed = PackedCaptions(ids, taken.long(), offset)
    assert (ids[taken] == labels[labels != IGNORED]).all()
    found = language.prompt(projected, [[]] * len(projected))
    torch.testing.assert_close(found.embeddings, prompt)
    assert isinstance(found, Prompt) and found.mask.all()
    close(language.loss(found, packed), recorded["lm_loss"], "loss")


def test_keys_are_normalised(memory, recorded):
    raw = recorded["memory_keys"].numpy()
    np.testing.assert_allclose(memory.keys, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
