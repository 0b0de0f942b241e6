"""The release's rules of beam search, batched and cached, against its own way: one image, no cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_language, tiny_llm

from bench.release_decoding import release_way
from evcap.config import DecodingConfig
from evcap.errors import EvcapError
from evcap.language.release_search import release_search

VOCABULARY = 24


@torch.inference_mode()
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    beams=st.integers(1, 6),
    max_length=st.integers(1, 10),
    stops=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8, unique=True),
)
def test_equals_one_picture_at_a_time_without_a_cache(seed, lengths, beams, max_length, stops):
    """Whatever the batch holds: shorter prompts, images whose search ends early, stops that are token 0."""
    llm = tiny_llm(seed, VOCABULARY, spread=0.5)
    prompt = torch.randn(len(lengths), max(lengths), 32)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    found = release_search(llm, prompt, mask, stops, beams, max_length)
    for row, vectors, real in zip(found, prompt, mask, strict=True):
        expected = release_way(llm, vectors[real], stops, beams, max_length)
        assert [tokens for _, tokens in row] == [tokens for _, tokens in expected]
        assert [score for score, _ in row] == pytest.approx([score for score, _ in expected], abs=1e-4)


@torch.inference_mode()
def test_decode_takes_the_rules_from_the_preset():
    """Stops are the tokens of a newline, "." and " ."; a stop that is a word stays in the text."""
    language = tiny_language(3)
    head = torch.nn.Linear(32, language.llm.config.vocab_size)
    head.weight.copy_(language.llm.lm_head.weight)
    head.bias.zero_()[language.tokenizer(".", add_special_tokens=False)["input_ids"][-1]] = 4.0
    language.llm.lm_head = head
    prompt = language.prompt(torch.randn(2, 4, 32), [["dog"], []])
    decoding = DecodingConfig(beams=3, max_length=8, search="release")
    rows = language.decode(prompt, 2, decoding)
    assert [len(row) for row in rows] == [2, 2]
    stops = [language.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("\n", ".", " .")]
    for row, vectors, real in zip(rows, prompt.embeddings, prompt.mask, strict=True):
        expected = release_way(language.llm, vectors[real], stops, 3, 8)
        assert [h.text for h in row] == [language.tokenizer.decode(tokens).strip() for _, tokens in expected[:2]]
    assert any(h.text.endswith(".") for row in rows for h in row)


def test_the_releases_rules_know_no_shortest_length():
    language = tiny_language(0)
    prompt = language.prompt(torch.zeros(1, 4, 32), [[]])
    with pytest.raises(EvcapError, match="min_length"):
        language.decode(prompt, 1, DecodingConfig(min_length=2, search="release"))


def test_an_unknown_search():
    language = tiny_language(0)
    with pytest.raises(EvcapError, match="unknown search 'greedy', known: beam, release"):
        language.decode(language.prompt(torch.zeros(1, 4, 32), [[]]), 1, DecodingConfig(search="greedy"))
