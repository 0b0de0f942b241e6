"""Caption spelling, content words, and the frozen sentence embedder against transformers' own loading of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from evcap.language.sentences import FUNCTION_WORDS, SentenceEmbedder, clean_caption, content_words
from evcap.weights.wheels import MINILM_WEIGHTS

SENTENCES = [
    "A dog runs through the snow",
    "A brown dog is running in snow beside a very long wooden fence",
    "Two airplanes are parked at the airport",
    "",
]


@pytest.mark.parametrize(
    "given, expected",
    [
        ("a dog runs , barking .", "A dog runs, barking"),
        ("  A  man's   hat .", "A man's hat"),
        ("the dog 's tail ; it does n't move .", "The dog's tail; it doesn't move"),
        ("a dog\nruns\t.", "A dog runs"),
        ("UPPER stays", "UPPER stays"),
        ("", ""),
        (" . ", ""),
        ("3 birds", "3 birds"),
    ],
)
def test_clean_caption(given, expected):
    assert clean_caption(given) == expected


@given(st.text(max_size=60))
def test_clean_caption_needs_no_second_time(text):
    once = clean_caption(text)
    assert "\n" not in once and "  " not in once and once == once.strip()
    assert clean_caption(once) == once


def test_content_words():
    assert content_words("A dog jumps over the fire hydrant, and it's on TV!") == ["dog", "jumps", "fire", "hydrant"]
    assert content_words("") == []


@given(st.text("abcdefgh THEonisand.,'", max_size=60))
def test_content_words_are_lower_case_words_of_the_caption(text):
    for word in content_words(text):
        assert word in text.lower() and word.islower() and len(word) > 2 and word not in FUNCTION_WORDS


@pytest.fixture(scope="module")
def embedder():
    return SentenceEmbedder()


def test_embeddings_equal_those_of_transformers_in_float32(embedder):
    """The model card's recipe: mean over real tokens, unit length."""
    folder = MINILM_WEIGHTS.locate().parent
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    found = embedder(SENTENCES)
    assert found.shape == (len(SENTENCES), 384) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(SENTENCES)))
    for text, row in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert torch.cosine_similarity(row, mean, dim=0) > 0.999


def test_embeddings_know_what_is_alike(embedder):
    dog, other_dog, airport, _ = embedder(SENTENCES)
    assert dog @ other_dog > 0.6 > 0.3 > dog @ airport


def test_neighbours_and_batch_size_change_little(embedder):
    together, alone = embedder(SENTENCES), torch.cat([embedder([s]) for s in SENTENCES])
    assert torch.cosine_similarity(together, alone).min() > 0.999
    assert torch.cosine_similarity(together, embedder(SENTENCES, batch_size=3)).min() > 0.999


def test_long_text_is_cut_and_no_text_is_no_rows(embedder):
    words = "dog " * 126
    assert torch.allclose(embedder([words]), embedder([words + "airport " * 50]), atol=1e-2)
    assert embedder([]).shape == (0, 384)
