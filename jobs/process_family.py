"""What a process and all that it has started take: for the benchmarks."""

from __future__ import annotations

import psutil


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants, as far as they live."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def memory(process: psutil.Process) -> int:
    """The bytes of a process, what it shares counted in parts; none of one that has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def cpu_seconds(process: psutil.Process) -> float:
    """The processor's seconds of a process until now; none of one that has ended."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0
