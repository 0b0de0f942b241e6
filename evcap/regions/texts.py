"""Features of the texts that region heads compare with: tags, classes, captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evcap.config import RegionConfig
from evcap.errors import EvcapError
from evcap.language.sentences import cached_sentences, sentence_embedder
from evcap.progress import Progress
from evcap.weights.sources import local_or_hub, opened

KINDS = ("minilm", "eva-clip")
AT_ONCE = 256  # texts


class TextFeatures:
    """Texts -> (T,E) float32 on the CPU, not trained: of MiniLM unit vectors, of EVA-CLIP as they are."""

    def __init__(
        self,
        config: RegionConfig,
        text_tower: torch.nn.Module | None = None,
        tokenizer: str = "",
        progress: Progress | None = None,
    ):
        """text_tower, tokenizer: of "eva-clip", CLIP's text tower and the folder or hub name of its tokenizer. progress: of
        features that are worth keeping on disk, as in training; those of MiniLM are then."""
        if config.texts not in KINDS:
            raise EvcapError(f"regions: texts is '{config.texts}', known: {', '.join(KINDS)}")
        self._tower, self._progress = text_tower, progress
        if config.texts == "eva-clip":
            from transformers import AutoTokenizer  # slow import

            with opened(f"tokenizer '{tokenizer}'"):
                self._tokenizer = AutoTokenizer.from_pretrained(local_or_hub(tokenizer), trust_remote_code=False)

    @torch.no_grad()  # training learns from them
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        if self._tower is None:
            return sentence_embedder()(texts) if self._progress is None else cached_sentences(texts, self._progress)
        rows, config = [], self._tower.config
        for start in range(0, len(texts), AT_ONCE):
            given = self._tokenizer(
                list(texts[start : start + AT_ONCE]),
                padding="max_length",
                truncation=True,
                max_length=config.max_position_embeddings,
                return_tensors="pt",
            )
            rows.append(self._tower(input_ids=given["input_ids"].to(self._tower.device)).text_embeds.float().cpu())
        return torch.cat(rows) if rows else torch.zeros(0, config.projection_dim)
