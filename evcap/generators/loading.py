"""Models of transformers, opened without noise, and failing in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evcap.errors import EvcapError


@contextmanager
def opened(what: str) -> Iterator[None]:
    """Within it transformers tells no progress and no report. Raises EvcapError, one line, for what cannot be opened."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise EvcapError(f"{what} cannot be opened: {reason[:200]}") from None
    finally:
        logging.set_verbosity(before)
