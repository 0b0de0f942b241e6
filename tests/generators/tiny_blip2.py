"""Random BLIP-2 models in transformers' own format, small enough for a test, and a preset that fits them."""

import string
from pathlib import Path

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

CHARACTERS = ["<pad>", "</s>", "<unk>", "\n", *" ,.:?'-", *string.ascii_letters, *string.digits]
SIDE, QUERIES, IMAGE_TOKEN, VOCABULARY = 28, 6, 79, 80


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token a character; as OPT's it begins with </s>, as T5's it ends so."""
    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    ends = "</s> $A" if kind == "opt" else "$A </s>"
    made.post_processor = processors.TemplateProcessing(single=ends, special_tokens=[("</s>", 1)])
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def language_config(kind: str) -> OPTConfig | T5Config:
    if kind == "opt":
        return OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=200,
            word_embed_proj_dim=16,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
            init_std=0.3,
        )
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        initializer_factor=2.0,
    )


def write_blip2(folder: Path, kind: str, seed: int = 0, shards: str = "40KB") -> Blip2ForConditionalGeneration:
    """A model of "opt" or "t5" in a folder, in several shards, as the published ones are; returns it."""
    torch.manual_seed(seed)
    layers = {"num_hidden_layers": 2, "intermediate_size": 48, "initializer_range": 0.3}
    vision = Blip2VisionConfig(hidden_size=32, num_attention_heads=4, image_size=SIDE, patch_size=14, **layers)
    qformer = {"hidden_size": 24, "num_attention_heads": 2, "encoder_hidden_size": 32, "vocab_size": 50, **layers}
    config = Blip2Config(
        vision_config=vision,
        qformer_config=Blip2QFormerConfig(**qformer, cross_attention_frequency=2),
        text_config=language_config(kind),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE_TOKEN,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)
    if kind == "t5":  # Flan-T5's last layer is its own, not its word embeddings as T5's
        model.language_model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 16))
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer(kind).save_pretrained(folder)
    return model


def write_preset(folder: Path, kind: str, **settings) -> Path:
    """A preset file beside the model's folder `kind`."""
    qformer = {"width": 24, "layers": 2, "heads": 2, "intermediate": 48, "cross_attention_every": 2}
    preset = {
        "name": f"tiny-{kind}",
        "vision": {
            "kind": "blip2-vit",
            "image_size": SIDE,
            "width": 32,
            "tokens": 5,
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": 14,
            "depth": 2,
            "heads": 4,
            "intermediate": 48,
        },
        "blip2": [str(folder / kind)],
        "image_queries": QUERIES,
        "image_qformer": qformer,
        "name_qformer": qformer,
        "language": {"kind": str(folder / kind), "hidden": 16, "before": "", "after": "", "precision": "float16"},
        "generator": {"kind": "blip2"},
        "decoding": {"beams": 3, "max_length": 12},
    }
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(preset | settings))
    return path
