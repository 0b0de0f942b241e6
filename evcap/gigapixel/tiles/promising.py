"""Coarse to fine: of an image that is not indexed, only what looks promising is encoded, level by level."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from evcap.errors import EvcapError
from evcap.gigapixel.search.towers import Tower
from evcap.gigapixel.tiles.index import BATCH, EMPTY, ENCODED, MISSING, Filled, TileIndex
from evcap.progress import Progress, silent

CHUNK = 1024  # tiles whose features are scored at once
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fill_promising(
    index: TileIndex, encoder: Tower, score: Score, budget: int, batch: int = BATCH, progress: Progress = silent
) -> Filled:
    """Encode at most `budget` tiles of a pyramid: coarse levels as a whole, of finer ones what is below the best tiles.

    score: numbers (n,) int64 and query features (n,Q,W) float16 of tiles -> (n,), the higher the more promising. Tiles of
    one level only are compared.

    Up to half of the budget is for whole levels, from the coarsest on; the rest is shared equally by the levels below.
    Tiles that are known to be empty cost nothing and nothing below them is looked at, tiles that the index holds already cost
    nothing. What is encoded stays in the index. Returns how many were encoded, out of all tiles of the plan. Raises
    EvcapError as TileIndex.fill, and for a plan that is no pyramid.
    """
    plan, before, left = index.plan, index.counts(), budget
    if not plan.name.startswith("pyramid"):
        raise EvcapError(f"plan {plan.name} has no levels to go down; index it as a whole with `evcap index`")
    whole, best = True, np.zeros(0, np.int64)
    for depth, level in enumerate(plan.levels):
        if whole:
            chosen = _with_content(index, np.arange(level.start, level.stop))
            whole = depth == 0 or _missing(index, chosen) <= left - budget // 2
        if not whole:
            ranked = best[np.argsort(-_scores(index, best, score), kind="stable")]
            chosen = _below(index, ranked, max(min(left, 1), left // (len(plan.levels) - depth)))
        left -= _missing(index, chosen)
        index.fill(encoder, chosen, batch, progress)
        best = chosen[index.states[chosen] == ENCODED]
    after = index.counts()
    return Filled(after[ENCODED] - before[ENCODED], after[EMPTY] - before[EMPTY], len(plan))


def _with_content(index: TileIndex, numbers: np.ndarray) -> np.ndarray:
    """Those that are not known to be empty."""
    numbers = numbers[index.states[numbers] != EMPTY]
    known = index.states[numbers] == ENCODED
    return numbers[known | ~index.raster.empty_boxes(index.plan.boxes(numbers))]


def _missing(index: TileIndex, numbers: np.ndarray) -> int:
    return int(np.count_nonzero(index.states[numbers] == MISSING))


def _scores(index: TileIndex, numbers: np.ndarray, score: Score) -> np.ndarray:
    parts = (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))
    return np.concatenate([np.zeros(0), *(score(part, index.queries(part)) for part in parts)])


def _below(index: TileIndex, parents: Iterable[int], budget: int) -> np.ndarray:
    """The children of these tiles, of the first ones first, as far as `budget` goes."""
    chosen: dict[int, None] = {}
    for parent in parents:
        children = np.array([child for child in index.plan.children([parent]) if child not in chosen], np.int64)
        children = _with_content(index, children)
        children = children[np.cumsum(index.states[children] == MISSING) <= budget]
        budget -= _missing(index, children)
        chosen |= dict.fromkeys(children.tolist())
        if not budget:
            break
    return np.array(sorted(chosen), np.int64)
