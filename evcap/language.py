"""The frozen language model: prompt embeddings around visual vectors, the packed caption loss, decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evcap.config import DecodingConfig, LanguageConfig
from evcap.errors import EvcapError
from evcap.lora import add_lora, merge_lora
from evcap.release_search import release_search
from evcap.search import beam_search

IGNORED = -100
RELEASE_STOPS = ("\n", ".", " .")


@dataclass
class Prompt:
    """Embedded prompt of B pictures. Padding lies inside, before the text tail, so the last column is always real."""

    embeddings: torch.Tensor  # (B,P,d)
    mask: torch.Tensor  # (B,P) bool, True = real


@dataclass(frozen=True)
class Hypothesis:
    """A caption that the search found, and its length-normalised log-probability."""

    text: str
    score: float


@dataclass
class PackedCaptions:
    """All captions of each picture in one row of L slots, behind one shared prompt."""

    ids: torch.Tensor  # (B,L) int64
    segment: torch.Tensor  # (B,L) int64: 1, 2, ... the caption a slot belongs to; 0 = empty slot
    offset: torch.Tensor  # (B,L) int64: place of the token inside its caption

    def to(self, device: torch.device) -> PackedCaptions:
        return PackedCaptions(self.ids.to(device), self.segment.to(device), self.offset.to(device))


class LanguageModel(nn.Module):
    """A causal language model of transformers with its tokenizer; frozen but for optional LoRA adapters."""

    def __init__(self, config: LanguageConfig, llm: nn.Module, tokenizer):
        super().__init__()
        self.config = config
        self.llm = llm.requires_grad_(False)
        self.tokenizer = tokenizer
        self.newline = self._ids("\n")[-1]
        self.first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]  # Qwen begins without
        self._trunk = self.llm.base_model.__call__
        if config.lora_rank:
            add_lora(self.llm, config.lora_rank, config.lora_alpha)

    def compile(self) -> None:
        """Compile the caption loss's pass through the language model: about twice as fast on CPUs, fixed shapes only."""
        self._trunk = torch.compile(self.llm.base_model.forward, dynamic=False)

    def merge(self) -> None:
        """Fold LoRA into the weights for inference."""
        merge_lora(self.llm)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llm.get_input_embeddings()(ids)

    def name_ids(self, names: Sequence[str]) -> list[int]:
        """Tokens of the prompt's name list, as many whole names as fit into `names_tokens`."""
        for count in range(len(names), -1, -1):
            ids = self._ids(self.config.names.format(names=", ".join(names[:count]) or "none"))
            if len(ids) <= self.config.names_tokens:
                return ids
        return []

    def widest_tail(self) -> int:
        """Slots that the text after the vectors needs at most; compiled training pads to it."""
        return len(self._ids(self.config.after)) + (self.config.names_tokens if self.config.names_in_prompt else 0)

    def prompt(self, vectors: torch.Tensor, names: Sequence[Sequence[str]], tail_slots: int = 0) -> Prompt:
        """BOS + before + vectors (B,T,d) + names + after, for B lists of names.

        `tail_slots` fixes the width of the text tail (for compiled training); 0 = as wide as the longest needs.
        """
        after = self._ids(self.config.after)
        use_names = self.config.names_in_prompt
        tails = [(self.name_ids(row) if use_names else []) + after for row in names]
        width = max(tail_slots, max(map(len, tails)))
        ids = torch.tensor([[self.newline] * (width - len(t)) + t for t in tails], dtype=torch.long, device=vectors.device)
        head = torch.tensor([*self.first, *self._ids(self.config.before)], dtype=torch.long, device=vectors.device)
        head = self.embed(head).expand(len(vectors), -1, -1)
        embeddings = torch.cat([head, vectors.to(head.dtype), self.embed(ids)], dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=vectors.device)
        pad = torch.tensor([width - len(t) for t in tails], device=vectors.device)
        mask[:, mask.shape[1] - width :] = torch.arange(width, device=vectors.device) >= pad[:, None]
        return Prompt(embeddings, mask)

    def pack(self, captions: Sequence[Sequence[str]], slots: int = 0, max_tokens: int = 32) -> PackedCaptions:
        """Captions of B pictures -> rows of `slots` tokens (0 = as many as needed), each caption ending in a newline.

        A caption longer than `max_tokens` is cut; one that no longer fits into the row is left out.
        """
        rows = [[self._ids(" " + c.strip())[: max_tokens - 1] + [self.newline] for c in row] for row in captions]
        slots = slots or max(sum(map(len, row)) for row in rows)
        packed = torch.zeros(3, len(rows), slots, dtype=torch.long)
        packed[0] = self.newline
        for b, row in enumerate(rows):
            start = 0
            for number, ids in enumerate(row, 1):
                stop = start + len(ids)
                if stop <= slots:
                    packed[0, b, start:stop] = torch.tensor(ids)
                    packed[1, b, start:stop] = number
                    packed[2, b, start:stop] = torch.arange(len(ids))
                    start = stop
        return PackedCaptions(*packed)

    def token_losses(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """Cross-entropy (B,L) of every caption token given the picture and its caption so far, 0 in empty slots."""
        segment = packed.segment
        length = prompt.mask.shape[1]
        all_segments = torch.cat([torch.zeros_like(prompt.mask, dtype=torch.long), segment], dim=1)
        real = torch.cat([prompt.mask, segment > 0], dim=1)
        causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril()
        same = (all_segments[:, None, :] == 0) | (all_segments[:, None, :] == all_segments[:, :, None])
        visible = causal & real[:, None, :] & same
        count = prompt.mask.sum(1, keepdim=True)
        positions = torch.cat([prompt.mask.cumsum(1) - 1, count + packed.offset], dim=1).clamp_min(0)
        embeddings = torch.cat([prompt.embeddings, self.embed(packed.ids)], dim=1)
        bias = torch.zeros(visible.shape, dtype=embeddings.dtype, device=real.device)
        bias = bias.masked_fill(~visible, torch.finfo(embeddings.dtype).min)[:, None]
        hidden = self._trunk(
            inputs_embeds=embeddings, attention_mask=bias, position_ids=positions, use_cache=False
        ).last_hidden_state
        # a caption's first token is predicted by the prompt's last position, later ones by the token before
        slots = torch.arange(segment.shape[1], device=real.device)
        source = torch.where(packed.offset == 0, length - 1, length + slots - 1)
        hidden = hidden.gather(1, source[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.llm.get_output_embeddings()(hidden).float()
        labels = torch.where(segment > 0, packed.ids, IGNORED)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)

    def loss(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """Mean of `token_losses` over the real caption tokens."""
        return self.token_losses(prompt, packed).sum() / (packed.segment > 0).sum().clamp_min(1)

    @torch.inference_mode()
    def decode(self, prompt: Prompt, num_captions: int, decoding: DecodingConfig) -> list[list[Hypothesis]]:
        """The `num_captions` likeliest captions of each picture, likeliest first."""
        if decoding.search not in ("beam", "release"):
            raise EvcapError(f"unknown search '{decoding.search}', known: beam, release")
        if decoding.search == "release":
            if decoding.min_length:
                raise EvcapError("the release's search knows no min_length: set it to 0, or decoding.search to beam")
            beams, stops = max(decoding.beams, num_captions), [self._ids(text)[-1] for text in RELEASE_STOPS]
            rows = release_search(self.llm, prompt.embeddings, prompt.mask, stops, beams, decoding.max_length)
            found = [row[:num_captions] for row in rows]
        else:
            found = beam_search(self.llm, prompt.embeddings, prompt.mask, self.newline, num_captions, decoding)
        return [[Hypothesis(self._text(tokens), score) for score, tokens in row] for row in found]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
