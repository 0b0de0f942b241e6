"""Beam search, against one written without tensors, without a cache, one image at a time; and against all sequences."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_language, tiny_llm
from torch import nn

from bench.decoding import beams_from_scratch
from evcap.config import DecodingConfig
from evcap.language.beam_search import beam_search, share_prompts

VOCABULARY, STOP = 16, 3


def model(seed, stop_bias=0.0, allowed=None):
    """A tiny language model whose stop token is as likely as a test needs; tokens not in `allowed` are hopeless."""
    llm = tiny_llm(seed, VOCABULARY if allowed is None else 64)
    head = nn.Linear(32, llm.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(llm.lm_head.weight)
        head.bias.fill_(0.0 if allowed is None else -1e4)
        head.bias[list(allowed or [])] = 0.0
        head.bias[STOP] += stop_bias
    llm.lm_head = head
    return llm


def prompts(seed, lengths):
    """Embedded prompts (B,P,32) with the masks (B,P) of `LanguageModel.prompt`: padding inside, the ends real."""
    torch.manual_seed(seed)
    widest = max(lengths)
    mask = torch.ones(len(lengths), widest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, 2 : 2 + widest - length] = False
    return torch.randn(len(lengths), widest, 32), mask


class Naive:
    """Log-probabilities of the next token from scratch, the whole sequence anew each time; unpadded."""

    def __init__(self, llm, prompt, mask):
        self.llm, self.prompt = llm, prompt[mask]

    @torch.no_grad()
    def __call__(self, tokens):
        own = self.llm.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long))
        logits = self.llm(inputs_embeds=torch.cat([self.prompt, own])[None], use_cache=False).logits
        return logits[0, -1].double().log_softmax(-1).tolist()


def naive_beam_search(next_token, wanted, decoding):
    """(score, tokens) best first; the rules of `beam_search` in plain Python."""
    beams = max(wanted, decoding.beams)
    live, done = [(0.0, [])], []

    def score(total, length):
        return total / length**decoding.length_penalty

    for length in range(1, decoding.max_length + 1):
        if len(done) >= beams:
            kept = sorted((s for s, _ in done), reverse=True)[wanted - 1]
            if kept >= score(live[0][0], length - 1):
                break
        grown = [
            (total + log_probability, tokens, word)
            for total, tokens in live
            for word, log_probability in enumerate(next_token(tokens))
            if word != STOP or length > decoding.min_length
        ]
        grown.sort(key=lambda g: -g[0])
        grown = grown[: 2 * beams]
        done += [(score(total, length), tokens) for total, tokens, word in grown[:beams] if word == STOP]
        live = [(total, [*tokens, word]) for total, tokens, word in grown if word != STOP][:beams]
    if len(done) < wanted:
        done += [(score(total, len(tokens)), tokens) for total, tokens in live]
    return sorted(done, key=lambda d: -d[0])[:wanted]


@torch.inference_mode()
def found(llm, prompt, mask, wanted, decoding):
    return beam_search(llm, prompt, mask, STOP, wanted, decoding)


def ours(llm, prompt, mask, wanted, decoding):
    return [[tokens for _, tokens in row] for row in found(llm, prompt, mask, wanted, decoding)]


def naive(llm, prompt, mask, wanted, decoding):
    rows = zip(prompt, mask, strict=True)
    return [naive_beam_search(Naive(llm, p, m), wanted, decoding) for p, m in rows]


CASES = [
    # seed, stop_bias, wanted, beams, min, max, penalty
    (0, 2.0, 1, 5, 0, 12, 1.0),
    (1, 2.0, 1, 1, 0, 12, 1.0),
    (2, 3.0, 5, 5, 0, 10, 1.0),
    (3, 2.0, 3, 4, 4, 10, 1.0),
    (4, 3.0, 2, 3, 0, 12, 0.0),
    (5, 1.0, 1, 4, 0, 12, 2.0),
    (6, -9.0, 3, 3, 0, 6, 1.0),  # nothing ends: cut at the length
    (7, 6.0, 1, 5, 0, 10, 1.0),  # ends at once
    (8, 0.0, 4, 2, 0, 5, 1.0),  # more captions than beams
    (9, 2.0, 2, 6, 7, 7, 1.0),  # may end nowhere before the cut
    (10, 2.0, 2, 4, 0, 1, 1.0),
]


@pytest.mark.parametrize("seed,stop_bias,wanted,beams,shortest,longest,penalty", CASES)
def test_equals_the_naive_search(seed, stop_bias, wanted, beams, shortest, longest, penalty):
    llm = model(seed, stop_bias)
    decoding = DecodingConfig(beams, shortest, longest, penalty)
    prompt, mask = prompts(seed, [7, 4, 9])
    rows = found(llm, prompt, mask, wanted, decoding)
    expected = naive(llm, prompt, mask, wanted, decoding)
    assert [[tokens for _, tokens in row] for row in rows] == [[tokens for _, tokens in row] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert [score for score, _ in row] == pytest.approx([score for score, _ in other], abs=1e-4)


@given(
    seed=st.integers(0, 10_000),
    stop_bias=st.sampled_from([-1.0, 1.0, 2.0, 4.0]),
    wanted=st.integers(1, 4),
    beams=st.integers(1, 6),
    shortest=st.integers(0, 3),
    longest=st.integers(3, 7),
    penalty=st.sampled_from([0.0, 0.5, 1.0, 1.5]),
)
def test_equals_the_naive_search_anywhere(seed, stop_bias, wanted, beams, shortest, longest, penalty):
    test_equals_the_naive_search(seed, stop_bias, wanted, beams, shortest, longest, penalty)


@pytest.mark.parametrize("seed", range(3))
def test_one_beam_is_greedy(seed):
    llm = model(seed, 1.0)
    prompt, mask = prompts(seed, [5, 8])
    best = ours(llm, prompt, mask, 1, DecodingConfig(beams=1, max_length=9))
    for row, p, m in zip(best, prompt, mask, strict=True):
        next_token, tokens = Naive(llm, p, m), []
        while len(tokens) < 9:
            chances = next_token(tokens)
            word = chances.index(max(chances))
            if word == STOP:
                break
            tokens.append(word)
        # a live beam may be cut at the length, or the stop may only win later: greedy is the path, not its end
        assert row[0] == tokens or (len(row[0]) < len(tokens) and tokens[: len(row[0])] == row[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("longest", [3, 4])
def test_enough_beams_search_everything(seed, longest):
    """Two words and the stop token: 32 beams can hold all 24 candidates of a step. Scores are sums: the stop rule is exact."""
    words = [5, 9]
    llm = model(seed, 1.0, allowed=[*words, STOP])
    wanted, decoding = 5, DecodingConfig(beams=32, max_length=longest, length_penalty=0.0)
    prompt, mask = prompts(seed, [6, 4])
    for row, p, m in zip(ours(llm, prompt, mask, wanted, decoding), prompt, mask, strict=True):
        next_token, everything = Naive(llm, p, m), []
        for length in range(longest):
            for tokens in itertools.product(words, repeat=length):
                path = [*tokens, STOP]
                everything.append((sum(next_token(path[:i])[path[i]] for i in range(len(path))), list(tokens)))
        everything.sort(key=lambda pair: -pair[0])
        assert row == [tokens for _, tokens in everything[:wanted]]


@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(3, 12), min_size=2, max_size=5))
@settings(max_examples=20)
def test_neighbours_in_the_batch_change_nothing(seed, lengths):
    llm, decoding = model(seed, 2.0), DecodingConfig(beams=4, max_length=10)
    prompt, mask = prompts(seed, lengths)
    together = ours(llm, prompt, mask, 3, decoding)
    for row, p, m in zip(together, prompt, mask, strict=True):
        assert ours(llm, p[m][None], m[m][None], 3, decoding) == [row]


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_transformers_where_both_mean_the_same(seed):
    """All beams wanted, all ended before the cut, scores over length: there `generate` follows the same rules."""
    llm = model(seed, 4.0)
    beams, prompt = 4, prompts(seed, [6])[0]
    mask = torch.ones(prompt.shape[:2], dtype=torch.long)
    out = llm.generate(
        inputs_embeds=prompt,
        attention_mask=mask,
        max_new_tokens=60,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=1.0,
        eos_token_id=STOP,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    theirs = [s.tolist() for s in out.sequences]
    assert all(STOP in tokens for tokens in theirs)
    theirs = [tokens[: tokens.index(STOP)] for tokens in theirs]
    decoding = DecodingConfig(beams, 0, 60, 1.0)
    assert ours(llm, prompt, mask.bool(), beams, decoding) == [theirs]
    mine = naive_beam_search(Naive(llm, prompt[0], mask[0].bool()), beams, decoding)
    torch.testing.assert_close(torch.tensor([s for s, _ in mine]), out.sequences_scores, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
@pytest.mark.parametrize("penalty", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_repetitions_are_penalised_as_by_transformers(seed, penalty):
    """With DynRefer's settings. Prompts are embeddings: only what was generated counts. Each alone: transformers would leave
    out as many generated tokens as there are padded places before a prompt."""
    llm = model(seed, 3.0)
    prompt, mask = prompts(seed, [7, 4, 6])
    settings = {"num_beams": 2, "max_new_tokens": 12, "do_sample": False, "length_penalty": 0.0, "repetition_penalty": penalty}
    ends = {"eos_token_id": STOP, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    decoding = DecodingConfig(beams=2, max_length=12, length_penalty=0.0, repetition_penalty=penalty)
    for ((score, mine),), p, m in zip(found(llm, prompt, mask, 1, decoding), prompt, mask, strict=True):
        out = llm.generate(inputs_embeds=p[m][None], attention_mask=m[m][None].long(), **settings, **ends)
        (theirs,) = out.sequences.tolist()
        assert mine == (theirs[: theirs.index(STOP)] if STOP in theirs else theirs)
        assert score == pytest.approx(out.sequences_scores.item(), abs=1e-4)


def test_a_high_penalty_lets_no_token_return():
    llm = model(3, -9.0)  # nothing ends
    prompt, mask = prompts(3, [5, 8])
    plain = ours(llm, prompt, mask, 1, DecodingConfig(beams=2, max_length=8))
    each = ours(llm, prompt, mask, 1, DecodingConfig(beams=2, max_length=8, repetition_penalty=100.0))
    assert any(len(set(row[0])) < 8 for row in plain) and all(len(set(row[0])) == 8 for row in each)


def test_captions_of_a_picture_differ_and_keep_their_lengths():
    llm, decoding = model(1, 2.0), DecodingConfig(beams=6, min_length=3, max_length=8)
    prompt, mask = prompts(1, [5, 5])
    for row in ours(llm, prompt, mask, 6, decoding):
        assert len(row) == 6 == len({tuple(tokens) for tokens in row})
        assert all(3 <= len(tokens) <= 8 and STOP not in tokens for tokens in row)


def test_the_language_model_is_left_as_it_was():
    llm = model(0)
    ids = torch.arange(3, 11)[None]
    plain, said = llm(ids).logits, llm.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    prompt, mask = prompts(0, [5])
    ours(llm, prompt, mask, 1, DecodingConfig(beams=2, max_length=4))
    with pytest.raises(RuntimeError):
        ours(llm, prompt[..., :5], mask, 1, DecodingConfig(beams=2, max_length=4))
    assert torch.equal(llm(ids).logits, plain)
    assert torch.equal(llm.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), said)


@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_attention_beside_searches_is_the_model_own(own):
    """Padded rows, gradients and a plain cache go through what `share_prompts` puts in place of the attention."""
    ours, theirs = tiny_llm(), tiny_llm()
    for llm in (ours, theirs):
        llm.set_attn_implementation(own)
    share_prompts(ours)
    ids, mask = torch.arange(3, 15).view(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    for llm in (ours, theirs):
        llm(ids, attention_mask=mask).logits.square().mean().backward()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs) and len(pairs) > 10
    said = [llm.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=3, pad_token_id=0) for llm in (ours, theirs)]
    assert torch.equal(*said)


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(4))
def test_the_benchmark_compares_like_with_like(seed):
    """Its cacheless side finds the same captions, so that only the speed differs; here in float32, free of near ties."""
    language, decoding = tiny_language(seed), DecodingConfig(beams=4, min_length=2, max_length=10)
    head = nn.Linear(32, language.llm.config.vocab_size)
    head.weight.copy_(language.llm.lm_head.weight)
    head.bias.zero_()[language.stop] = 3.0
    language.llm.lm_head = head
    torch.manual_seed(seed)
    prompts = language.prompt(torch.randn(3, 4, 32), [["dog"], [], ["cat", "bus"]])
    best = beam_search(language.llm, prompts.embeddings, prompts.mask, language.stop, 1, decoding)
    for ((_, tokens),), embeddings, mask in zip(best, prompts.embeddings, prompts.mask, strict=True):
        assert beams_from_scratch(language, embeddings[mask], decoding) == tokens


def test_decode_gives_the_text_of_the_search():
    language = tiny_language()
    torch.manual_seed(0)
    prompt = language.prompt(torch.randn(2, 4, 32), [["dog"], []])
    decoding = DecodingConfig(beams=3, max_length=6)
    with torch.inference_mode():
        rows = beam_search(language.llm, prompt.embeddings, prompt.mask, language.stop, 2, decoding)
    texts = language.decode(prompt, 2, decoding)
    assert [[(h.score, h.text) for h in row] for row in texts] == [
        [(score, language.tokenizer.decode(t, skip_special_tokens=True).strip()) for score, t in row] for row in rows
    ]
    one = language.decode(prompt, 1, dataclasses.replace(decoding, beams=1))
    assert [len(row) for row in texts] == [2, 2] and [len(row) for row in one] == [1, 1]
