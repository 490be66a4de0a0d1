"""A mark tells living processes of this machine from dead ones, and knows nothing of others."""

from __future__ import annotations

import subprocess
import sys

from processes import DEAD

from lltopo.orphans import is_dead, is_of_this_machine, own_mark


def test_a_process_of_this_machine_lives_until_it_ends() -> None:
    code = "from lltopo.orphans import own_mark; print(own_mark(), flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        mark = it.stdout.readline().strip()
        assert "." not in mark
        assert mark != own_mark()
        assert is_of_this_machine(mark)
        assert not is_dead(mark)
        it.communicate("\n")
    assert is_dead(mark)
    assert is_dead(DEAD)
    assert not is_dead(own_mark())


def test_nothing_is_known_of_other_machines() -> None:
    for mark in (f"x{DEAD}", "elsewhere-1", "", "-", own_mark() + "x", "0123"):
        assert not is_of_this_machine(mark)
        assert not is_dead(mark)
