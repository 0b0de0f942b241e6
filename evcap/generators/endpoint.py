"""An OpenAI-compatible endpoint: chat completions of texts and images over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from evcap.errors import EvcapError
from evcap.generators.options import CHAT_SIDE, check_decoding

if TYPE_CHECKING:
    from PIL import Image

    from evcap.config import DecodingConfig, GeneratorConfig
    from evcap.generators.generator import Part, Seen

T = TypeVar("T")
LONGEST_REPLY = 1 << 20  # bytes of an endpoint's answer
AT_ONCE = 8  # requests of one batch that are under way together
OF_THE_IMAGE = (400, 413, 415, 422)  # statuses that another image may not get


class Failed(Exception):
    """A try, or all of them, failed, and another may not; what the endpoint did, in one line."""


class Refused(EvcapError):
    """The endpoint does not take what it was sent, with this HTTP status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Endpoint:
    """An OpenAI-compatible endpoint (POST URL/chat/completions). Threads may share one.

    url: up to and with the version, as in "http://localhost:8000/v1". model: its name there. key: sent as a bearer token,
    by default what OPENAI_API_KEY holds; "" sends none. timeout: seconds for each of the `tries`, between which it waits
    1, 2, ... seconds.
    """

    def __init__(self, url: str, model: str, key: str | None = None, timeout: float = 60.0, tries: int = 3):
        if not re.match(r"https?://[^/\s]+[^\s]*$", url, re.IGNORECASE):
            raise EvcapError(f"'{url}' is no address of an endpoint; it looks like http://localhost:8000/v1")
        key = (os.environ.get("OPENAI_API_KEY", "") if key is None else key).strip()
        if not (key.isascii() and key.isprintable()):
            raise EvcapError("the endpoint's key (OPENAI_API_KEY) holds letters that no key has; set it again")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model, self.key, self.timeout, self.tries = model, key, timeout, tries

    def ask(self, messages: Sequence[dict], usable: Callable[[str], T], useless: str, **settings) -> T:
        """What `usable` makes of the first reply of which it makes something; `useless` says what the other replies did.

        settings: of the request, as temperature and max_tokens.
        Raises Failed when the tries are used up, Refused for settings, a key or a content that the endpoint does not take.
        """
        reason = ""
        for attempt in range(self.tries):
            sleep(attempt)
            try:
                if found := usable(self._reply(messages, settings)):
                    return found
                reason = useless
            except Failed as error:
                reason = str(error)
        raise Failed(f"{self.url} {reason} ({self.tries} {'try' if self.tries == 1 else 'tries'})")

    def _reply(self, messages: Sequence[dict], settings: dict) -> str:
        """The text of one answer."""
        body = {"model": self.model, "messages": list(messages)} | settings
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            answer = self._post(urllib.request.Request(self.url, json.dumps(body).encode(), headers))
        except urllib.error.HTTPError as error:
            if error.code in (408, 409, 425, 429) or error.code >= 500:
                raise Failed(f"answered {error.code} {error.reason}") from None
            hint = "the key (OPENAI_API_KEY)" if error.code in (401, 403) else f"the address and the model '{self.model}'"
            raise Refused(f"{self.url} refuses: {error.code} {error.reason}; check {hint}", error.code) from None
        except (OSError, http.client.HTTPException) as error:  # urllib's URLError is an OSError around another
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise Failed(f"did not answer within {self.timeout:g} s") from None
            raise Failed(f"cannot be reached: {getattr(reason, 'strerror', None) or reason}") from None
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise Failed("answered, but not with a chat completion")
        return content

    def _post(self, request: urllib.request.Request) -> bytes:
        """The body of the answer, or as much of it as a sane one may have."""
        deadline = monotonic() + self.timeout
        answer = b""
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as response:
            while len(answer) < LONGEST_REPLY and (part := response.read1(1 << 16)):
                answer += part
                if monotonic() > deadline:  # the socket's own timeout starts again with every byte
                    raise TimeoutError
        return answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to no other address than the one it was given for."""

    def redirect_request(self, *_):
        return None


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
                if error.status not in OF_THE_IMAGE:
                    raise
                return error

        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            replies = list(pool.map(described, shown))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if any(isinstance(reply, Exception) for reply in replies):
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
        return self._endpoint.ask(_messages(parts), lambda reply: " ".join(reply.split()), "said nothing", **settings)


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
