"""Fields as their loss tables become complete, while training goes on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from lltopo.sections import SPLITS
from lltopo.session import Session
from lltopo.side_by_side import answers
from lltopo.tables import Field, is_complete, metrics_file, read_table, recorded_epochs

Futures = Mapping[str, "Future[None]"]
"""Each run in training, and what ends when it does."""

_TICK_SECONDS = 0.5
_STORE_TICK_SECONDS = 5.0  # a look at a store is paid for
_LATE_SECONDS = 10.0
_SHARE = 10.0  # at most one part in eleven of the time is spent looking


def arriving_fields(
    session: Session,
    pending: Sequence[Field],
    futures: Futures,
    waited_for: Callable[[str], str | None],
) -> Iterator[list[Field]]:
    """Yield the pending fields as their tables become complete, one run's at a time, often none.

    Ends when every training has ended and what the successful ones have written is there; that is
    waited for a while, because a folder that nodes share may show it late.

    Parameters
    ----------
    session
        Its folder is where the tables are written; it is told of every epoch recorded.
    pending
        The fields that are waited for.
    futures
        The trainings; the fields of other runs are taken to be there.
    waited_for
        Tells, in words, what a run in training waits for; None where it has all it needs.
    """
    out = session.out
    yield from _by_run([field for field in pending if field.run not in futures])
    waiting = [field for field in pending if field.run in futures]
    told: dict[str, set[int]] = {}
    tick = _TICK_SECONDS if out.is_local else _STORE_TICK_SECONDS
    next_look = 0.0
    ended: dict[str, float] = {}
    going = set(futures)
    while going:
        began = time.monotonic()
        # asked before looking: what the last epoch wrote is then there
        new_ends = {run: began for run in going if run not in ended and futures[run].done()}
        ended |= new_ends
        if began < next_look and not (new_ends and going <= ended.keys()):
            yield []
            continue
        complete: set[tuple[str, int]] = set()
        for run in going:
            epochs = recorded_epochs(out, run)
            new = sorted(epochs - told.get(run, set()))
            whole = answers(partial(is_complete, out, run, splits=SPLITS), new, out)
            found = set(itertools.compress(new, whole))
            complete |= {(run, epoch) for epoch in found}
            if found:
                told[run] = told.get(run, set()) | found
                _tell_of_training(session, run, told[run])
            elif run not in ended and (lacking := waited_for(run)):
                n_epochs = session.study.runs[run].training.epochs + 1
                session.notify(f"train {run}", len(told.get(run, ())), n_epochs, lacking)
        going -= {run for run in ended if _is_over(session, run, futures, told, began - ended[run])}
        # of a slow folder not all the time
        now = time.monotonic()
        next_look = now + max(tick, _SHARE * (now - began))
        ready = [field for field in waiting if (field.run, field.epoch) in complete]
        yield from _by_run(ready)
        arrived = set(ready)
        waiting = [field for field in waiting if field not in arrived]


def _is_over(
    session: Session,
    run: str,
    futures: Futures,
    told: Mapping[str, set[int]],
    seconds: float,
) -> bool:
    """Whether no more is to be expected of a training that ended so many seconds ago."""
    n_epochs = session.study.runs[run].training.epochs + 1
    all_there = len(told.get(run, ())) >= n_epochs
    return all_there or futures[run].exception() is not None or seconds >= _LATE_SECONDS


def _by_run(fields: Sequence[Field]) -> Iterator[list[Field]]:
    of_run: dict[str, list[Field]] = {}
    for field in fields:
        of_run.setdefault(field.run, []).append(field)
    yield from of_run.values() or [[]]


def _tell_of_training(session: Session, run: str, epochs: set[int]) -> None:
    note = ", ".join(
        f"{row['split']} loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
        for row in read_table(metrics_file(session.out, run, max(epochs))).to_pylist()
        if row["accuracy"] is not None
    )
    n_epochs = session.study.runs[run].training.epochs + 1
    session.notify(f"train {run}", len(epochs), n_epochs, note)
