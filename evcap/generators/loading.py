"""Models of transformers, opened without noise, and failing in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evcap.errors import EvcapError
from evcap.weights.sources import without_reports


@contextmanager
def opened(what: str) -> Iterator[None]:
    """Within it transformers tells no progress and no report. Raises EvcapError, one line, for what cannot be opened."""
    try:
        with without_reports():
            yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise EvcapError(f"{what} cannot be opened: {reason[:200]}") from None
