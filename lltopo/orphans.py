"""Whose a temporary file is: a mark names its process, so that others can tell when it has died."""

from __future__ import annotations

import os
import re
import socket
from functools import cache


def own_mark() -> str:
    """Return the mark of this process, which may be a part of a file's name without dots."""
    return f"{_host()}-{os.getpid()}"


def is_dead(mark: str) -> bool:
    """Say whether the process of a mark has died; of another machine's nothing is known."""
    return is_of_this_machine(mark) and not _is_alive(int(mark.rpartition("-")[2]))


def is_of_this_machine(mark: str) -> bool:
    """Say whether a mark is of a process of this machine."""
    host, _, pid = mark.rpartition("-")
    return host == _host() and pid.isdigit()


@cache
def _host() -> str:
    """This machine, or this container of it: where a process's number means that process."""
    try:
        numbers = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        numbers = ""
    return re.sub(r"\W", "_", socket.gethostname()) + numbers


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
