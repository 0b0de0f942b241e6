"""Language models of other families and precisions in LLaMA's place: loss and decoding against their plain forward pass."""

import dataclasses
import importlib.util

import pytest
import torch
from tiny import CHARACTERS, tiny_llm, tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

from bench.release_decoding import release_way
from evcap.config import LanguageConfig, load_preset
from evcap.errors import EvcapError
from evcap.language.model import LanguageModel
from evcap.language.release_search import release_search
from evcap.model.build import build_language, language_precision_in_training

SIZES = {
    "vocab_size": len(CHARACTERS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.5}
CONFIGS = {
    "mistral": MistralConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "gpt-neox": GPTNeoXConfig(**SIZES, intermediate_size=48, initializer_range=0.5),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.5),
    "gpt2": GPT2Config(vocab_size=len(CHARACTERS), n_embd=32, n_layer=2, n_head=4, initializer_range=0.5),
}
CAPTIONS = [["a dog", "the cat sat"], ["x"]]


@torch.inference_mode()
@pytest.mark.parametrize("family", CONFIGS)
def test_other_families_decode_and_train_alike(family):
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation="eager").eval()
    vectors, mask = torch.randn(2, 5, 32), torch.tensor([[True] * 5, [True, True, False, True, True]])
    found = release_search(llm, vectors, mask, [3, 4], 4, 7)
    for row, own, real in zip(found, vectors, mask, strict=True):
        assert [t for _, t in row] == [t for _, t in release_way(llm, own[real], [3, 4], 4, 7)]

    language = LanguageModel(LanguageConfig(kind=family, hidden=32, before="a", after="b"), llm, tiny_tokenizer())
    prompt = language.prompt(torch.randn(2, 4, 32), [[], []])
    losses = language.token_losses(prompt, language.pack(CAPTIONS))
    for b, captions in enumerate(CAPTIONS):
        head, place = prompt.embeddings[b][prompt.mask[b]], 0
        for caption in captions:
            ids = torch.tensor(language.ids(" " + caption) + [language.stop])
            logits = llm(inputs_embeds=torch.cat([head, language.embed(ids)])[None]).logits[0, len(head) - 1 : -1]
            expected = nn.functional.cross_entropy(logits, ids, reduction="none")
            torch.testing.assert_close(losses[b, place : place + len(ids)], expected, atol=2e-5, rtol=1e-5)
            place += len(ids)


def saved(tmp_path, llm=None) -> LanguageConfig:
    (llm or tiny_llm()).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    return LanguageConfig(kind=str(tmp_path / "llm"), hidden=32, before="a", after="b")


def saved_wide(tmp_path) -> LanguageConfig:
    """4-bit weights come in blocks of 64."""
    torch.manual_seed(1)
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    return dataclasses.replace(saved(tmp_path, LlamaForCausalLM(LlamaConfig(**sizes))), hidden=64)


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "stored"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("8bit", "int8"), ("4bit", "uint8")],
)
def test_precisions(precision, stored, tmp_path, monkeypatch):
    monkeypatch.setattr("evcap.runtime.computes_bfloat16", lambda device: True)  # whatever this CPU has
    """The frozen weights lie in that form, and the loss stays near that of float32."""
    config = saved_wide(tmp_path)
    vectors, losses = torch.randn(2, 4, 64), []
    for form in (precision, "float32"):
        language = build_language(config, form, CPU)
        with torch.inference_mode():
            losses.append(language.loss(language.prompt(vectors, [[], []]), language.pack(CAPTIONS)).item())
        if form == precision:
            assert str(language.llm.model.layers[0].mlp.up_proj.weight.dtype) == f"torch.{stored}"
    assert losses[0] == pytest.approx(losses[1], rel=0.05 if precision == "4bit" else 0.01)


def test_gradients_pass_through_8_bits(tmp_path, monkeypatch):
    """As training does it, under autocast in bfloat16; against float32."""
    monkeypatch.setattr("evcap.runtime.computes_bfloat16", lambda device: True)
    config = saved_wide(tmp_path)
    vectors, gradients = torch.randn(2, 4, 64), []
    paper = load_preset("evcap-vicuna-13b")
    precisions = [dataclasses.replace(paper.language, precision=name) for name in ("8bit", "4bit", "float16")]
    presets = [dataclasses.replace(paper, language=p) for p in precisions]
    assert [language_precision_in_training(p, torch.device("cuda")) for p in presets] == ["8bit", "4bit", "bfloat16"]
    for form in ("8bit", "float32"):
        given, language = vectors.clone().requires_grad_(), build_language(config, form, CPU)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=form == "8bit"):
            language.loss(language.prompt(given, [[], []]), language.pack(CAPTIONS)).backward()
        gradients.append(given.grad.flatten())
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
@torch.inference_mode()
def test_adapters_stay_beside_weights_of_few_bits(precision, tmp_path):
    language = build_language(dataclasses.replace(saved_wide(tmp_path), lora_rank=2), precision, CPU)
    ids = torch.arange(3, 15).view(2, 6)
    plain = language.llm(ids).logits
    for parameter in (p for name, p in language.named_parameters() if name.endswith(".up")):
        parameter.normal_(std=0.2)
    wrapped = language.llm(ids).logits
    language.merge()
    assert torch.equal(language.llm(ids).logits, wrapped) and (wrapped - plain).abs().max() > 0.1


def test_a_precision_whose_library_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvcapError, match=r"precision '8bit' needs bitsandbytes: pip install 'evcap\[gpu\]'"):
        build_language(saved(tmp_path), "8bit", CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"hidden": 40}, "is 32 wide, the preset says language.hidden: 40"), ({"kind": "no/such"}, "cannot be opened: ")],
)
def test_a_model_that_does_not_fit(change, said, tmp_path):
    with pytest.raises(EvcapError, match=said):
        build_language(dataclasses.replace(saved(tmp_path), **change), "float32", CPU)


def test_an_unknown_precision(tmp_path):
    with pytest.raises(EvcapError, match="unknown precision 'int3', known: float32, bfloat16, float16, 8bit, 4bit"):
        build_language(saved(tmp_path), "int3", CPU)


def test_models_that_cap_their_logits_are_refused(tmp_path):
    """Gemma 2's loss here, and its attention in the search, would leave the caps out."""
    gemma = AutoModelForCausalLM.from_config(Gemma2Config(**GROUPED, head_dim=8))
    with pytest.raises(EvcapError, match="caps its logits"):
        build_language(saved(tmp_path, gemma), "float32", CPU)


def test_vicunas_kind_of_tokenizer(tmp_path):
    """A folder with a SentencePiece model alone, as Vicuna's has: a newline is one byte, text comes back."""
    import sentencepiece

    lines = ["a dog runs on the beach", "two people and a red kite", "the cat sat on a mat"] * 20
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    llm = tiny_llm(vocabulary=320)
    llm.save_pretrained(tmp_path / "llm")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "llm" / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "llm" / "tokenizer.vocab").unlink()
    (tmp_path / "llm" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}')
    config = LanguageConfig(kind=str(tmp_path / "llm"), hidden=32, before="###Human: <Img>", after="</Img> ###Assistant: ")
    language = build_language(config, "float32", CPU)
    assert isinstance(language.llm, LlamaForCausalLM)
    assert language.stop == 13 and language.tokenizer.bos_token_id == 1  # <unk> <s> </s>, then the bytes: 3 + 10
    packed = language.pack([["a dog runs on the mat"]])
    assert language._text(packed.ids[0, :-1].tolist()) == "a dog runs on the mat"
    assert torch.float32 == language.prompt(torch.zeros(1, 2, 32), [[]]).embeddings.dtype
