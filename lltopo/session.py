"""A study being worked on."""

from __future__ import annotations

from typing import NamedTuple

from lltopo.progress import Notify
from lltopo.storage import Place
from lltopo.study import Study


class Session(NamedTuple):
    """A study, where its results go, and whom to tell of the progress."""

    study: Study
    out: Place
    notify: Notify
