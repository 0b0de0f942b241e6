"""Features of texts: EVA-CLIP's tower on the tokens of a CLIP tokenizer, whatever is asked for beside."""

import dataclasses

import pytest
import torch
from tiny import CHARACTERS, tiny_tokenizer
from tiny_regions import REGIONS

from evcap.errors import EvcapError
from evcap.regions import texts
from evcap.regions.text_tower import build_text_tower
from evcap.regions.texts import TextFeatures

END = len(CHARACTERS)
EVA = dataclasses.replace(REGIONS, texts="eva-clip")


@pytest.fixture
def tokenizer(tmp_path):
    """One token per character, padded with its end token, as CLIP's."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>", "pad_token": "</s>"})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@torch.no_grad()
def test_features_of_the_tower_do_not_depend_on_what_is_asked_beside(tokenizer, monkeypatch):
    torch.manual_seed(0)
    tower = build_text_tower(16, 2, 2, context=10, vocabulary=END + 1, features=12)
    features = TextFeatures(EVA, tower, str(tokenizer))
    asked = ["a dog", "red", "a text that is far too long"]
    found = features(asked)
    assert found.shape == (3, 12) and found.dtype == torch.float32 and not found.requires_grad
    for row, text in zip(found, asked, strict=True):
        ids = [CHARACTERS.index(c) for c in text][:10]
        expected = tower(input_ids=torch.tensor([ids + [END] * (10 - len(ids))])).text_embeds[0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(texts, "AT_ONCE", 2)
    torch.testing.assert_close(features(asked), found)
    assert features([]).shape == (0, 12)


def test_a_tokenizer_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(EvcapError, match="tokenizer") as raised:
        TextFeatures(EVA, build_text_tower(16, 1, 2, 10, END + 1, 12), str(tmp_path / "none"))
    assert "\n" not in str(raised.value)
