"""The frozen causal language model: prompt embeddings around visual vectors, the packed caption loss, decoding."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evcap.config import DecodingConfig, LanguageConfig
from evcap.errors import EvcapError
from evcap.language.lora import add_lora, merge_lora, plain_twin

IGNORED = -100
RELEASE_STOPS = ("\n", ".", " .")


@dataclass(frozen=True)
class TextBlock:
    """Token ids of B rows, padded on the left to `width` slots, or as wide as the longest needs.

    added: a vector (d,) that is added to the embedding of each token.
    """

    rows: Sequence[Sequence[int]]
    width: int = 0
    added: torch.Tensor | None = None


Block = torch.Tensor | TextBlock  # embeddings (B,T,d), or text


@dataclass
class Prompt:
    """Embedded prompt of B images. Padding lies before the text of a block, so the last column is always real; for an
    encoder-decoder model it lies behind everything."""

    embeddings: torch.Tensor  # (B,P,d)
    mask: torch.Tensor  # (B,P) bool, True = real


@dataclass(frozen=True)
class Hypothesis:
    """A caption that the search found, its length-normalised log-probability, and its tokens without the stop."""

    text: str
    score: float
    tokens: tuple[int, ...] = ()


@dataclass
class PackedCaptions:
    """All captions of each image in one row of L slots, behind one shared prompt."""

    ids: torch.Tensor  # (B,L) int64
    segment: torch.Tensor  # (B,L) int64: 1, 2, ... the caption a slot belongs to; 0 = empty slot
    offset: torch.Tensor  # (B,L) int64: place of the token inside its caption

    def to(self, device: torch.device) -> PackedCaptions:
        return PackedCaptions(self.ids.to(device), self.segment.to(device), self.offset.to(device))


def chat_tokens(tokenizer, turns: Sequence[dict[str, str]], opening: str = "") -> list[int]:
    """A conversation of {"role", "content"} and how the answer begins, by the model's chat template or, without one, as
    "User: ..." lines."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tokenizer(text + opening, add_special_tokens=False)["input_ids"]
    plain = "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
    return tokenizer(f"{plain}\nAssistant: {opening}".rstrip(" "))["input_ids"]


