"""Batched beam search on prompt embeddings with a key/value cache.

Written here, not transformers' `generate`: the keys and values of the prompt (about 65 positions) are held once per
image and shared by its beams; `generate` holds, reorders and re-reads them once per beam and runs the prompt once per
beam. The beams of all images advance in one forward pass per token.

Searches share nothing that they change: any number of threads may search with one model.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from evcap.config import DecodingConfig

OURS = "evcap_"  # begins the names of attention functions that know a shared prompt
Found = tuple[float, list[int]]  # a score and the tokens that earned it


class SharedPromptCache(Cache):
    """Keys and values of the prompt once per image, of the generated tokens once per beam."""

    def __init__(self, layers: int):
        super().__init__(layers=[])
        self.prompt: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer (B,H,D,P), as attention takes keys, and (B,H,P,D)
        self.tokens: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers  # per layer (B*beams,H,t,D) twice

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *args, **kwargs):
        if layer == len(self.prompt):
            self.prompt.append((key.transpose(-1, -2).contiguous(), value))
            return (self.prompt[layer][0], None), (value, None)
        if self.tokens[layer] is not None:
            old_key, old_value = self.tokens[layer]
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        self.tokens[layer] = (key, value)
        return (self.prompt[layer][0], key), (self.prompt[layer][1], value)

    def get_seq_length(self, layer: int = 0) -> int:
        if not self.prompt:
            return 0
        return self.prompt[0][1].shape[2] + (self.tokens[0][0].shape[2] if self.tokens[0] is not None else 0)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i of the generated part becomes the old row rows[i]; the prompt part never moves."""
        self.tokens = [(key[rows], value[rows]) for key, value in self.tokens]


