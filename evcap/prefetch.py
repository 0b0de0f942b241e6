"""Work that is done ahead in threads while its results are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(function: Callable[[Item], Result], items: Iterable[Item], ahead: int, threads: int = 2) -> Iterator[Result]:
    """`function` of each item, in order, computed in `threads` threads up to `ahead` items before it is asked for.

    What `function` raises is raised where its result would have come. Close the iterator to stop: what has begun is waited
    for, what has not is dropped.
    """
    pool, waiting = ThreadPoolExecutor(threads), iter(items)
    begun: deque = deque()
    try:
        while True:
            begun.extend(pool.submit(function, item) for item in islice(waiting, ahead - len(begun)))
            if not begun:
                return
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
