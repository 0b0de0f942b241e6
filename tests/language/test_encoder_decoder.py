"""Encoder-decoder language models: loss, search and hidden states against the library's own, each caption and image alone."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_seq2seq import END, FAMILIES, save_seq2seq, seq2seq_language, seq2seq_llm, seq2seq_tokenizer
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from evcap.config import DecodingConfig, LanguageConfig
from evcap.errors import EvcapError
from evcap.language.encoder_decoder import EncoderDecoderModel
from evcap.language.lora import LoraLinear
from evcap.model.build import build_language
from evcap.runtime import language_dtype

NAMES = [["dog", "fire hydrant"], ["cat"], []]
CAPTIONS = [["A dog runs", "dogs"], ["A cat on a mat", "Cat", "the Cat sleeps"], ["x"]]
CPU = torch.device("cpu")


@pytest.fixture(params=FAMILIES)
def language(request):
    return seq2seq_language(request.param)


@pytest.fixture
def vectors():
    torch.manual_seed(3)
    return torch.randn(3, 5, 32)


def plain_prompts(language, vectors, names):
    """Unpadded prompts (1,P,32), made from text as the library's tokenizer reads it."""
    embed, config, tokenizer = language.llm.get_input_embeddings(), language.config, language.tokenizer
    rows = []
    for row, listed in zip(vectors, names, strict=True):
        words = config.names.format(names=", ".join(listed) or "none")
        head = tokenizer(config.before)["input_ids"][:-1]  # without the end
        tail = tokenizer(words + config.after)["input_ids"]
        tail = tail[1:] if tail[0] == 0 else tail  # the begin token stands once, before all
        rows.append(torch.cat([embed(torch.tensor(head)), row, embed(torch.tensor(tail))])[None])
    return rows


def plain_losses(language, vectors, names, captions):
    """Losses of every token, each caption alone through the library's `labels`."""
    losses = []
    for prompt, texts in zip(plain_prompts(language, vectors, names), captions, strict=True):
        for text in texts:
            labels = torch.tensor(language.tokenizer(text)["input_ids"])[None]
            out = language.llm(inputs_embeds=prompt, labels=labels)
            each = cross_entropy(out.logits[0], labels[0], reduction="none")
            torch.testing.assert_close(each.mean(), out.loss)
            losses.append(each)
    return losses


