"""A store is asked many things at once, a disk one after the other; answers come in order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from lltopo import side_by_side
from lltopo.side_by_side import answers
from lltopo.storage import Place, place

STORE = Place(pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())), "/bucket")


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
@pytest.mark.parametrize("local", [True, False])
def test_answers_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, at_a_time: int
) -> None:
    monkeypatch.setattr(side_by_side, "_AT_A_TIME", at_a_time)
    where = place(tmp_path) if local else STORE
    assert list(answers(lambda i: i * i, iter(range(100)), where)) == [i * i for i in range(100)]
    assert list(answers(str, [], where)) == []


def test_a_store_is_asked_several_things_at_once() -> None:
    together = threading.Barrier(8)
    # nobody would pass alone
    assert list(answers(lambda _: together.wait(30), range(8), STORE))


def test_a_disk_is_asked_in_this_thread(tmp_path: Path) -> None:
    found = set(answers(lambda _: threading.get_ident(), range(8), place(tmp_path)))
    assert found == {threading.get_ident()}


def test_no_more_is_drawn_than_is_asked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_AT_A_TIME", 10)
    left = iter(range(100))
    found = answers(str, left, STORE)
    assert next(found) == "0"
    assert next(left) == 10


@pytest.mark.parametrize("local", [True, False])
def test_an_error_is_raised_in_its_turn(tmp_path: Path, local: bool) -> None:
    found = answers(lambda i: 1 / (i - 2), range(10), place(tmp_path) if local else STORE)
    assert [next(found), next(found)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(found)
