"""Calls and rows are dealt out to threads."""

from __future__ import annotations

import threading
from contextlib import closing

import numpy as np  # noqa: F401  brings its BLAS
import pytest
from threadpoolctl import threadpool_info

from lltopo.threads import for_parts, on_threads, single_threaded_products


def test_answers_come_in_order_from_several_threads() -> None:
    meeting = threading.Barrier(3)

    def met(i: int) -> int:
        meeting.wait(timeout=20)
        return i * i

    assert list(on_threads(met, ((i,) for i in range(9)), 3)) == [i * i for i in range(9)]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_what_ends_it_waits_only_for_the_calls_at_work(stop: type[BaseException]) -> None:
    asked: list[int] = []

    def answer(i: int) -> int:
        asked.append(i)
        if i == 3:
            raise stop
        return i

    answers = on_threads(answer, ((i,) for i in range(1000)), 2)
    with pytest.raises(stop):
        list(answers)
    assert len(asked) <= 8


def test_whoever_asks_no_more_waits_only_for_the_calls_at_work() -> None:
    asked: list[int] = []
    with closing(on_threads(asked.append, ((i,) for i in range(1000)), 2)) as answers:
        next(answers)
    assert len(asked) <= 5


def test_limit_of_products_is_taken_back() -> None:
    def limits() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    before = limits()
    with single_threaded_products():
        assert limits() == {1}
    assert limits() == before


@pytest.mark.parametrize("n_rows", [0, 1, 2, 10])
def test_parts_are_all_rows_once(n_rows: int) -> None:
    parts: list[tuple[int, int]] = []
    for_parts(lambda first, last: parts.append((first, last)), n_rows, n_threads=3)
    assert sorted(i for part in parts for i in range(*part)) == list(range(n_rows))
