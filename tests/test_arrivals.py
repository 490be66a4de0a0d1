"""How often one looks for what has arrived."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs
from tiny import tiny_study

from lltopo import arrivals
from lltopo.arrivals import arriving_fields
from lltopo.session import Session
from lltopo.storage import Place, place

STORE = Place(pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())), "/bucket")


@pytest.mark.parametrize(("local", "n_looks"), [(True, 20), (False, 2)])
def test_a_store_is_looked_at_seldom_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, n_looks: int
) -> None:
    now, looks = [100.0], []

    def looked(folder: Place) -> list[str]:
        looks.append(now[0])
        return []

    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(arrivals, "files_below", looked)
    out = place(tmp_path) if local else STORE
    session = Session(tiny_study(tmp_path), out, lambda job, done, of, note: None)
    training: Future[None] = Future()
    arriving = arriving_fields(session, [], {"only": training})
    while now[0] < 110.0:
        assert next(arriving) == []
        now[0] += 0.125
    assert len(looks) == n_looks
    # what the last epoch wrote is not waited for
    training.set_result(None)
    assert next(arriving) == []
    assert len(looks) == n_looks + 1
    assert list(arriving) == []