class LanguageModel(nn.Module):
    """A causal language model of transformers with its tokenizer; frozen but for optional LoRA adapters.

    stop: the token that ends a caption. first, last: tokens that a prompt begins and ends with.
    """

    def __init__(self, config: LanguageConfig, llm: nn.Module, tokenizer):
        super().__init__()
        self.config = config
        self.llm = llm.requires_grad_(False)
        self.tokenizer = tokenizer
        self._plain, self._making = None, threading.Lock()
        self._set_up()
        self._trunk = self._body().__call__
        if config.lora_rank:
            add_lora(self.llm, config.lora_rank, config.lora_alpha)

    def _set_up(self) -> None:
        self.stop = self.ids(self.config.stop)[-1]
        self.first = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]  # Qwen begins without
        self.last: list[int] = []
        from evcap.language.beam_search import share_prompts  # slow import: transformers

        share_prompts(self.llm)

    def _body(self) -> nn.Module:
        """What reads prompts in training."""
        return self.llm.base_model

    def compile(self) -> None:
        """Compile the caption loss's pass through the language model: about twice as fast on CPUs, fixed shapes only."""
        self._trunk = torch.compile(self._body().forward, dynamic=False)

    def merge(self) -> None:
        """Fold LoRA into the weights for inference."""
        merge_lora(self.llm)
        self._plain = None

    @property
    def plain(self) -> nn.Module:
        """The language model without the adapters that are not folded in, over the same weights: to talk, not to caption."""
        if not self.config.lora_rank:
            return self.llm
        with self._making:
            if self._plain is None:
                self._plain = [plain_twin(self.llm)]  # in a list: no submodule, whose tensors would count twice
            return self._plain[0]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without those that the tokenizer puts around it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llm.get_input_embeddings()(ids)

    def name_ids(self, names: Sequence[str]) -> list[int]:
        """Tokens of the prompt's name list, as many whole names as fit into `names_tokens`."""
        for count in range(len(names), -1, -1):
            ids = self.ids(self.config.names.format(names=", ".join(names[:count]) or "none"))
            if len(ids) <= self.config.names_tokens:
                return ids
        return []

    def widest_tail(self) -> int:
        """Slots that the text after the vectors needs at most; compiled training pads to it."""
        return (
            len(self.ids(self.config.after)) + len(self.last) + (self.config.names_tokens if self.config.names_in_prompt else 0)
        )

    def prompt(
        self,
        vectors: torch.Tensor,
        names: Sequence[Sequence[str]],
        tail_slots: int = 0,
        further: Sequence[Block] = (),
    ) -> Prompt:
        """The caption prompt: first + before + vectors (B,T,d) + further blocks + names + after + last, for B lists of names.

        `tail_slots` fixes the width of the text tail (for compiled training); 0 = as wide as the longest needs.
        """
        after = self.ids(self.config.after) + self.last
        use_names = self.config.names_in_prompt
        head = [*self.first, *self.ids(self.config.before)]
        tails = [(self.name_ids(row) if use_names else []) + after for row in names]
        return self.joined([TextBlock([head] * len(vectors)), vectors, *further, TextBlock(tails, tail_slots)])

    def joined(self, blocks: Sequence[Block]) -> Prompt:
        """A prompt of any blocks one after the other, at least one of them embeddings (B,T,d); text last, or no padding."""
        device = next(block.device for block in blocks if isinstance(block, torch.Tensor))
        dtype = self.llm.get_input_embeddings().weight.dtype
        parts = [self._embedded(block, device) for block in blocks]
        embeddings = torch.cat([embedded.to(dtype) for embedded, _ in parts], dim=1)
        return Prompt(embeddings, torch.cat([mask for _, mask in parts], dim=1))

    def _embedded(self, block: Block, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B,T,d) of a block and mask (B,T)."""
        if isinstance(block, torch.Tensor):
            return block, torch.ones(block.shape[:2], dtype=torch.bool, device=device)
        width = max(block.width, max(map(len, block.rows)))
        ids = [[self.stop] * (width - len(row)) + [*row] for row in block.rows]
        pad = torch.tensor([width - len(row) for row in block.rows], device=device)
        mask = torch.arange(width, device=device) >= pad[:, None]
        embeddings = self.embed(torch.tensor(ids, dtype=torch.long, device=device))
        return embeddings if block.added is None else embeddings + block.added, mask

    def pack(self, captions: Sequence[Sequence[str]], slots: int = 0, max_tokens: int = 32) -> PackedCaptions:
        """Captions of B images -> rows of `slots` tokens (0 = as many as needed), each caption ending in `stop`.

        A caption longer than `max_tokens` is cut; one that no longer fits into the row is left out.
        """
        return self.pack_ids([[self._target(c)[: max_tokens - 1] + [self.stop] for c in row] for row in captions], slots)

    def _target(self, caption: str) -> list[int]:
        """Tokens of a caption without the stop."""
        return self.ids(" " + caption.strip())

    def pack_ids(self, rows: Sequence[Sequence[Sequence[int]]], slots: int = 0) -> PackedCaptions:
        """As `pack`, of token ids: for each of B images any number of sequences, of which those that fit are kept."""
        slots = slots or max(sum(map(len, row)) for row in rows)
        packed = torch.zeros(3, len(rows), slots, dtype=torch.long)
        packed[0] = self.stop
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
        """Cross-entropy (B,L) of every caption token given the image and its caption so far, 0 in empty slots."""
        hidden, length, segment = self._hidden(prompt, packed), prompt.mask.shape[1], packed.segment
        # a caption's first token is predicted by the prompt's last position, later ones by the token before
        slots = torch.arange(segment.shape[1], device=segment.device)
        source = torch.where(packed.offset == 0, length - 1, length + slots - 1)
        hidden = hidden.gather(1, source[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.llm.get_output_embeddings()(hidden).float()
        labels = torch.where(segment > 0, packed.ids, IGNORED)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)

    def hidden_states(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """The last layer's output (B,L,d) behind every caption token, the last one included: in training and, for tokens that
        were generated (`pack_ids` of a Hypothesis's), afterwards alike. Empty slots hold no meaning."""
        return self._hidden(prompt, packed)[:, prompt.mask.shape[1] :]

    def _hidden(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """The last layer's output (B,P+L,d) over prompt and captions, which do not see one another."""
        segment = packed.segment
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
        return self._trunk(
            inputs_embeds=embeddings, attention_mask=bias, position_ids=positions, use_cache=False
        ).last_hidden_state

    def loss(self, prompt: Prompt, packed: PackedCaptions) -> torch.Tensor:
        """Mean of `token_losses` over the real caption tokens."""
        return self.token_losses(prompt, packed).sum() / (packed.segment > 0).sum().clamp_min(1)

    @torch.inference_mode()
    def decode(self, prompt: Prompt, num_captions: int, decoding: DecodingConfig) -> list[list[Hypothesis]]:
        """The `num_captions` likeliest captions of each image, likeliest first."""
        if decoding.search not in ("beam", "release"):
            raise EvcapError(f"unknown search '{decoding.search}', known: beam, release")
        if decoding.search == "release":
            if decoding.min_length:
                raise EvcapError("the release's search knows no min_length: set it to 0, or decoding.search to beam")
            beams, stops = max(decoding.beams, num_captions), [self.ids(text)[-1] for text in RELEASE_STOPS]
            from evcap.language.release_search import release_search

            rows = release_search(self.llm, prompt.embeddings, prompt.mask, stops, beams, decoding.max_length)
            found = [row[:num_captions] for row in rows]
        else:
            from evcap.language.beam_search import beam_search

            found = beam_search(self.llm, prompt.embeddings, prompt.mask, self.stop, num_captions, decoding)
        return [[Hypothesis(self._text(tokens), score, tuple(tokens)) for score, tokens in row] for row in found]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
