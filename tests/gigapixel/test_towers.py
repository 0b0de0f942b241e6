"""Towers: a small CLIP saved in transformers' layout against transformers itself, and the captioner's own."""

import numpy as np
import pytest
import torch
from PIL import Image

from evcap.errors import EvcapError
from evcap.gigapixel.search.towers import ClipTower, QueryTower
from evcap.language.similarity import nearest_query


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def test_cosines_are_those_of_transformers(clip):
    from transformers import CLIPModel, CLIPProcessor

    tower, model, processor = ClipTower(clip), CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    pictures, phrases = [noise(32, 32), noise(40, 24)], ["an airplane", "a long row of parked cars"]
    square = [picture.resize((32, 32), Image.Resampling.BICUBIC) for picture in pictures]
    with torch.inference_mode():
        logits = model(**processor(text=phrases, images=square, padding=True, return_tensors="pt")).logits_per_image
        expected = logits / model.logit_scale.exp()
    assert tower.shape == (1, 24)
    assert tower.image_size == 32
    assert torch.allclose(nearest_query(tower.query_features(pictures, 2), tower.read(phrases)), expected, atol=1e-5)


def test_the_fingerprint_tells_towers_apart(clip, tmp_path):
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(clip)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(clip).save_pretrained(tmp_path)
    assert ClipTower(clip).encoder_fingerprint == ClipTower(clip).encoder_fingerprint != ClipTower(tmp_path).encoder_fingerprint


def test_what_is_no_clip_is_refused_in_one_line(tmp_path):
    with pytest.raises(EvcapError, match="CLIP .* cannot be opened") as caught:
        ClipTower(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_captioners_own_tower_knows_a_bus_from_a_pizza(captioner, examples):
    tower = QueryTower(captioner)
    pictures = [Image.open(path) for path in examples if path.stem in ("bus", "pizza")]
    cosines = nearest_query(tower.query_features(pictures, 2), tower.read(["a bus in the street", "a pizza on a plate"]))
    assert cosines[0, 0] > cosines[0, 1]
    assert cosines[1, 1] > cosines[1, 0]
