"""The command line in the tests' own process: how a command ended, and what it complained of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


def complaint(ended: Ended) -> str:
    """The one line on stderr of a command that was refused."""
    assert ended.status == 2
    [line] = ended.err.splitlines()
    assert line.startswith("lltopo: ")
    assert "Traceback" not in ended.out + ended.err
    assert line.endswith((".", "?"))
    return line.removeprefix("lltopo: ")
