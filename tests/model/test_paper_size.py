"""The paper's model at full size, on the meta device: counted, never allocated."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evcap.config import load_preset
from evcap.language.model import LanguageModel
from evcap.model.evcap import EVCap, trained_parts
from evcap.model.name_fusion import Retrieved
from evcap.model.towers import build_backbone


class Letters:
    """A tokenizer just large enough to build the prompt."""

    bos_token_id = 1

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [2 + ord(c) % 90 for c in text]}


@pytest.fixture(scope="module")
def model():
    preset = load_preset("evcap-vicuna-13b")
    vicuna = LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    )
    with torch.device("meta"):
        language = LanguageModel(preset.language, LlamaForCausalLM(vicuna), Letters())
        return EVCap(preset, language, build_backbone(preset.vision))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_release_mode_trains_3_968_000(model):
    trained = [model.projection.weight, model.projection.bias, model.image_qformer.queries, model.fusion.qformer.queries]
    assert sum(p.numel() for p in trained) == 768 * 5120 + 5120 + 32 * 768 + 8 * 768 == 3_968_000


def test_image_tower_and_qformer_have_blip2s_size(model):
    assert count(model.backbone) == 985_952_256
    assert count(model.image_qformer) - model.image_qformer.queries.numel() == 105_137_664


def test_fusion_trains_too_by_default(model):
    width, layers, crossed, feed = 768, 12, 6, 3072
    attention = 4 * (width * width + width) + 2 * width
    feed_forward = 2 * width * feed + feed + width + 2 * width
    # the last layer has no feed-forward for the appended: nobody reads them there
    expected = layers * (attention + feed_forward) + crossed * attention + (layers - 1) * feed_forward + 8 * width
    assert count(model.fusion.qformer) == expected
    trained = trained_parts(model)
    words = 30_523 * width + 512 * width + 2 * width  # frozen, but in no other file
    assert sum(v.numel() for k, v in trained.items() if k.startswith("fusion.")) == expected + words
    assert {k for k in trained if not k.startswith("fusion.")} == {
        "projection.weight",
        "projection.bias",
        "image_qformer.queries",
    }


def test_shapes_of_the_chain(model):
    with torch.device("meta"):
        queries = model.query_features(torch.zeros(2, 257, 1408))
        names = Retrieved([[], []], torch.zeros(2, 20, dtype=torch.long), torch.ones(2, 20, dtype=torch.bool))
        assert queries.shape == (2, 32, 768)
        assert model.name_features(queries, names).shape == (2, 8, 768)
        assert model.visual_vectors(queries, names).shape == (2, 40, 5120)
