"""Prefetching: all results, in order, never far ahead."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.prefetch import prefetched


@given(st.lists(st.integers(), max_size=30), st.integers(1, 8), st.integers(1, 4))
def test_as_map(items, ahead, threads):
    assert list(prefetched(lambda x: x * 2, items, ahead, threads)) == [x * 2 for x in items]


def test_no_further_ahead_than_asked():
    begun, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    for taken, _ in enumerate(prefetched(work, range(50), 4), 1):
        with lock:
            assert len(begun) <= taken + 3


def test_an_error_comes_in_its_turn_and_closing_drops_the_rest():
    def work(item: int) -> int:
        if item == 2:
            raise ValueError(item)
        return item

    results = prefetched(work, range(1000), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
    assert threading.active_count() < 10
