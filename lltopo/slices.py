"""One run trained in slices: now some epochs here, later the next ones, perhaps elsewhere.

Without Ray: a plain loop on whatever machine has torch. The last checkpoint is all that a slice
needs of those before it; what a slice has recorded is packed, to be carried to where it is
analyzed.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch

from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.loop import Worker, trained_epochs
from lltopo.opening import open_results
from lltopo.packs import write_packs
from lltopo.sections import nearest
from lltopo.session import Session
from lltopo.storage import Place
from lltopo.study_data import LossesData


class Limits(NamedTuple):
    """Where a slice ends: after an epoch, and before the one that would outlast the seconds."""

    until_epoch: int | None = None
    seconds: float = math.inf


def train_slice(session: Session, run: str, limits: Limits) -> list[Place]:
    """Train one run, from its last checkpoint on, to its end or the first limit met.

    At least one epoch is trained, however short the time.

    Parameters
    ----------
    session
        Its folder is where the run's checkpoints and tables are.
    run
        One of the study's.
    limits
        See `Limits`.

    Returns
    -------
    list of Place
        The new packs, below ``packed``.

    Raises
    ------
    InputError
        For an unknown run, a study that trains nothing, or another study's folder.
    """
    study, out, notify = session
    if isinstance(study.data, LossesData) or run not in study.runs:
        raise InputError(f"--run: {run} is no run of the study. {nearest(run, [*study.runs])}")
    open_results(study, out)
    last = study.runs[run].training.epochs
    until = last if limits.until_epoch is None else min(limits.until_epoch, last)
    worker = Worker(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    start = before = time.monotonic()
    longest = 0.0
    # what came before was recorded in an earlier slice, and may have been carried away
    recorded = range(last + 1)
    epochs = trained_epochs(study, run, load_data(study.data), out, worker, recorded)
    for step, epoch in enumerate(epochs):
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        notify(f"train {run}", epoch, last, f"epochs, {now - start:.0f} s")
        if epoch >= until or (step > 0 and now - start + longest > limits.seconds):
            break
    return write_packs(study, run, out, out / "packed")
