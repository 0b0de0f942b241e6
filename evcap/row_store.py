"""Rows of float16 features on disk, with a mark for each row that is done: any process may be killed at any time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Share = tuple[int, int]  # (this process, number of processes): each computes its share of the batches
ALONE: Share = (0, 1)
FILES = re.compile(r"[0-9a-f]{16}\.(f16|rows)")


def remove_rows(folder: str | Path) -> None:
    """Delete the row stores of a folder, and the folder unless something else is in it."""
    for path in Path(folder).glob("*"):
        if FILES.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):
        Path(folder).rmdir()


class RowStore:
    """`rows`: a memory map (items, *shape) float16 of one flat file, shared by all processes of a machine.

    Keyed by `key`, plain data: other items, settings or weights make another file in `folder`.
    """

    def __init__(self, folder: str | Path, key: dict, items: int, shape: tuple[int, ...]):
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.f16"
        known = self.path.exists()
        self.rows = _mapped(self.path, np.float16, (items, *shape))
        self._marks = _mapped(folder / f"{name}.rows", np.uint8, (items,))
        if not known:  # without its rows, deleted to free the disk, the progress means nothing
            self._marks[:] = 0

    @property
    def done(self) -> int:
        """How many rows are there."""
        return int(np.count_nonzero(self._marks))

    def fill(
        self, compute: Callable[[int, int], torch.Tensor], batch: int, advance: Callable[[int], None], share: Share = ALONE
    ) -> None:
        """Compute what is missing of this process's share: `compute(start, stop)` gives rows (stop-start, *shape).

        advance: is given the number of rows of each batch, those done before included.
        """
        todo = set(self.missing(batch, share))
        for start, stop in self._batches(batch, share):
            if (start, stop) in todo:
                self.rows[start:stop] = compute(start, stop).cpu().half().numpy()
                self.rows.flush()
                self._marks[start:stop] = 1  # after the rows: a killed process leaves no mark without its row
                self._marks.flush()
            advance(stop - start)

    def missing(self, batch: int, share: Share = ALONE) -> list[tuple[int, int]]:
        """The batches (start, stop) that `fill` will compute, in order; all but the last are `batch` long."""
        return [(start, stop) for start, stop in self._batches(batch, share) if not self._marks[start:stop].all()]

    def _batches(self, batch: int, share: Share) -> list[tuple[int, int]]:
        starts = range(share[0] * batch, len(self.rows), share[1] * batch)
        return [(start, min(start + batch, len(self.rows))) for start in starts]


def _mapped(path: Path, dtype, shape: tuple[int, ...]) -> np.memmap:
    """The array in a file, zeros where it was not written yet. Safe when several processes create the file at once."""
    with path.open("ab") as file:
        file.truncate(max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
    return np.memmap(path, dtype, "r+", shape=shape)


# -- rows that are read and written where they stand, for stores that main memory must not grow with


def runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive numbers, as far as they go, in their order."""
    borders = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    return ((start, stop) for start, stop in zip(borders, borders[1:], strict=False) if stop > start)


def read_rows(file: int, rows: np.ndarray, offset: int) -> None:
    """Fill `rows` from a file descriptor. Raises OSError for a file that ends before."""
    left = memoryview(rows).cast("B")
    while left:
        count = os.preadv(file, [left], offset)
        if not count:
            raise OSError(0, "the file was cut short")
        left, offset = left[count:], offset + count


def write_rows(file: int, rows: np.ndarray, offset: int) -> None:
    """All of it: where a disk gets full, the first part is written without an error."""
    left = memoryview(rows).cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
