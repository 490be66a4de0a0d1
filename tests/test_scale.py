"""A thousand times the epochs, and no more memory in the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

MIB = 2**20


def driver_memory(n_runs: int, n_epochs: int, folder: Path) -> int:
    program = Path(__file__).with_name("planned.py")
    code = f"import runpy, sys; sys.path[:0] = {[str(program.parent), str(program.parent.parent)]}"
    run = f"{code}; runpy.run_path({str(program)!r}, run_name='__main__')"
    command = [sys.executable, "-c", run, str(n_runs), str(n_epochs), str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    return int(printed.stdout.split()[0])


def test_twenty_runs_of_a_thousand_epochs_need_the_memory_of_two_of_ten(tmp_path: Path) -> None:
    few = driver_memory(2, 10, tmp_path / "few")
    many = driver_memory(20, 1000, tmp_path / "many")
    assert pq.read_metadata(tmp_path / "many/series.parquet").num_rows == 2 * 2 * 20 * 1000
    assert many < 1.2 * few, (few / MIB, many / MIB)
