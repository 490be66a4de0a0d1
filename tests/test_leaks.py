"""What a study leaves behind: no process, no listening port, no temporary file.

And while it runs nobody else can reach it: all that listens does so on 127.0.0.1.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from processes import PATIENCE, finish, start

STUDY = {
    "data": {"source": "digits", "train_samples": 400, "val_samples": 100},
    "graph": {"k": 5},
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 40, "batch_size": 20, "lr": 0.01},
    # torch's own rendezvous is for several workers
    "runs": {"alone": {}, "together": {"training": {"workers": 2}}},
    "resources": {"local_cpus": 4, "object_store_mb": 100},
}
TICK_SECONDS = 1.0
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


class Watched(NamedTuple):
    """All that a process has started, and the addresses on which any of it has listened."""

    family: set[psutil.Process]
    listeners: dict[tuple[str, int], str]


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the study's own, short enough for Ray."""
    folder = Path("/tmp") / secrets.token_hex(3)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def look(process: subprocess.Popen[bytes], watched: Watched) -> None:
    for member in family_of(process):
        watched.family.add(member)
        try:
            for connection in member.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    watched.listeners[tuple(connection.laddr)] = member.name()
        except psutil.Error:
            continue  # it has just ended


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        driver = psutil.Process(process.pid)
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def assert_nothing_left(watched: Watched, temporary: Path) -> None:
    _, alive = psutil.wait_procs(watched.family, timeout=10)
    assert alive == []
    # who has no process has no port; all of Ray's are told where the session's files are
    assert [p for p in psutil.process_iter() if str(temporary) in command_line(p)] == []
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
    assert list(temporary.glob("lltopo*")) == []


def assert_listens_on_the_loopback(watched: Watched) -> None:
    assert {"gcs_server", "raylet"} <= set(watched.listeners.values())
    listeners = watched.listeners.items()
    assert {where: name for where, name in listeners if where[0] not in LOOPBACK} == {}


@pytest.mark.cluster
def test_study_listens_on_the_loopback_alone_and_leaves_nothing(
    tmp_path: Path, temporary: Path
) -> None:
    path, log, out = tmp_path / "study.yaml", tmp_path / "log", tmp_path / "out"
    path.write_text(yaml.safe_dump(STUDY))
    command = ["run", str(path), "--out", str(out)]

    process, watched = start(command, log), Watched(set(), {})
    end = time.monotonic() + PATIENCE
    while not all(list(out.glob(f"metrics/run={run}/*/part-0.parquet")) for run in STUDY["runs"]):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        look(process, watched)
        time.sleep(TICK_SECONDS)
    assert any(temporary.iterdir())
    assert any(str(temporary) in command_line(member) for member in watched.family)
    # to the whole group, as a terminal does
    os.killpg(process.pid, signal.SIGINT)
    finish(process, log, status=130)
    assert_nothing_left(watched, temporary)
    assert_listens_on_the_loopback(watched)

    process, again = start(command, log), Watched(set(), {})
    while process.poll() is None:
        look(process, again)
        time.sleep(TICK_SECONDS)
    finish(process, log)
    assert_nothing_left(again, temporary)
    assert_listens_on_the_loopback(again)
