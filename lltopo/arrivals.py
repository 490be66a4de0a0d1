"""Fields as their loss tables become complete, while training goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

from lltopo.sections import SPLITS
from lltopo.session import Session
from lltopo.storage import Place, files_below
from lltopo.tables import Field, footer, is_complete, metrics_file, read_table

Futures = Mapping[str, "Future[None]"]
"""Each run in training, and what ends when it does."""

_TICK_SECONDS = 0.5
_STORE_TICK_SECONDS = 5.0  # a look at a store is paid for
_METRICS = re.compile(r"run=([^/]+)/epoch=(\d+)/part-0\.parquet")


def arriving_fields(
    session: Session, pending: Sequence[Field], futures: Futures
) -> Iterator[list[Field]]:
    """Yield the pending fields as their tables become complete, one run's at a time, often none.

    Ends when every training has ended.

    Parameters
    ----------
    session
        Its folder is where the tables are written; it is told of every epoch recorded.
    pending
        The fields that are waited for.
    futures
        The trainings; with none of them all fields are taken to be there.
    """
    out = session.out
    waiting = list(pending)
    told: dict[str, set[int]] = {}
    tick = _TICK_SECONDS if out.is_local else _STORE_TICK_SECONDS
    next_look = 0.0
    while futures:
        # asked before looking: what the last epoch wrote is then there
        ended = all(future.done() for future in futures.values())
        if time.monotonic() < next_look and not ended:
            yield []
            continue
        next_look = time.monotonic() + tick
        recorded = _recorded_epochs(out)
        _tell_of_training(session, futures, recorded, told)
        ready = [
            field
            for field in waiting
            if field.epoch in recorded.get(field.run, ())
            and is_complete(out, field.run, field.epoch, SPLITS)
        ]
        yield from _by_run(ready)
        arrived = set(ready)
        waiting = [field for field in waiting if field not in arrived]
        if ended:
            return
    yield from _by_run(waiting)


def _by_run(fields: Sequence[Field]) -> Iterator[list[Field]]:
    of_run: dict[str, list[Field]] = {}
    for field in fields:
        of_run.setdefault(field.run, []).append(field)
    yield from of_run.values() or [[]]


def _recorded_epochs(out: Place) -> dict[str, set[int]]:
    recorded: dict[str, set[int]] = {}
    for name in files_below(out / "metrics"):
        found = _METRICS.fullmatch(name)
        if found:
            recorded.setdefault(found[1], set()).add(int(found[2]))
    return recorded


def _tell_of_training(
    session: Session,
    futures: Futures,
    recorded: Mapping[str, set[int]],
    told: dict[str, set[int]],
) -> None:
    for run in futures:
        epochs = recorded.get(run, set())
        latest = metrics_file(session.out, run, max(epochs, default=0))
        # one that is cut short is about to be made again
        if epochs == told.get(run, set()) or footer(latest) is None:
            continue
        told[run] = epochs
        note = ", ".join(
            f"{row['split']} loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
            for row in read_table(latest).to_pylist()
            if row["accuracy"] is not None
        )
        n_epochs = session.study.runs[run].training.epochs + 1
        session.notify(f"train {run}", len(epochs), n_epochs, note)
