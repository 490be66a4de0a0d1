"""Folders that a driver has on its node while it lives; those of killed ones are cleared away."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lltopo.orphans import is_dead, own_mark

_FOLDER = "lltopo-ray-"
_MARK = "driver"  # the file in it that says whose it is
# of the names of Ray's sockets, below a temporary folder with a random part of 8 letters
_LONGEST_SOCKET = (
    "{folder}{pid}-________/session_2000-01-01_00-00-00_000000_{pid}/sockets/dash_MetricsHead"
)
_MOST_BYTES = 107  # that a socket's name may have


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder of this driver's on its node, for as long as the block lasts.

    That of a driver that is killed before is cleared away by the next session on the node.
    """
    folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=_short_folder())
    try:
        (Path(folder) / _MARK).write_text(own_mark())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_orphaned_folders() -> None:
    """Clear away the folders of drivers that were killed before they could do so."""
    for mark in Path(_short_folder()).glob(f"{_FOLDER}*-*/{_MARK}"):
        # another has just cleared it away, or it is not as we write it
        with suppress(OSError, ValueError):
            found = mark.lstat()
            own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
            if own and is_dead(mark.read_text()):
                shutil.rmtree(mark.parent, ignore_errors=True)


def _short_folder() -> str:
    """A folder for temporary files in which the names of Ray's sockets are short enough."""
    usual = tempfile.gettempdir()
    longest = os.path.join(usual, _LONGEST_SOCKET.format(folder=_FOLDER, pid=os.getpid()))
    return usual if len(os.fsencode(longest)) <= _MOST_BYTES else "/tmp"
