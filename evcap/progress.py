"""How far long work is, told to whoever wants to know: the library prints nothing and knows no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, count: int = 1, note: str = "") -> None:
        """So many more are done. note: what stands beside the count, as a loss."""


class Progress(Protocol):
    def __call__(self, total: int, title: str, unit: str = "img", done: int = 0) -> AbstractContextManager[Advance]:
        """Begin to show work on `total` units, of which `done` were there before; it ends with the `with`."""


@contextmanager
def silent(total: int, title: str, unit: str = "img", done: int = 0) -> Iterator[Advance]:
    """A Progress that shows nothing."""
    yield lambda count=1, note="": None
