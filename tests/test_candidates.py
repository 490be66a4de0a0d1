"""How the search is dealt out to threads."""

from __future__ import annotations

import threading

import pytest

from lltopo.candidates import for_parts, on_threads


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


@pytest.mark.parametrize("n_rows", [0, 1, 2, 10])
def test_parts_are_all_rows_once(n_rows: int) -> None:
    parts: list[tuple[int, int]] = []
    for_parts(lambda first, last: parts.append((first, last)), n_rows, n_threads=3)
    assert sorted(i for part in parts for i in range(*part)) == list(range(n_rows))
