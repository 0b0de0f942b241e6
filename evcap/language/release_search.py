"""The EVCap release's beam search, rule for rule, but batched and with cached keys and values (facts: its search.py).

Differences to `beam_search`: beams are ranked by their mean token log-probability at every step, not only at the end; a
beam that has reached a stop stays among the beams with its score and crowds out the rest; the search ends when all stopped.
The release runs one image at a time and reads the whole sequence again for each token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evcap.language.beam_search import Decoder, Found


def release_search(
    llm: torch.nn.Module,
    prompt: torch.Tensor,
    mask: torch.Tensor,
    stops: Sequence[int],
    beams: int,
    max_length: int,
) -> list[list[Found]]:
    """All `beams` hypotheses (mean log-probability, tokens with the stop) for B prompts, best first.

    prompt (B,P,d) and mask (B,P) bool as in `beam_search`; a hypothesis ends with the first of the tokens `stops`.
    """
    decoder = Decoder(llm, prompt, mask, beams)
    state = _ReleaseState(decoder.first, beams, stops)
    for _ in range(1, max_length):
        if state.stopped.all():
            break
        log_probabilities = decoder.step(state.tokens[:, :, -1])
        decoder.cache.reorder(state.advance(log_probabilities))
    return state.best()


class _ReleaseState:
    """K beams of B images: tokens (B,K,t), sums of log-probabilities, lengths and whether they stopped, (B,K) each."""

    def __init__(self, first: torch.Tensor, beams: int, stops: Sequence[int]):
        self.stops = torch.tensor(stops, device=first.device)
        self.sums, words = first.topk(beams, dim=-1)
        self.tokens = words[..., None]
        self.lengths = torch.ones_like(self.sums)
        self.stopped = torch.isin(words, self.stops)

    def advance(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Extend by one token, log-probabilities (B*K,V) -> the old row each beam came from, (B*K,)."""
        batch, beams, _ = self.tokens.shape
        closed = self.stopped.all(1, keepdim=True)  # images whose search has ended keep their beams as they are
        totals = log_probabilities.view(batch, beams, -1).masked_fill(self.stopped[..., None], -torch.inf)
        totals[..., 0].masked_fill_(self.stopped, 0)  # a stopped beam goes on as itself, in one candidate
        lengths = self.lengths + ~self.stopped
        means = (self.sums[..., None] + totals) / lengths[..., None]
        best, flat = means.flatten(1).topk(beams)
        identity = torch.arange(beams, device=flat.device).expand(batch, -1)
        parents = torch.where(closed, identity, flat // totals.shape[-1])
        words = torch.where(closed, 0, flat % totals.shape[-1])
        self.lengths = lengths.gather(1, parents)
        self.sums = torch.where(closed, self.sums, best * self.lengths)
        history = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([history, words[..., None]], dim=2)
        self.stopped = self.stopped.gather(1, parents) | torch.isin(words, self.stops)
        return (parents + torch.arange(batch, device=flat.device)[:, None] * beams).flatten()

    def best(self) -> list[list[Found]]:
        rows = zip((self.sums / self.lengths).tolist(), self.tokens.tolist(), self.lengths.long().tolist(), strict=True)
        found = [[(score, t[:n]) for score, t, n in zip(*row, strict=True)] for row in rows]
        return [sorted(row, key=lambda pair: -pair[0]) for row in found]
