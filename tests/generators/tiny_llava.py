"""A random LLaVA in transformers' own format, small enough for a test; its processor needs no torchvision."""

from pathlib import Path

import torch
from tiny_blip2 import tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE, PATCH, VOCABULARY = 28, 14, 80
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{{ '\\n' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_llava(folder: Path, template: str | None = TEMPLATE) -> LlavaForConditionalGeneration:
    """A model with its processor in a folder; returns it."""
    torch.manual_seed(0)
    words = tokenizer("opt")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_token = words.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, vision_feature_layer=-2)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    looks = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(looks, words, chat_template=template, **settings).save_pretrained(folder)
    return model
