"""Frozen encoder-decoder language models, T5 and its kin: the prompt is what the encoder reads, the caption what is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from evcap.config import DecodingConfig
from evcap.errors import EvcapError
from evcap.language.model import Block, Hypothesis, LanguageModel, PackedCaptions, Prompt
from evcap.runtime import without_float16


class EncoderDecoderModel(LanguageModel):
    """An encoder-decoder model of transformers behind the interface of causal ones. Captions end in the model's own end token.

    One caption is one row of the decoder, which starts anew for each: captions of an image share the encoder's pass and do
    not see one another, whatever positions a family knows. Nothing runs under an autocast to float16.
    """

    def _set_up(self) -> None:
        from transformers import GenerationConfig

        added = self.tokenizer("")["input_ids"]  # what the tokenizer puts around every text
        self.stop = self.tokenizer.eos_token_id
        if self.stop is None:
            raise EvcapError(f"language model '{self.config.kind}': its tokenizer has no end token")
        self.last = [self.stop] if added[-1:] == [self.stop] else []
        self.first = added[: len(added) - len(self.last)]
        own, config = self.llm.generation_config, self.llm.config
        self._start, begin = (
            getattr(config, name, None) if getattr(own, name) is None else getattr(own, name)
            for name in ("decoder_start_token_id", "forced_bos_token_id")
        )
        if self._start is None:
            raise EvcapError(f"language model '{self.config.kind}' has no decoder_start_token_id")
        pad = self.tokenizer.pad_token_id
        self._tokens = {
            "eos_token_id": self.stop,
            "pad_token_id": self.stop if pad is None else pad,
            "decoder_start_token_id": self._start,
            "forced_bos_token_id": begin,
        }
        # the rest of what a model wants by default, a ban of repetitions for one, is the preset's to say
        self.llm.generation_config = GenerationConfig(**self._tokens)

    def _body(self) -> nn.Module:
        return self.llm.get_encoder()

    def joined(self, blocks: Sequence[Block]) -> Prompt:
        """As that of causal models, but padding goes to the end: the encoder counts places."""
        prompt = super().joined(blocks)
        order = prompt.mask.long().argsort(dim=1, descending=True, stable=True)
        embeddings = prompt.embeddings.gather(1, order[..., None].expand_as(prompt.embeddings))
        return Prompt(embeddings, prompt.mask.gather(1, order))

    def _target(self, caption: str) -> list[int]:
        return self.first + self.ids(caption.strip())

    def token_losses(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """Cross-entropy (B,L) of every caption token given the image and its caption so far, 0 in empty slots."""
        real = packed.segment > 0
        losses = prompt.embeddings.sum() * 0 + torch.zeros(real.shape, device=real.device)
        if not real.any():
            return losses
        with without_float16(real.device):
            rows = _Rows(packed, self._start)
            encoded = self._encoded(prompt)[rows.image]
            output = self.llm(
                encoder_outputs=(encoded,), attention_mask=prompt.mask[rows.image].long(), decoder_input_ids=rows.inputs
            )
            logits = output.logits[rows.row, packed.offset[real]].float()
        each = nn.functional.cross_entropy(logits, packed.ids[real], reduction="none")
        return losses.masked_scatter(real, each)

    def hidden_states(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """The decoder's last output (B,L,d) behind every caption token, see `LanguageModel.hidden_states`."""
        real = packed.segment > 0
        states = prompt.embeddings.new_zeros(*real.shape, prompt.embeddings.shape[-1])
        if not real.any():
            return states
        with without_float16(real.device):
            rows = _Rows(packed, self._start)
            found = self.llm.get_decoder()(
                input_ids=rows.inputs,
                encoder_hidden_states=self._encoded(prompt)[rows.image],
                encoder_attention_mask=prompt.mask[rows.image].long(),
                use_cache=False,
            ).last_hidden_state
        behind = found[rows.row, packed.offset[real] + 1]  # the decoder reads its start token before the first of a caption
        return states.to(behind.dtype).masked_scatter(real[..., None], behind)

    def _encoded(self, prompt: Prompt) -> torch.Tensor:
        """The encoder's output (B,P,d)."""
        return self._trunk(inputs_embeds=prompt.embeddings, attention_mask=prompt.mask.long()).last_hidden_state

    @torch.inference_mode()
    def decode(self, prompt: Prompt, num_captions: int, decoding: DecodingConfig) -> list[list[Hypothesis]]:
        """The `num_captions` likeliest captions of each image, likeliest first, by transformers' own search."""
        from transformers import GenerationConfig

        if decoding.search != "beam":
            raise EvcapError(f"search '{decoding.search}' is for causal language models: set decoding.search to beam")
        settings = GenerationConfig(
            num_beams=max(decoding.beams, num_captions),
            num_return_sequences=num_captions,
            min_new_tokens=decoding.min_length,
            max_new_tokens=decoding.max_length,
            length_penalty=decoding.length_penalty,
            repetition_penalty=decoding.repetition_penalty,
            do_sample=False,
            **self._tokens,
        )
        with without_float16(prompt.mask.device):
            found = self.llm.generate(
                inputs_embeds=prompt.embeddings, attention_mask=prompt.mask.long(), generation_config=settings
            )
        ended = [self._through_stop(row[1:].tolist()) for row in found]
        rows = [ended[start : start + num_captions] for start in range(0, len(ended), num_captions)]
        scores = self._scores(prompt, rows, decoding)
        return [[self._hypothesis(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(rows, scores, strict=True)]

    def _through_stop(self, tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(self.stop) + 1] if self.stop in tokens else tokens

    def _hypothesis(self, tokens: list[int], score: float) -> Hypothesis:
        kept = tokens[:-1] if tokens[-1] == self.stop else tokens
        return Hypothesis(self._text(kept), score, tuple(kept))

    def _scores(self, prompt: Prompt, rows: list[list[list[int]]], decoding: DecodingConfig) -> list[list[float]]:
        """As the search ranks them, which `generate` tells of beams alone: log-probability, repeated tokens penalised, over
        length ** length_penalty."""
        packed = self.pack_ids(rows).to(prompt.mask.device)
        losses = self.token_losses(prompt, packed)
        alike = (packed.ids[:, None] == packed.ids[..., None]) & (packed.segment[:, None] == packed.segment[..., None])
        repeated = alike.tril(-1).any(-1) | (packed.ids == self._start)  # with which the decoder begins
        losses = torch.where(repeated, losses * decoding.repetition_penalty, losses)
        if self._tokens["forced_bos_token_id"] is not None:
            losses = losses.masked_fill(packed.offset == 0, 0.0)  # not chosen
        totals = [
            [each[segment == number].sum().item() for number in range(1, len(row) + 1)]
            for each, segment, row in zip(losses, packed.segment, rows, strict=True)
        ]
        return [
            [-total / len(tokens) ** decoding.length_penalty for total, tokens in zip(*pair, strict=True)]
            for pair in zip(totals, rows, strict=True)
        ]


class _Rows:
    """Packed captions one below the other, as N rows of the decoder: image (N,), inputs (N,T) and, for each real slot of the
    packing in its order, the row (n,) of its caption."""

    def __init__(self, packed: PackedCaptions, start: int):
        real = packed.segment > 0
        begins = real & (packed.offset == 0)
        self.image = begins.nonzero()[:, 0]
        self.row = (begins.flatten().cumsum(0) - 1).view_as(packed.ids)[real]
        width = int(packed.offset[real].max()) + 2
        # what lies behind a caption's end is never looked at: the decoder is causal
        self.inputs = packed.ids.new_full((len(self.image), width), start)
        self.inputs[self.row, packed.offset[real] + 1] = packed.ids[real]
