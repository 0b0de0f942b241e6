"""What all generators have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from evcap.config import DecodingConfig, GeneratorConfig
from evcap.errors import EvcapError

Part = str | Image.Image  # of what a chat model is shown: texts and RGB images, in any order


@dataclass(frozen=True)
class Seen:
    """B images as a generator gets them.

    queries: Q (B,32,W) float32 on the CPU. names: of each image, most similar first, at most as many as the preset says.
    images: RGB, their longer side at most the generator's `side`; None for one that takes Q alone.
    """

    queries: torch.Tensor
    names: Sequence[Sequence[str]]
    images: Sequence[Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.names)


class Generator(Protocol):
    """Any number of threads may use one at the same time.

    side: pixels of the longer side of the images that it is shown; 0 = it takes query features alone, and no images.
    """

    side: int

    def captions(self, seen: Seen, num_captions: int, decoding: DecodingConfig) -> list[list[str]]:
        """`num_captions` captions of each of B images, the best first. Raises Unanswered if some of them got none."""


class ChatGenerator(Generator, Protocol):
    """A generator that reads texts and looks at any number of images."""

    def reply(self, parts: Sequence[Part], new_tokens: int) -> str:
        """What it says to texts and images in this order, in at most `new_tokens` tokens. Raises EvcapError."""

    def pick(self, parts: Sequence[Part], choices: int) -> int:
        """Which of 2 to 26 choices, lettered A, B, ... in the parts, it takes: 0, 1, ... Raises EvcapError."""


class Unanswered(EvcapError):
    """Some of several images got no caption.

    replies: for each image what came of it, its captions or the exception that came instead.
    """

    def __init__(self, replies: Sequence):
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        others = f" (and {len(failed) - 1} more of {len(replies)} images)" if len(failed) > 1 else ""
        super().__init__(f"{failed[0]}{others}")
        self.replies = list(replies)


def prompt_for(config: GeneratorConfig, names: Sequence[str]) -> str:
    """The text beside one image: the prompt, and the names where there are some."""
    return (config.prompt or "") + (config.names or "").replace("{names}", ", ".join(names)) if names else config.prompt or ""


def at_most(image: Image.Image, side: int) -> Image.Image:
    """The image, its longer side at most `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
