"""How long work is shown: live bars on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Notify = Callable[[str, int, int, str], None]
"""Called with a job's name, how much of it is done, how much there is, and a note."""

_LINE_SECONDS = 10.0


@contextmanager
def shown_progress(console: Console) -> Iterator[Notify]:
    """A function to be told of (job, done, of, note), which shows it until the block ends."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _bars(progress)


def _bars(progress: Progress) -> Notify:
    bars: dict[str, TaskID] = {}

    def show(job: str, done: int, of: int, note: str) -> None:
        if job not in bars:
            bars[job] = progress.add_task(job, note=note, total=of)
        progress.update(bars[job], completed=done, total=of, note=note)

    return show


def _lines(console: Console) -> Notify:
    last: dict[str, float] = {}

    def show(job: str, done: int, of: int, note: str) -> None:
        now = time.monotonic()
        if done >= of or now - last.get(job, now - _LINE_SECONDS) >= _LINE_SECONDS:
            last[job] = now
            console.print(f"{job}: {done}/{of} {note}".rstrip(), highlight=False)

    return show
