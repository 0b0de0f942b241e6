"""Chat completions of an OpenAI-compatible endpoint, over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import TypeVar
from urllib.parse import urlsplit

from evcap.errors import EvcapError
from evcap.text_files import one_line

T = TypeVar("T")
LONGEST_REPLY = 1 << 20  # bytes of an endpoint's answer


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
        if not _is_address(url):
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
            reason = one_line(f"{error.code} {error.reason}")
            if error.code in (408, 409, 425, 429) or error.code >= 500:
                raise Failed(f"answered {reason}") from None
            hint = "the key (OPENAI_API_KEY)" if error.code in (401, 403) else f"the address and the model '{self.model}'"
            raise Refused(f"{self.url} refuses: {reason}; check {hint}", error.code) from None
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


def _is_address(url: str) -> bool:
    """Whether it is an http(s) address to which a path can be added."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and ".." not in parts.hostname and parts.port != 0
    except ValueError:  # brackets that are not closed, a port that is no number
        return False
    plain = url.isascii() and url.isprintable() and " " not in url and not parts.query and not parts.fragment
    return named and plain and parts.scheme in ("http", "https")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to no other address than the one it was given for."""

    def redirect_request(self, *_):
        return None