def shared_prompt_attention(module, query, keys, values, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention over a shared prompt and each beam's own tokens, grouped-query heads not copied.

    query (R,Hq,T,D); keys = (prompt part (B,Hk,D,P), beam part (R,Hk,t,D) or None), values = (B,Hk,P,D and the same);
    attention_mask is additive over P for the prompt part, (B,1,T,P) while the prompt runs and (B,1,1,P) afterwards.
    """
    (prompt_key, own_key), (prompt_value, own_value) = keys, values
    batch, groups, width, length = prompt_key.shape
    if own_key is None:
        query = query.unflatten(1, (groups, -1))
        scores = query @ prompt_key.unsqueeze(2) * scaling + attention_mask.unsqueeze(2)
        out = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ prompt_value.unsqueeze(2)
        return out.flatten(1, 2).transpose(1, 2), None
    rows, heads = query.shape[:2]
    beams, shared = rows // batch, heads // groups
    grouped = query.reshape(batch, beams, groups, shared, width).transpose(1, 2).reshape(batch, groups, -1, width)
    to_prompt = grouped @ prompt_key * scaling + attention_mask
    own_query = query.reshape(rows, groups, shared, width)
    to_own = own_query @ own_key.transpose(-1, -2) * scaling

    def per_row(x):  # (B,groups,beams*shared,n) -> (R,groups,shared,n)
        return x.reshape(batch, groups, beams, shared, -1).transpose(1, 2).reshape(rows, groups, shared, -1)

    weights = torch.cat([per_row(to_prompt), to_own], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    on_prompt, on_own = weights.split([length, own_key.shape[2]], dim=-1)
    on_prompt = on_prompt.reshape(batch, beams, groups, shared, -1).transpose(1, 2).flatten(2, 3)
    out = per_row(on_prompt @ prompt_value) + on_own @ own_value
    return out.reshape(rows, 1, heads, width), None


def share_prompts(llm: torch.nn.Module) -> None:
    """Let a causal model attend over a SharedPromptCache as well as over any other: once and for all, not for one search.

    Its own attention (eager or sdpa) goes on answering where keys are plain. Raises ValueError for a model whose attention
    transformers cannot exchange.
    """
    own = llm.config._attn_implementation
    if own.startswith(OURS):
        return
    if own == "eager":  # each family has a function of its own
        family = sys.modules[type(llm).__module__]
        plain, name = getattr(family, "eager_attention_forward", None), f"{OURS}{own}_{family.__name__.rpartition('.')[2]}"
    else:
        plain, name = AttentionInterface().get(own), f"{OURS}{own}"
    if plain is None:
        raise ValueError(f"{type(llm).__name__} has an attention that cannot be exchanged")

    def attention(module, query, key, value, attention_mask, **kwargs):
        attend = shared_prompt_attention if isinstance(key, tuple) else plain
        return attend(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, AttentionMaskInterface()[own])
    llm.set_attn_implementation(name)


def beam_search(
    llm: torch.nn.Module,
    prompt: torch.Tensor,
    mask: torch.Tensor,
    stop: int,
    num_captions: int,
    decoding: DecodingConfig,
) -> list[list[Found]]:
    """Hypotheses (score, tokens without the stop) for B prompts, prompt (B,P,d) and mask (B,P) bool, best first.

    A hypothesis ends at `stop` or after `max_length` tokens; its score is the sum of its token log-probabilities
    divided by (its number of tokens, the stop counted) ** length_penalty. Hypotheses of one image all differ.
    """
    beams = max(decoding.beams, num_captions)
    decoder = Decoder(llm, prompt, mask, beams)
    state = _BeamState(decoder.first, beams, num_captions, stop, decoding)
    for _ in range(1, decoding.max_length):
        if state.finished():
            break
        log_probabilities = decoder.step(state.last_tokens())
        decoder.cache.reorder(state.advance(log_probabilities))
    return state.best()


class Decoder:
    """The language model with the prompts already read; every step advances all rows by one token."""

    def __init__(self, llm: torch.nn.Module, prompt: torch.Tensor, mask: torch.Tensor, rows: int):
        share_prompts(llm)
        self.llm, self.mask, self.rows = llm, mask, rows
        self.cache = SharedPromptCache(llm.config.num_hidden_layers)
        self.taken = 0
        length, device, dtype = mask.shape[1], mask.device, prompt.dtype
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        # each row sees itself, so that a padded row is never empty
        visible = (causal & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=device)
        bias = torch.zeros(len(mask), 1, length, length, dtype=dtype, device=device)
        bias.masked_fill_(~visible[:, None], torch.finfo(dtype).min)
        self.bias = bias[:, :, -1:]
        self.first = self._log_probabilities(prompt, bias, (mask.cumsum(1) - 1).clamp_min(0))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Last tokens (B,rows) int64 -> log-probabilities (B*rows,V) of the next ones."""
        embeddings = self.llm.get_input_embeddings()(tokens.reshape(-1, 1))
        positions = (self.mask.sum(1) + self.taken).repeat_interleave(self.rows)[:, None]
        self.taken += 1
        return self._log_probabilities(embeddings, self.bias, positions)

    def _log_probabilities(self, embeddings, bias, positions) -> torch.Tensor:
        logits = self.llm(
            inputs_embeds=embeddings,
            attention_mask=bias,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float().log_softmax(-1)


class _BeamState:
    """Live beams (B,K) and finished hypotheses of B images."""

    def __init__(self, first: torch.Tensor, beams: int, wanted: int, stop: int, decoding: DecodingConfig):
        self.beams, self.wanted, self.stop, self.decoding = beams, wanted, stop, decoding
        self.batch, self.vocabulary = first.shape
        self.done: list[list[Found]] = [[] for _ in range(self.batch)]
        self.closed = [False] * self.batch  # a closed image changes no more: results do not depend on its batch
        self.tokens = first.new_empty(self.batch, 1, 0, dtype=torch.long)
        self.scores = first.new_zeros(self.batch, 1)
        self.advance(first)

    def last_tokens(self) -> torch.Tensor:
        return self.tokens[:, :, -1]

    def advance(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Extend by one token, log-probabilities (B*K,V) -> the old row each new live beam came from, (B*K,)."""
        live = self.tokens.shape[1]
        length = self.tokens.shape[2] + 1
        log_probabilities = log_probabilities.view(self.batch, live, -1)
        if self.decoding.repetition_penalty != 1 and self.tokens.shape[2]:
            said = log_probabilities.gather(2, self.tokens) * self.decoding.repetition_penalty  # which are below 0
            log_probabilities = log_probabilities.scatter(2, self.tokens, said)
        totals = self.scores[..., None] + log_probabilities
        if length <= self.decoding.min_length:
            totals[..., self.stop] = -torch.inf
        best, flat = totals.flatten(1).topk(2 * self.beams)  # at most K of them can end here, so K always go on
        parents, words = flat // self.vocabulary, flat % self.vocabulary
        ends = words == self.stop
        for b, rank in ends[:, : self.beams].nonzero().tolist():
            if not self.closed[b]:
                self._finish(b, best[b, rank].item(), self.tokens[b, parents[b, rank]].tolist(), length)
        keep = ends.long().sort(dim=1, stable=True).indices[:, : self.beams]
        parents, words, self.scores = parents.gather(1, keep), words.gather(1, keep), best.gather(1, keep)
        history = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([history, words[..., None]], dim=2)
        return (parents + torch.arange(self.batch, device=parents.device)[:, None] * live).flatten()

    def _finish(self, picture: int, total: float, tokens: list[int], length: int) -> None:
        self.done[picture].append((total / length**self.decoding.length_penalty, tokens))

    def finished(self) -> bool:
        """Close each image whose best live beam, at its present length, cannot enter the wanted best; all closed?"""
        hope = (self.scores[:, 0] / self.tokens.shape[2] ** self.decoding.length_penalty).tolist()
        for b, done in enumerate(self.done):
            if len(done) >= self.beams and sorted((s for s, _ in done), reverse=True)[self.wanted - 1] >= hope[b]:
                self.closed[b] = True
        return all(self.closed)

    def best(self) -> list[list[Found]]:
        for b in range(self.batch):
            if len(self.done[b]) < self.wanted:  # cut at max_length: live beams count as they stand
                for score, tokens in zip(self.scores[b].tolist(), self.tokens[b].tolist(), strict=True):
                    self._finish(b, score, tokens, len(tokens))
        return [sorted(done, key=lambda pair: -pair[0])[: self.wanted] for done in self.done]
