"""A study being worked on, and the Ray session that its stages share."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import NamedTuple

from lltopo.plugins import WORKING_FOLDER
from lltopo.progress import Notify
from lltopo.storage import Place
from lltopo.study import Study


class Session(NamedTuple):
    """A study, where its results go, and whom to tell of the progress."""

    study: Study
    out: Place
    notify: Notify


def study_session(study: Study) -> AbstractContextManager[None]:
    """Ray with the study's resources, for as long as the block lasts.

    Entered again while it lasts, it is the same session and goes on.
    """
    from lltopo.fanout import ray_session

    need = study.resources
    # one's own functions are found where the driver finds them
    environment = {WORKING_FOLDER: os.getcwd()}
    return ray_session(need.local_cpus, need.object_store_mb, environment)
