"""Entries that a memory holds already: one image added twice would fill the hits of a query with one name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

STEP = 2.0**-8  # keys are compared on this grid: float16 and the company of a batch change them by a hundredth of it
CHUNK = 65536  # keys that are compared at once


def marks(keys: np.ndarray) -> np.ndarray:
    """(M,) int64 of keys (M,D) of unit length: equal for keys that are equal up to rounding, else different.

    Of float16 values on a grid of `STEP` a random linear hash modulo 2^64. Two keys of one mark are alike in all D numbers;
    between images that differ at all that happens as seldom as a collision.
    """
    factors = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, keys.shape[1]) | 1
    found = np.empty(len(keys), np.int64)
    for start in range(0, len(keys), CHUNK):
        part = np.asarray(keys[start : start + CHUNK], np.float16).astype(np.float32)
        found[start : start + CHUNK] = np.rint(part / STEP).astype(np.int64) @ factors
    return found


class KnownEntries:
    """The marks of a memory's keys by name; those of a name are made when they are first asked for, and kept up to date."""

    def __init__(self, names: Sequence[str]):
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(names):
            self._rows[name].append(row)
        self._marks: dict[str, set[int]] = {}

    def new(self, names: Sequence[str], keys: np.ndarray, old: np.ndarray) -> np.ndarray:
        """Numbers of the entries with these `names` and `keys` (m,D) that are neither in the memory nor among those before
        them, which from now on count as being there. old (M,D): the memory's keys."""
        asked = [name for name in dict.fromkeys(names) if name not in self._marks]
        rows = [row for name in asked for row in self._rows[name]]
        found = iter(marks(old[rows]).tolist() if rows else [])
        self._marks.update({name: {next(found) for _ in self._rows[name]} for name in asked})
        kept = []
        for number, (name, mark) in enumerate(zip(names, marks(keys).tolist(), strict=True)):
            if mark not in self._marks[name]:
                self._marks[name].add(mark)
                kept.append(number)
        return np.array(kept, np.int64)
