"""How often one looks for what has arrived."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs as pafs
from tiny import tiny_study

from lltopo import arrivals
from lltopo.arrivals import arriving_fields
from lltopo.schemas import METRICS_PART
from lltopo.sections import SPLITS
from lltopo.session import Session
from lltopo.storage import Place, place
from lltopo.tables import Field, LossTable, metrics_file, write_losses, write_table

STORE = Place(pafs.PyFileSystem(pafs.FSSpecHandler(MemoryFileSystem())), "/bucket")


def nothing(run: str) -> str | None:
    """What a run waits for where it has all it needs."""
    return None


@pytest.mark.parametrize(("local", "n_looks"), [(True, 20), (False, 2)])
def test_a_store_is_looked_at_seldom_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, n_looks: int
) -> None:
    now, looks = [100.0], []

    def looked(out: Place, run: str) -> set[int]:
        looks.append(now[0])
        return set()

    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(arrivals, "recorded_epochs", looked)
    out = place(tmp_path) if local else STORE
    session = Session(tiny_study(tmp_path), out, lambda job, done, of, note: None)
    training: Future[None] = Future()
    arriving = arriving_fields(session, [], {"only": training}, nothing)
    while now[0] < 110.0:
        assert next(arriving) == []
        now[0] += 0.125
    assert len(looks) == n_looks
    # what the last epoch wrote is not waited for
    training.set_exception(RuntimeError("no"))
    assert next(arriving) == []
    assert len(looks) == n_looks + 1
    assert list(arriving) == []


def test_a_slow_folder_is_not_looked_at_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = [100.0], []

    def looked(out: Place, run: str) -> set[int]:
        looks.append(now[0])
        now[0] += 2.0
        return set()

    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(arrivals, "recorded_epochs", looked)
    session = Session(tiny_study(tmp_path), place(tmp_path), lambda job, done, of, note: None)
    training: Future[None] = Future()
    arriving = arriving_fields(session, [], {"only": training}, nothing)
    while now[0] < 200.0:
        assert next(arriving) == []
        now[0] += 0.125
    assert 4 <= len(looks) <= 5


def test_epochs_arrive_once_each_and_other_runs_at_once(tmp_path: Path) -> None:
    out, told = place(tmp_path), []
    study = tiny_study(tmp_path)
    session = Session(study, out, lambda job, done, of, note: told.append((job, done)))
    fields = [
        Field(run, split, epoch)
        for run in ("only", "other")
        for split in SPLITS
        for epoch in (0, 1)
    ]
    training: Future[None] = Future()
    arriving = arriving_fields(session, fields, {"only": training}, nothing)
    assert {*next(arriving)} == {field for field in fields if field.run == "other"}
    record_epoch(out, 0)
    write_losses(out / "losses", Field("only", "train", 1), LOSSES)  # not its metrics as yet
    assert {*next(arriving)} == {Field("only", split, 0) for split in SPLITS}
    assert told == [("train only", 1)]
    record_epoch(out, 1)
    training.set_exception(RuntimeError("no third"))
    rest = [field for ready in arriving for field in ready]
    assert {*rest} == {Field("only", split, 1) for split in SPLITS}
    assert len(rest) == 2
    assert told[-1] == ("train only", 2)


def test_what_a_shared_folder_shows_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, out = [100.0], place(tmp_path)
    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    study = tiny_study(tmp_path)
    n_epochs = study.runs["only"].training.epochs + 1
    fields = [Field("only", split, epoch) for split in SPLITS for epoch in range(n_epochs)]
    session = Session(study, out, lambda job, done, of, note: None)
    training: Future[None] = Future()
    training.set_result(None)
    arriving = arriving_fields(session, fields, {"only": training}, nothing)
    found: list[Field] = []
    for ready in arriving:
        found += ready
        now[0] += 0.25
        if now[0] == 105.0:
            for epoch in range(n_epochs):
                record_epoch(out, epoch)
    assert sorted(found) == sorted(fields)
    assert now[0] < 107.0
    # what never shows is not waited for to the end of time
    away = session._replace(out=out / "away")
    now[0] = 200.0
    for ready in arriving_fields(away, fields, {"only": training}, nothing):
        assert ready == []
        now[0] += 0.25
    assert 210.0 <= now[0] < 212.0


LOSSES = LossTable(np.ones(3, np.float32), None, None)


def record_epoch(out: Place, epoch: int) -> None:
    for split in SPLITS:
        write_losses(out / "losses", Field("only", split, epoch), LOSSES)
    rows = [{"split": split, "loss": 1.0, "accuracy": 0.5} for split in SPLITS]
    write_table(metrics_file(out, "only", epoch), rows, METRICS_PART)


def test_what_a_run_waits_for_is_told_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    recorded: set[int] = set()
    monkeypatch.setattr(arrivals, "recorded_epochs", lambda out, run: set(recorded))
    monkeypatch.setattr(arrivals, "is_complete", lambda *_, **__: True)
    monkeypatch.setattr(arrivals, "read_table", lambda _: METRICS_PART.empty_table())
    lacking: list[str | None] = ["waiting for a node"]
    told: list[tuple[int, str]] = []
    study = tiny_study(tmp_path)
    session = Session(study, place(tmp_path), lambda _, done, of, note: told.append((done, note)))
    training: Future[None] = Future()
    arriving = arriving_fields(session, [], {"only": training}, lambda run: lacking[0])

    def look() -> list[tuple[int, str]]:
        told.clear()
        now[0] += 1.0
        next(arriving)
        return told.copy()

    assert next(arriving) == []  # there are no other runs
    assert look() == [(0, "waiting for a node")]
    # a resumed run says first how far it is
    recorded |= {0, 1}
    assert look() == [(2, "")]
    assert look() == [(2, "waiting for a node")]
    lacking[0] = None
    assert look() == []
