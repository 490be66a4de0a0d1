"""A store is asked many things at once, a disk one after the other; answers come in order."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs

from lltopo import side_by_side
from lltopo.side_by_side import answers
from lltopo.storage import Place, exists, place

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


def test_of_a_store_that_is_away_nobody_waits_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(MemoryFileSystem):
        def info(self, path: str, **options: Any) -> Any:
            raise OSError("no answer")

    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(Away(skip_instance_cache=True)))
    away = Place(filesystem, "/bucket", retry_s=3600.0)
    asked = threading.Barrier(9)

    def question(i: int) -> bool:
        asked.wait(30)
        return exists(away / f"{i}")

    found = answers(question, range(8), away)
    interrupt = threading.Thread(
        target=lambda: (asked.wait(30), os.kill(os.getpid(), signal.SIGINT))
    )
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        next(found)
    # the threads have ended: they would have waited for an hour
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ask")]


@pytest.mark.parametrize("local", [True, False])
def test_an_error_is_raised_in_its_turn(tmp_path: Path, local: bool) -> None:
    found = answers(lambda i: 1 / (i - 2), range(10), place(tmp_path) if local else STORE)
    assert [next(found), next(found)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(found)
