"""Checkpoints of a run: the last epoch's, and those of the epochs that the study names.

A checkpoint holds the model with its buffers, the optimizer, the epoch and the digest of the
settings that made it. It is read with ``weights_only=True``, so that no code in it is run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lltopo.errors import InputError
from lltopo.storage import Place, read_bytes, write_bytes


class Checkpoint(NamedTuple):
    """A network after an epoch, with its optimizer, as state dicts on the CPU."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int
    study: str


def checkpoint_file(out: Place, run: str, epoch: int | None) -> Place:
    """Where the checkpoint of an epoch that the study names lies, or the last one (None)."""
    name = "last.pt" if epoch is None else f"epoch={epoch:05d}.pt"
    return out / f"checkpoints/run={run}/{name}"


def write_checkpoint(
    checkpoint: Checkpoint, out: Place, run: str, kept_epochs: Sequence[int]
) -> None:
    """Write the last checkpoint, and one of its own for an epoch that is to be kept."""
    content = checkpoint_bytes(checkpoint)
    if checkpoint.epoch in kept_epochs:
        write_bytes(checkpoint_file(out, run, checkpoint.epoch), content)
    write_bytes(checkpoint_file(out, run, None), content)


def checkpoint_bytes(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the content of a file."""
    buffer = io.BytesIO()
    torch.save(checkpoint._asdict(), buffer)
    return buffer.getvalue()


def read_checkpoint(source: Place, digest: str) -> Checkpoint | None:
    """A checkpoint; None where it is absent or damaged.

    Raises
    ------
    InputError
        Where it was made with other settings than those of ``digest``.
    """
    try:
        stored = read_bytes(source)
    except FileNotFoundError:
        return None
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**content)
    except (RuntimeError, EOFError, ValueError, TypeError, pickle.UnpicklingError):
        return None
    if checkpoint.study != digest:
        raise InputError(
            f"{source}: belongs to another study: its settings are not these. Choose another --out."
        )
    return checkpoint


def checkpoints(
    out: Place, run: str, kept_epochs: Sequence[int], digest: str
) -> Iterator[Checkpoint]:
    """The checkpoints of a run that are there, the latest first."""
    for epoch in (None, *sorted(kept_epochs, reverse=True)):
        checkpoint = read_checkpoint(checkpoint_file(out, run, epoch), digest)
        if checkpoint is not None:
            yield checkpoint


def bare(model: nn.Module) -> nn.Module:
    """The network itself, where several workers share it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
