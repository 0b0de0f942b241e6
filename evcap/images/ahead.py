"""Images opened ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

from evcap.images.opening import ImageError
from evcap.prefetch import prefetched

if TYPE_CHECKING:
    from PIL.Image import Image


def open_ahead(items: Iterable, batch_size: int, opened: Callable[[Any], Image]) -> Iterator[list[tuple[Any, Any]]]:
    """Batches of (item, its image or the ImageError that came instead), opened in two threads up to two batches ahead.

    Close the iterator to stop.
    """

    def attempt(item):
        try:
            return item, opened(item)
        except ImageError as error:
            return item, error

    with closing(prefetched(attempt, items, 2 * batch_size)) as pairs:
        while batch := list(islice(pairs, batch_size)):
            yield batch
