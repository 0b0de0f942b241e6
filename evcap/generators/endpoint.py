"""A generator behind an OpenAI-compatible endpoint: how images and names are sent there, and what its replies become."""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from evcap.errors import EvcapError
from evcap.generators.chat_completions import Endpoint, Failed, Refused
from evcap.generators.options import CHAT_SIDE, check_decoding

if TYPE_CHECKING:
    from PIL import Image

    from evcap.config import DecodingConfig, GeneratorConfig
    from evcap.generators.generator import Part, Seen

AT_ONCE = 8  # requests of one batch that are under way together
OF_THE_IMAGE = (400, 413, 415, 422)  # statuses that another image may not get


class EndpointGenerator:
    """A ChatGenerator behind an endpoint.

    The first caption of an image is asked for at temperature 0, further ones, each by a request of its own, at 1: not every
    endpoint knows the setting `n`.
    """

    side = CHAT_SIDE

    def __init__(self, config: GeneratorConfig, endpoint: Endpoint | None = None):
        self._config, self._endpoint = config, endpoint or Endpoint(config.source, config.model)

    def captions(self, seen: Seen, num_captions: int, decoding: DecodingConfig) -> list[list[str]]:
        from evcap.generators.generator import Unanswered, prompt_for

        check_decoding(self._config, decoding)
        shown = [[image, prompt_for(self._config, names)] for image, names in zip(seen.images, seen.names, strict=True)]

        def described(parts: list[Part]) -> list[str] | Exception:
            try:
                warmth = [0.0] + [1.0] * (num_captions - 1)
                return [self._said(parts, decoding.max_length, temperature) for temperature in warmth]
            except Failed as error:
                return EvcapError(str(error))
            except Refused as error:
                return error

        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            replies = list(pool.map(described, shown))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if len(failed) == len(replies) and isinstance(failed[0], Refused) and failed[0].status not in OF_THE_IMAGE:
            raise failed[0]  # all others would be refused, too
        if failed:
            raise Unanswered(replies)
        return replies

    def reply(self, parts: Sequence[Part], new_tokens: int) -> str:
        try:
            return self._said(parts, new_tokens)
        except Failed as error:
            raise EvcapError(str(error)) from None

    def pick(self, parts: Sequence[Part], choices: int) -> int:
        last = chr(64 + choices)

        def letter(reply: str) -> list[int]:
            found = re.search(rf"(?:^|[(\s])([A-{last}])(?=$|[).:,\s])", reply.strip())
            return [ord(found[1]) - 65] if found else []

        try:
            useless = f"did not answer with a letter from A to {last}"
            return self._endpoint.ask(_messages(parts), letter, useless, temperature=0, max_tokens=200)[0]
        except Failed as error:
            raise EvcapError(str(error)) from None

    def _said(self, parts: Sequence[Part], new_tokens: int, temperature: float = 0.0) -> str:
        settings = {"temperature": temperature, "max_tokens": new_tokens}
        return self._endpoint.ask(_messages(parts), printable, "said nothing", **settings)


def printable(reply: str) -> str:
    """A reply in one line, without what controls a terminal and without halves of characters."""
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in reply).split())


def _messages(parts: Sequence[Part]) -> list[dict]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image_url", "image_url": {"url": _url(part)}}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def _url(image: Image.Image) -> str:
    """The image itself as an address, a JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
