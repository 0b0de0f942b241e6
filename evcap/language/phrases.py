"""Phrases that belong to an image: how its captions are likely to be worded, from its memory key alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from evcap.errors import EvcapError
from evcap.language.sentences import plain_words
from evcap.memory.keys import mean_keys
from evcap.weights.wheels import read_with_metadata, write_safetensors

EIGHT_BITS = torch.float8_e4m3fn


class PhraseModel:
    """A linear map from the key of an image (W,) to the weight of each of P phrases, the n-grams of captions.

    Up to one common factor the weight estimates the share of the image's captions that say the phrase, above the mean of
    all images, times the phrase's inverse document frequency. A caption fits by the sum of its phrases' weights over the
    root of its number of words.

    The linear form of two known methods: word detectors learned from captions (Fang et al. 2015, arXiv 1411.4952), and
    choosing the caption most like those of the nearest training images (Devlin et al. 2015, arXiv 1505.04467), here
    without having to keep any caption.
    """

    def __init__(self, phrases: Sequence[str], weights: torch.Tensor, center: torch.Tensor, encoder: str):
        """phrases: P; weights (P,W) float8_e4m3fn; center (W,) float32, the mean key; encoder: fingerprint of the keys'."""
        self.phrases, self.center, self.encoder = list(phrases), center, encoder
        self._weights = weights.float()
        self._place = {phrase: i for i, phrase in enumerate(self.phrases)}
        self._longest = max((phrase.count(" ") + 1 for phrase in self.phrases), default=0)

    @classmethod
    def fit(
        cls,
        views: Sequence[torch.Tensor],
        captions: Sequence[Sequence[str]],
        encoder: str,
        size: int,
        least: int,
        longest: int,
        ridge: float,
    ) -> PhraseModel:
        """Ridge regression on N captioned images.

        views: keys (N,W) of the images, once for each view of them. captions: of each image. encoder: fingerprint of
        the keys' encoder. size: phrases kept, those whose weights vary most over the images. least: images that must
        have a phrase. longest: words of a phrase at most. ridge: in mean variances of a key's coordinates.
        Raises EvcapError for settings out of range, or when no phrase tells one image from another.
        """
        if min(size, least, longest) < 1 or ridge <= 0:
            raise EvcapError("size, least and longest must be at least 1, ridge above 0")
        shares = [_shares(row, longest) for row in captions]
        pictures = Counter(phrase for row in shares for phrase in row)
        phrases = sorted(phrase for phrase, count in pictures.items() if count >= least)
        if not phrases:
            raise EvcapError(f"no phrase is in the captions of {least} images or more, of {len(captions)}")
        keys = torch.stack([view.float() for view in views])  # (views,N,W)
        center = keys.mean((0, 1))
        keys = keys - center
        flat = keys.flatten(0, 1)
        covariance = flat.T @ flat / len(flat)
        cross = _cross(keys.mean(0), shares, phrases)
        variance = covariance.diagonal().mean()
        rarity = torch.tensor([math.log(len(captions) / pictures[phrase]) for phrase in phrases])
        if not (variance > 0 and rarity.any()):
            raise EvcapError("all images have the same key or the same phrases; there is nothing to learn from them")
        damping = ridge * variance * torch.eye(len(covariance))
        weights = torch.linalg.solve(covariance + damping, cross.T).T * rarity[:, None]
        spread = ((weights @ covariance) * weights).sum(1)
        kept = spread.argsort(descending=True)[:size].sort().values
        weights = weights[kept]
        # a preset weighs the fit as it likes; around 1 the weights lie well inside the range of 8 bits
        weights = weights / weights.square().mean().sqrt()
        return cls([phrases[i] for i in kept.tolist()], weights.to(EIGHT_BITS), center, encoder)

    @torch.inference_mode()
    def __call__(self, queries: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        """Q (B,32,W) and captions of each image -> for each (n,) float32, how well its wording fits the image.

        0 is a caption without known phrases, or an image like the mean of all; of the shipped model mostly in -2..6.
        """
        expected = (mean_keys(queries) - self.center) @ self._weights.T
        return [torch.tensor([self._fit_of(row, text) for text in own]) for row, own in zip(expected, texts, strict=True)]

    def _fit_of(self, expected: torch.Tensor, text: str) -> float:
        words = plain_words(text)
        said = {self._place[phrase] for phrase in _phrases(words, self._longest) if phrase in self._place}
        return expected[sorted(said)].sum().item() / math.sqrt(max(len(words), 1))

    def save(self, path: str | Path) -> None:
        """A safetensors file: "weights" and "center"; the phrases (JSON) and the encoder in its metadata."""
        metadata = {"phrases": json.dumps(self.phrases), "encoder": self.encoder}
        write_safetensors({"weights": self._weights.to(EIGHT_BITS), "center": self.center}, path, metadata)

    @classmethod
    def open(cls, path: str | Path, encoder: str) -> PhraseModel:
        """Read what `save` wrote. Raises EvcapError when it is missing, damaged or fitted for another encoder."""
        tensors, metadata = read_with_metadata(path)
        try:
            phrases, weights, center = json.loads(metadata["phrases"]), tensors["weights"], tensors["center"]
        except (LookupError, ValueError, RecursionError):
            phrases = None
        if not (_are_phrases(phrases) and _are_weights(weights, center, len(phrases))):
            raise EvcapError(f"{path} is no phrase model, or damaged; fit it again with train/phrases.py")
        if metadata.get("encoder") != encoder:
            raise EvcapError(f"{path} was fitted for another encoder; fit it again with train/phrases.py")
        return cls(phrases, weights, center, encoder)


def _are_phrases(phrases) -> bool:
    return isinstance(phrases, list) and all(isinstance(p, str) for p in phrases) and len(set(phrases)) == len(phrases)


def _are_weights(weights: torch.Tensor, center: torch.Tensor, count: int) -> bool:
    if weights.dtype != EIGHT_BITS or center.dtype != torch.float32 or center.ndim != 1:
        return False
    finite = weights.float().isfinite().all() and center.isfinite().all()
    return weights.shape == (count, len(center)) and bool(finite)


def _phrases(words: Sequence[str], longest: int) -> set[str]:
    return {" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)}


def _shares(captions: Sequence[str], longest: int) -> dict[str, float]:
    """Phrases of an image's captions with the share of the captions that say each."""
    counts = Counter(phrase for caption in captions for phrase in _phrases(plain_words(caption), longest))
    return {phrase: count / len(captions) for phrase, count in counts.items()}


def _cross(keys: torch.Tensor, shares: Sequence[dict[str, float]], phrases: Sequence[str]) -> torch.Tensor:
    """Covariance (P,W) of the shares of P phrases with the centred keys (N,W)."""
    place = {phrase: i for i, phrase in enumerate(phrases)}
    total = torch.zeros(len(phrases), keys.shape[1])
    for key, row in zip(keys, shares, strict=True):
        known = {place[phrase]: share for phrase, share in row.items() if phrase in place}
        total.index_add_(0, torch.tensor(list(known), dtype=torch.long), torch.tensor(list(known.values()))[:, None] * key)
    return total / len(keys)
