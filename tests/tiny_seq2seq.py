"""Tiny encoder-decoder language models with random weights, and their tokenizers: one token per character."""

import torch
import transformers as t
from tiny import CHARACTERS, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from evcap.config import LanguageConfig
from evcap.language.encoder_decoder import EncoderDecoderModel

END = len(CHARACTERS)
T5 = {"vocab_size": END + 1, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 1, "pad_token_id": 1, "eos_token_id": END, "initializer_factor": 1.0}
BART = {"vocab_size": END + 1, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.3, "scale_embedding": True}
BART |= {"decoder_start_token_id": END, "eos_token_id": END, "bos_token_id": 0, "pad_token_id": 1, "forced_bos_token_id": 0}
# T5 v1.0, whose output embeddings are its input's; Flan-T5, whose are not; BART, with learned places and a begin token
FAMILIES = {
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
    "flan-t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**BART)),
}


def seq2seq_llm(family: str, seed: int = 0):
    torch.manual_seed(seed)
    llm = FAMILIES[family]().eval()
    if family == "bart":
        llm.generation_config.forced_bos_token_id = 0
    if family == "flan-t5":
        llm.lm_head.weight = torch.nn.Parameter(torch.randn(END + 1, 32) * 0.5)  # its own, as in Google's files
    return llm


def seq2seq_tokenizer(family: str) -> t.PreTrainedTokenizerFast:
    """T5's adds an end token to a text, BART's a begin token as well."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    around = "<s> $A </s>" if family == "bart" else "$A </s>"
    tokens = [("<s>", 0), ("</s>", END)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=tokens)
    if family != "bart":
        tokenizer.bos_token = None
    return tokenizer


def seq2seq_language(family: str, seed: int = 0, **settings) -> EncoderDecoderModel:
    """The model in evcap's hands; `settings` overrides fields of LanguageConfig."""
    plain = {"before": "Look: ", "after": "\nCaption:", "names": "\nObjects: {names}.", "names_in_prompt": True}
    config = LanguageConfig(kind=family, hidden=32, **(plain | settings))
    return EncoderDecoderModel(config, seq2seq_llm(family, seed), seq2seq_tokenizer(family))


def save_seq2seq(folder, family: str) -> None:
    """A folder with the model and its tokenizer."""
    seq2seq_llm(family).save_pretrained(folder)
    seq2seq_tokenizer(family).save_pretrained(folder)
