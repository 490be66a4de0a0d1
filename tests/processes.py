"""Real ``lltopo`` processes for the tests: started, watched, killed, their files compared."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from lltopo.orphans import own_mark

DEAD = f"{own_mark().rpartition('-')[0]}-{2**22 + 1}"
"""The mark of a process of this machine that cannot be: its number is too large."""

PATIENCE = 240.0
"""Seconds after which a test gives up waiting."""

_started: list[subprocess.Popen[bytes]] = []


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """``lltopo`` with these arguments, its output going to ``log``."""
    _started[:] = [process for process in _started if process.poll() is None]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "COLUMNS": "200"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from lltopo.cli import main; main()", *arguments],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    _started.append(process)
    return process


def kill_left() -> None:
    """Kill what a test that failed has left running: it would make the next one fail, too."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill_driver(process)


def finish(process: subprocess.Popen[bytes], log: Path, status: int = 0) -> None:
    """Wait for a process and hold it to its exit status."""
    found = process.wait(timeout=PATIENCE)
    assert found == status, f"exit status {found}\n{log.read_text()[-4000:]}"


def run(arguments: Sequence[str], log: Path, status: int = 0) -> str:
    """Run ``lltopo`` to its end; what it has printed."""
    finish(start(arguments, log), log, status)
    return log.read_text()


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a condition, as long as the process lives."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before its time"
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.005)


def workers(process: subprocess.Popen[bytes], title: str) -> list[psutil.Process]:
    """The process's Ray workers that are at work on what ``title`` names."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if f"ray::{title}" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue  # it has just ended
    return found


def kill_driver(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a driver and wait until all its workers are gone."""
    family = psutil.Process(process.pid).children(recursive=True)
    # Ray's own agents notice late that their node is gone; they do none of our work
    agents = [p for p in family if "Agent" in " ".join(p.cmdline())]
    process.send_signal(signal.SIGKILL)
    process.wait()
    for agent in agents:
        agent.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"outlived their driver: {alive}"


class Snapshot(NamedTuple):
    """A folder's Parquet files: their bytes and when each was written."""

    content: dict[str, bytes]
    written: dict[str, int]


def snapshot(out: Path, *folders: str) -> Snapshot:
    """The complete Parquet files below some folders of a study's results."""
    files = sorted(path for name in folders for path in (out / name).rglob("part-*.parquet"))
    return Snapshot(
        {str(path.relative_to(out)): path.read_bytes() for path in files},
        {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files},
    )


def rewritten(before: Snapshot, after: Snapshot) -> list[str]:
    """The files of ``before`` that were written again."""
    return [name for name, time_ in before.written.items() if after.written.get(name) != time_]
