"""Whether a source of weights is a file or folder here or the name of a repository on a hub, and quiet while it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evcap.errors import EvcapError

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)  # bert-base-uncased, lmsys/vicuna-13b-v1.3
FILES = (".safetensors", ".pt", ".pth", ".bin", ".pkl", ".ckpt", ".gguf", ".json", ".yaml", ".yml", ".zip", ".npz")


def local_or_hub(source: str | Path) -> Path | str:
    """The path of what is here; else the source, which is a name on a hub.

    Raises EvcapError for what is not here and can be no such name: a question to a hub would only hide a slip of the pen.
    """
    path = Path(source)
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # too long, or with a NUL
        pass
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source) or source.lower().endswith(FILES):
        raise EvcapError(f"{source}: no such file or folder")
    return source


@contextmanager
def without_reports() -> Iterator[None]:
    """Transformers meanwhile draws no bars and lists no tensors that a file holds beside those that are wanted."""
    from transformers.utils import logging  # slow import

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def opened(what: str) -> Iterator[None]:
    """Within it transformers tells nothing. Raises EvcapError, one line, for what it cannot open. what: is named there."""
    from safetensors import SafetensorError

    try:
        with without_reports():
            yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise EvcapError(f"{what} cannot be opened: {reason[:200]}") from None
