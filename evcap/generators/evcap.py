"""EVCap's own language model, behind the name fusion: the default."""

from __future__ import annotations

from functools import cached_property

import torch

from evcap.config import DecodingConfig
from evcap.generators.generator import Seen
from evcap.language.phrases import PhraseModel
from evcap.language.rerank import BeamChoice
from evcap.model.evcap import EVCap
from evcap.model.name_fusion import name_tokenizer


class EvcapGenerator:
    """Captions from Q and names, the likeliest of the beams or, by the preset's weights, those that fit the image best.

    phrases: helps to choose among the beams; None = wording does not count, whatever the preset says.
    """

    side = 0

    def __init__(self, model: EVCap):
        self.phrases: PhraseModel | None = None
        self._model, self._tokenize = model, name_tokenizer()

    @cached_property
    def _choice(self) -> BeamChoice:
        return BeamChoice(self._model.text_projection)

    @torch.inference_mode()
    def captions(self, seen: Seen, num_captions: int, decoding: DecodingConfig) -> list[list[str]]:
        device, phrases = self._model.device, self.phrases
        choosing = bool(decoding.itc_weight or (decoding.phrase_weight and phrases is not None))
        found = max(decoding.beams, num_captions) if choosing else num_captions
        retrieved = self._tokenize(seen.names).to(device)
        hypotheses = self._model.generate(seen.queries.to(device), retrieved, found, decoding)
        if choosing:
            hypotheses = self._choice(seen.queries, hypotheses, seen.names, decoding, phrases)
        return [[h.text for h in row[:num_captions]] for row in hypotheses]