@torch.no_grad()
@pytest.mark.parametrize("slots", [0, 60])
def test_packed_loss_equals_separate_passes(language, vectors, slots):
    packed = language.pack(CAPTIONS, slots)
    losses = language.token_losses(language.prompt(vectors, NAMES), packed)
    expected = torch.cat(plain_losses(language, vectors, NAMES, CAPTIONS))
    torch.testing.assert_close(losses[packed.segment > 0], expected, atol=1e-5, rtol=1e-5)
    assert (losses[packed.segment == 0] == 0).all() and expected.std() > 0.1
    torch.testing.assert_close(language.loss(language.prompt(vectors, NAMES), packed), expected.mean(), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_vectors(language, vectors):
    packed_input, plain_input = (vectors.clone().requires_grad_() for _ in range(2))
    language.loss(language.prompt(packed_input, NAMES), language.pack(CAPTIONS)).backward()
    torch.cat(plain_losses(language, plain_input, NAMES, CAPTIONS)).mean().backward()
    torch.testing.assert_close(packed_input.grad, plain_input.grad, atol=1e-5, rtol=1e-4)
    assert packed_input.grad.abs().min(-1).values.max() > 0
    nothing = vectors.clone().requires_grad_()
    language.loss(language.prompt(nothing, NAMES), language.pack([["too long for it"]] * 3, slots=4)).backward()
    assert (nothing.grad == 0).all()


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(language, vectors):
    packed = language.pack(CAPTIONS)
    prompt, wide = language.prompt(vectors, NAMES), language.prompt(vectors, NAMES, tail_slots=70)
    assert wide.mask.shape[1] > prompt.mask.shape[1]
    tight = language.token_losses(prompt, packed)
    torch.testing.assert_close(language.token_losses(wide, packed), tight, atol=1e-5, rtol=1e-5)
    for one, alone in enumerate(plain_prompts(language, vectors, NAMES)):
        torch.testing.assert_close(prompt.embeddings[one][prompt.mask[one]], alone[0])
    assert language.decode(wide, 2, DecodingConfig(max_length=8))[1][0].tokens == (
        language.decode(language.prompt(vectors[1:2], NAMES[1:2]), 2, DecodingConfig(max_length=8))[0][0].tokens
    )
    assert language.widest_tail() == len("\nCaption:") + 1 + 40


def cut(tokens):
    return tokens[: tokens.index(END)] if END in tokens else tokens


@torch.inference_mode()
@pytest.mark.parametrize(
    "decoding",
    [
        DecodingConfig(beams=1, max_length=9),
        DecodingConfig(beams=1, max_length=9, min_length=5, length_penalty=0.3),
        DecodingConfig(beams=4, max_length=9),
        DecodingConfig(beams=4, max_length=12, min_length=6, length_penalty=0.3),
        DecodingConfig(beams=4, max_length=12, length_penalty=0.3, repetition_penalty=1.5),
    ],
)
def test_decoding_is_the_librarys(language, vectors, decoding):
    """Each image alone and unpadded. An end token that is likely makes lengths differ."""
    language.llm.get_output_embeddings().weight[END] += 0.5 * language.llm.get_output_embeddings().weight[5]
    count = min(3, decoding.beams)
    found = language.decode(language.prompt(vectors, NAMES), count, decoding)
    forced = language.llm.config.model_type == "bart"
    settings = GenerationConfig(
        num_beams=decoding.beams,
        num_return_sequences=count,
        min_new_tokens=decoding.min_length,
        max_new_tokens=decoding.max_length,
        length_penalty=decoding.length_penalty,
        repetition_penalty=decoding.repetition_penalty,
        decoder_start_token_id=END if forced else 1,
        forced_bos_token_id=0 if forced else None,
        eos_token_id=END,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for row, prompt in zip(found, plain_prompts(language, vectors, NAMES), strict=True):
        own = language.llm.generate(inputs_embeds=prompt, generation_config=settings)
        expected = [cut(tokens) for tokens in own.sequences[:, 1:].tolist()]
        assert [list(h.tokens) for h in row] == expected
        assert [h.text for h in row] == [language.tokenizer.decode(e, skip_special_tokens=True).strip() for e in expected]
        if decoding.beams > 1:
            torch.testing.assert_close(torch.tensor([h.score for h in row]), own.sequences_scores, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_scores_are_log_probabilities_over_length(language, vectors):
    prompt = language.prompt(vectors, NAMES)
    (row, *_) = language.decode(prompt, 1, DecodingConfig(beams=1, max_length=6, length_penalty=0.5))
    tokens = [*row[0].tokens, *([END] if len(row[0].tokens) < 6 else [])]
    (alone, *_) = plain_prompts(language, vectors, NAMES)
    logits = language.llm(inputs_embeds=alone, labels=torch.tensor([tokens])).logits[0].log_softmax(-1)
    each = logits.gather(1, torch.tensor(tokens)[:, None])
    total = each[1:].sum() if language.llm.config.model_type == "bart" else each.sum()  # a begin token that is forced is free
    assert row[0].score == pytest.approx(total.item() / len(tokens) ** 0.5, abs=1e-4)


@torch.inference_mode()
def test_hidden_states_of_what_was_generated(language, vectors):
    prompt = language.prompt(vectors, NAMES)
    found = language.decode(prompt, 2, DecodingConfig(beams=3, max_length=7))
    packed = language.pack_ids([[h.tokens for h in row] for row in found])
    states = language.hidden_states(prompt, packed)
    start = language.llm.config.decoder_start_token_id
    for b, alone in enumerate(plain_prompts(language, vectors, NAMES)):
        encoded = language.llm.get_encoder()(inputs_embeds=alone).last_hidden_state
        for number, hypothesis in enumerate(found[b], 1):
            ids = torch.tensor([[start, *hypothesis.tokens]])
            plain = language.llm.get_decoder()(input_ids=ids, encoder_hidden_states=encoded).last_hidden_state[0, 1:]
            torch.testing.assert_close(states[b][packed.segment[b] == number], plain, atol=1e-5, rtol=1e-4)


def test_captions_end_in_the_models_own_token(language):
    packed = language.pack([["abcdef", "b"]], max_tokens=5)
    begin = [0] if language.llm.config.model_type == "bart" else []
    first = [*begin, *language.ids("abcdef")][:4] + [END]
    assert packed.ids[0].tolist() == [*first, *begin, *language.ids("b"), END]
    assert not language.hidden_states(language.prompt(torch.zeros(1, 2, 32), [[]]), language.pack([["long"]], 2)).any()


def test_the_release_search_is_refused(language, vectors):
    with pytest.raises(EvcapError, match="search 'release' is for causal language models: set decoding.search to beam"):
        language.decode(language.prompt(vectors, NAMES), 1, DecodingConfig(search="release"))


def test_what_a_model_wants_by_default_is_the_presets_to_say(vectors):
    """As bart-large-cnn, which forbids repetitions and short answers."""
    plain = seq2seq_language("bart")
    llm = seq2seq_llm("bart")
    llm.generation_config.update(no_repeat_ngram_size=1, min_length=20, num_beams=6, length_penalty=2.0, early_stopping=True)
    other = EncoderDecoderModel(plain.config, llm, seq2seq_tokenizer("bart"))
    for decoding in (DecodingConfig(beams=1, max_length=9), DecodingConfig(beams=3, max_length=9)):
        asked = [one.decode(one.prompt(vectors, NAMES), 1, decoding) for one in (plain, other)]
        assert asked[0] == asked[1]


@torch.no_grad()
@pytest.mark.parametrize(("family", "expected"), [("t5", 2 * (4 + 2) + 2 * (8 + 2)), ("flan-t5", 2 * (4 + 3) + 2 * (8 + 3))])
def test_adapters_on_t5s_projections(vectors, family, expected):
    language = seq2seq_language(family, lora_rank=2)
    wrapped = [m for m in language.modules() if isinstance(m, LoraLinear)]
    assert len(wrapped) == expected
    prompt, packed = language.prompt(vectors, NAMES), language.pack(CAPTIONS)
    before = language.token_losses(prompt, packed)
    torch.testing.assert_close(before, seq2seq_language(family).token_losses(prompt, packed))
    for module in wrapped:
        torch.nn.init.normal_(module.up, std=0.2)
    after = language.token_losses(prompt, packed)
    assert (after - before).abs().max() > 0.1
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(language.plain(ids, labels=ids).loss, seq2seq_language(family).llm(ids, labels=ids).loss)
    language.merge()
    torch.testing.assert_close(language.token_losses(prompt, packed), after, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_float16_is_kept_away(vectors):
    language = seq2seq_language("flan-t5")
    prompt, packed = language.prompt(vectors, NAMES), language.pack(CAPTIONS)
    plain, states = language.token_losses(prompt, packed), language.hidden_states(prompt, packed)
    said = language.decode(prompt, 1, DecodingConfig(max_length=6))
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(language.token_losses(prompt, packed), plain)
        assert torch.equal(language.hidden_states(prompt, packed), states)
        assert language.decode(prompt, 1, DecodingConfig(max_length=6)) == said
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(language.token_losses(prompt, packed), plain)


def test_precisions(tmp_path, monkeypatch):
    save_seq2seq(tmp_path, "flan-t5")
    config = LanguageConfig(kind=str(tmp_path), hidden=32, before="", after="")
    refused = dataclasses.replace(config, precision="float16")
    with pytest.raises(EvcapError, match="T5 overflows in float16: set precision to bfloat16 or float32"):
        build_language(refused, "float16", CPU)
    assert build_language(config, "float16", CPU).llm.dtype == torch.float32  # as training asks for where there is no bfloat16
    monkeypatch.setattr("evcap.runtime.computes_bfloat16", lambda device: False)
    cuda = torch.device("cuda")
    assert language_dtype("bfloat16", cuda) == torch.float16
    assert [language_dtype(p, cuda, True) for p in ("bfloat16", "8bit", "float32")] == [torch.float32] * 3
    monkeypatch.setattr("evcap.runtime.computes_bfloat16", lambda device: True)
    language = build_language(dataclasses.replace(config, precision="bfloat16"), "bfloat16", CPU)
    assert isinstance(language, EncoderDecoderModel) and language.llm.dtype == torch.bfloat16
    prompt = language.prompt(torch.randn(2, 4, 32), [[], []])
    assert prompt.embeddings.dtype == torch.bfloat16
    assert language.token_losses(prompt, language.pack([["a dog"], ["x"]])).dtype == torch.float32
    assert len(language.decode(prompt, 2, DecodingConfig(max_length=4))[1]) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_open_by_themselves(tmp_path, family):
    """What the folder says decides which kind it is."""
    save_seq2seq(tmp_path, family)
    language = build_language(LanguageConfig(kind=str(tmp_path), hidden=32, before="a", after="b"), "float32", CPU)
    assert isinstance(language, EncoderDecoderModel) and language.stop == END
    assert torch.equal(language.llm.lm_head.weight, seq2seq_llm(family).lm_head.weight)
    assert (family == "flan-t5") == (not torch.equal(language.llm.lm_head.weight, language.llm.get_input_embeddings().weight))
    with pytest.raises(EvcapError, match="is 32 wide, the preset says language.hidden: 40"):
        build_language(LanguageConfig(kind=str(tmp_path), hidden=40, before="a", after="b"), "float32", CPU)


def test_threads():
    language = seq2seq_language("flan-t5", lora_rank=2)
    for module in language.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.up, std=0.2)
    prompts = [language.prompt(torch.randn(1 + n % 3, 4, 32), [["dog"], [], ["cat", "bus"]][: 1 + n % 3]) for n in range(5)]

    def work(call: int):
        return language.decode(prompts[call % 5], 1, DecodingConfig(beams=1 + call % 3, max_length=3 + call % 4))

    alone = [work(call) for call in range(60)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(60))) == alone
    assert len({str(row) for row in alone}) > 10


def test_compiled_training(vectors):
    language = seq2seq_language("t5")
    packed = language.pack(CAPTIONS)
    losses = []
    for _ in range(2):
        given = vectors.clone().requires_grad_()
        loss = language.loss(language.prompt(given, NAMES), packed)
        loss.backward()
        losses.append((loss.detach(), given.grad))
        language.compile()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)


def test_a_model_without_all_its_tensors_is_refused(tmp_path):
    save_seq2seq(tmp_path, "t5")
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in sorted(tensors) if name.startswith("encoder.block.1"))
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvcapError, match=f"has no tensor '{gone}' \\(1 are missing\\)"):
        build_language(LanguageConfig(kind=str(tmp_path), hidden=32, before="", after=""), "float32", CPU)
