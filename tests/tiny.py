"""Small models with random weights, for tests of the machinery that need no knowledge of the world."""

import dataclasses
import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evcap.config import LanguageConfig, Preset, QFormerConfig, load_preset
from evcap.language.model import LanguageModel
from evcap.model.evcap import EVCap

CHARACTERS = ["<s>", "<unk>", *"\n :,.", *string.ascii_letters]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", pad_token="<unk>")


def tiny_llm(seed: int = 0, vocabulary: int = len(CHARACTERS), spread: float = 0.3) -> LlamaForCausalLM:
    """Two layers, 32 wide, two query heads to each key head, float32; `spread` makes its opinions sharp or mild."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=spread,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def tiny_language(seed: int = 0, lora_rank: int = 0, **settings) -> LanguageModel:
    """LanguageModel around `tiny_llm`; `settings` overrides fields of LanguageConfig."""
    plain = {"before": "Look: ", "after": "\nCaption:", "names": "\nObjects: {names}.", "names_in_prompt": True}
    config = LanguageConfig(kind="tiny", hidden=32, lora_rank=lora_rank, **(plain | settings))
    return LanguageModel(config, tiny_llm(seed), tiny_tokenizer())


def tiny_preset(language: LanguageConfig) -> Preset:
    """The embedded preset, shrunk: 4 patch tokens of 20, 6 image queries and 3 name queries of 24."""
    embedded = load_preset("embedded")
    qformer = QFormerConfig(width=24, layers=2, heads=2, intermediate=32, cross_attention_every=1)
    return dataclasses.replace(
        embedded,
        vision=dataclasses.replace(embedded.vision, width=20, tokens=4, image_size=64),
        image_qformer=qformer,
        name_qformer=qformer,
        image_queries=6,
        name_queries=3,
        text_width=16,
        vocab_size=100,
        language=language,
    )


def tiny_evcap(seed: int = 0, lora_rank: int = 2) -> EVCap:
    """The whole chain, tiny; its backbone passes patch tokens (B,4,20) through."""
    language = tiny_language(seed, lora_rank)
    torch.manual_seed(seed)
    model = EVCap(tiny_preset(language.config), language, nn.Identity()).eval()
    model.fusion.embeddings.requires_grad_(False)  # as build_model does
    return model
