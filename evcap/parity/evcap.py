"""Comparison with a recording of the public EVCap release.

A recording holds meta.json (sizes, names, beams), tensors.safetensors (what went in and came out at every step),
release_state.safetensors and llama_state.safetensors (the weights, under the release's names). The weights go through the
importer that reads real checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evcap.config import LanguageConfig, Preset, QFormerConfig, load_preset
from evcap.errors import EvcapError
from evcap.language.model import LanguageModel
from evcap.language.release_search import release_search
from evcap.memory.memory import VisualNameMemory
from evcap.model.evcap import EVCap
from evcap.model.name_fusion import Retrieved, name_tokenizer
from evcap.model.towers import build_backbone
from evcap.parity.towers import set_norms, tower_config
from evcap.weights.blip2 import check_shapes
from evcap.weights.release import read_release
from evcap.weights.wheels import read_safetensors

TOLERANCE = 1e-5


class NoText:
    """Stands where LanguageModel wants a tokenizer: a recording gives token ids, and no text around the vectors."""

    def __init__(self, bos: int):
        self.bos_token_id = bos

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict:
        return {"input_ids": [0] if text == "\n" else []}


def preset_of(meta: dict) -> Preset:
    """The paper's preset with a recording's sizes.

    The recording was made on the CPU, where the release's retrieval brings Q to unit length in place, so that the fusion
    sees it so; on a GPU its retrieval works on a copy (facts: models/evcap.py, retrieve_similar_features).
    """
    paper, bert, vit = load_preset("evcap-vicuna-13b"), meta["bert"], meta["vit"]
    qformer = QFormerConfig(
        width=bert["hidden_size"],
        layers=bert["layers"],
        heads=bert["heads"],
        intermediate=bert["intermediate"],
        cross_attention_every=bert["cross_attention_every"],
        layer_norm_eps=bert["layer_norm_eps"],
    )
    return dataclasses.replace(
        paper,
        vision=tower_config(vit, vit["heads"]),
        image_qformer=qformer,
        name_qformer=qformer,
        image_queries=meta["num_query"],
        name_queries=meta["num_name_query"],
        unit_queries=True,
        vocab_size=bert["vocab"],
        memory=dataclasses.replace(paper.memory, names=meta["topn_flag"] + 1),  # the flag is the last index kept
        language=LanguageConfig(kind="recorded", hidden=meta["llama"]["hidden_size"], before="", after=""),
    )


def build(folder: Path, meta: dict) -> EVCap:
    """The model with the recording's weights, float32 on the CPU."""
    known = LlamaConfig().to_dict()
    sizes = {k: v for k, v in meta["llama"].items() if k in known and v is not None}
    llm = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager"))
    state = read_safetensors(folder / "llama_state.safetensors")
    if llm.config.tie_word_embeddings:  # one tensor under two names, of which a file may hold one
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    check_shapes(state, llm.state_dict(), {}, str(folder / "llama_state.safetensors"))
    llm.load_state_dict(state, strict=False)  # older files hold rotary frequencies as well
    preset = preset_of(meta)
    language = LanguageModel(preset.language, llm.eval(), NoText(meta["beam"]["bos_id"]))
    model = EVCap(preset, language, build_backbone(preset.vision))
    wanted = {name: t for name, t in model.state_dict().items() if not name.startswith("language.")}
    placed = read_release([folder / "release_state.safetensors"], wanted)
    model.load_state_dict(placed.tensors, strict=False, assign=True)
    set_norms(model.backbone, meta["vit"]["layer_norm_eps"], meta["ln_vision_eps"])
    return model.float().eval()


def memory_of(meta: dict, keys: torch.Tensor) -> VisualNameMemory:
    names = meta["memory_names"]
    return VisualNameMemory.build(keys.float().numpy(), names, ["recorded"] * len(names), list(map(str, range(len(names)))), "")


@torch.inference_mode()
def compare(folder: Path) -> dict:
    """The object that is printed. Names and beams come from the pixels on, nothing taken from the recording on the way; for
    `differences` every step is fed with what the recording gave it, so that each tells of its own step; `from_pixels` are
    those of the whole chain, where float32's rounding adds up over all layers."""
    meta = json.loads((folder / "meta.json").read_text())
    recorded = read_safetensors(folder / "tensors.safetensors")
    model = build(folder, meta)
    queries = model.query_features(model.backbone(recorded["pixels"]))
    rule, beam = model.preset.memory, meta["beam"]
    hits = memory_of(meta, recorded["memory_keys"]).retrieve(queries, rule)
    names = [[hit.name for hit in row] for row in hits]
    retrieved = name_tokenizer()(names)
    whole = outputs(model, recorded, queries, retrieved)
    steps = {
        "patch_tokens": model.backbone(recorded["pixels"]),
        "query_output": model.query_features(recorded["patch_tokens"]),
        **outputs(model, recorded, recorded["query_output"], retrieved),
    }
    prompt = model.language.prompt(whole["projected"], names)
    rows = release_search(model.language.llm, prompt.embeddings, prompt.mask, beam["stop_ids"], beam["width"], beam["max_len"])
    differences = {name: difference(tensor, recorded, name) for name, tensor in steps.items()}
    verdicts = {
        "names_equal": names == meta["retrieved_final"],
        "name_tokens_equal": retrieved.ids.tolist() == meta["name_token_ids"]
        and retrieved.mask.long().tolist() == meta["name_attention_mask"],
        "beams_equal": [[tokens for _, tokens in row] for row in rows] == beam["best_first"],
    }
    return {
        "differences": differences,
        "from_pixels": {name: difference(tensor, recorded, name) for name, tensor in whole.items()},
        **verdicts,
        "tolerance": TOLERANCE,
        "passed": all(verdicts.values()) and all(value <= TOLERANCE for value in differences.values()),
    }


def outputs(model: EVCap, recorded: dict, queries: torch.Tensor, retrieved: Retrieved) -> dict:
    """From Q and the tokenized names: name_features, projected, lm_logits over prompt and caption, lm_loss of its labels."""
    language = model.language
    projected = model.visual_vectors(queries, retrieved)
    prompt = language.prompt(projected, [[]] * len(projected)).embeddings
    inputs = torch.cat([prompt, language.embed(recorded["caption_ids"])], dim=1)
    output = language.llm(inputs_embeds=inputs, attention_mask=recorded["attention_mask"], labels=recorded["labels"])
    features = model.name_features(queries, retrieved)
    return {"name_features": features, "projected": projected, "lm_logits": output.logits, "lm_loss": output.loss}


def difference(tensor: torch.Tensor, recorded: dict, name: str) -> float:
    """Largest |difference| / (1 + |recorded value|): float32 rounds large values more coarsely, each CPU in its own way.

    Of logits, behind real tokens only: what a padded place predicts means nothing.
    """
    expected = recorded[name]
    if tensor.shape != expected.shape:
        raise EvcapError(f"{name} is {tuple(tensor.shape)}, the recording's {tuple(expected.shape)}")
    gap = (tensor - expected).abs() / (1 + expected.abs())
    return float((gap[recorded["attention_mask"].bool()] if name == "lm_logits" else gap).max())
