"""A Stable Diffusion pipeline with random weights that draws 64 x 64 images in a few milliseconds, as diffusers saves it."""

import string
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CHARACTERS = [*string.ascii_lowercase, *string.digits, *"-.'&"]
VOCABULARY = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]


def save_pipeline(folder: Path, seed: int = 0) -> Path:
    """Write the pipeline to `folder`: one token a letter, a scheduler that adds noise at each step, no safety checker."""
    torch.manual_seed(seed)
    end = len(VOCABULARY) - 1
    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer({piece: i for i, piece in enumerate(VOCABULARY)}, [], model_max_length=32),
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def add_safety_checker(folder: Path, target: Path, unwanted: np.ndarray) -> Path:
    """Save the pipeline of `folder` with a safety checker that flags one image, pixels (H,W,3) uint8, and those like it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=16, vision_config=vision, text_config=small)).eval()
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        pixels = extractor(Image.fromarray(unwanted), return_tensors="pt").pixel_values
        checker.concept_embeds[0] = checker.visual_projection(checker.vision_model(pixels)[1])[0]
        checker.concept_embeds_weights[0] = 0.999  # of cosine similarity
    parts = pipeline.components | {"safety_checker": checker, "feature_extractor": extractor}
    StableDiffusionPipeline(**parts, requires_safety_checker=True).save_pretrained(target)
    return target
