"""From a generator's settings to the generator."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch

from evcap.config import DecodingConfig, GeneratorConfig, Preset
from evcap.generators.endpoint import EndpointGenerator
from evcap.generators.generator import Generator, Part, Seen
from evcap.generators.options import side_of


def open_generator(config: GeneratorConfig, settings: Preset, device: torch.device) -> Generator:
    """One that is no part of evcap's own model. Raises EvcapError with one line when it cannot be opened."""
    if config.kind == "endpoint":
        return EndpointGenerator(config)
    if config.kind == "blip2":
        from evcap.generators.blip2 import Blip2Generator

        return Blip2Generator(config, settings, device)
    from evcap.generators.image_text import ImageTextGenerator

    return ImageTextGenerator(config, device)


class LaterGenerator:
    """A generator that is opened when it is first asked for words: gigabytes that names and keys do not need."""

    def __init__(self, config: GeneratorConfig, settings: Preset, device: torch.device):
        self.side = side_of(config)
        self._given, self._opened, self._opening = (config, settings, device), None, Lock()

    @property
    def opened(self) -> Generator:
        """The generator itself. Raises EvcapError as `open_generator`."""
        with self._opening:
            if self._opened is None:
                self._opened = open_generator(*self._given)
            return self._opened

    def captions(self, seen: Seen, num_captions: int, decoding: DecodingConfig) -> list[list[str]]:
        return self.opened.captions(seen, num_captions, decoding)

    def reply(self, parts: Sequence[Part], new_tokens: int) -> str:
        return self.opened.reply(parts, new_tokens)

    def pick(self, parts: Sequence[Part], choices: int) -> int:
        return self.opened.pick(parts, choices)

    def say(self, queries: torch.Tensor, text: str, new_tokens: int) -> str:
        return self.opened.say(queries, text, new_tokens)

    def scores(self, queries: torch.Tensor, text: str, answers: Sequence[str]) -> list[float]:
        return self.opened.scores(queries, text, answers)
