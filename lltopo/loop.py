"""The training loop, in plain torch: with Ray Train around it or without.

Whatever is random is drawn from (seed, epoch) alone, so that a run that was interrupted goes on
to the same bits. After each epoch the losses of all samples are recorded and then a checkpoint
is written; a worker killed in between repeats that one epoch and writes the same files again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lltopo.checkpoints import Checkpoint, bare, checkpoints, write_checkpoint
from lltopo.data import DataSet, Samples
from lltopo.errors import InputError
from lltopo.evaluation import batch_losses, evaluating
from lltopo.models import build_model
from lltopo.recorder import LossRecorder
from lltopo.sections import SPLITS
from lltopo.storage import Place
from lltopo.study import Run, Study, Training, kept_epochs, run_digest
from lltopo.tables import LossTable, complete_epochs

_SHUFFLE, _AUGMENT, _DROPOUT = range(3)


class Worker(NamedTuple):
    """One process of a run: its rank, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device


class Resident(NamedTuple):
    """One split on the training device, as stored (uint8 images stay uint8)."""

    x: Tensor
    y: Tensor


class State(NamedTuple):
    """A network in training."""

    model: nn.Module
    optimizer: torch.optim.SGD
    mean: Tensor
    std: Tensor


def train_run(study: Study, name: str, data: DataSet, out: Place, worker: Worker) -> None:
    """Train one run to its last epoch, from its last checkpoint if there is one.

    A checkpoint before which a table is missing does not count. With several workers the caller
    has set up ``torch.distributed``; then all of them call this, and rank 0 writes.
    """
    for _ in trained_epochs(study, name, data, out, worker, complete_epochs(out, name, SPLITS)):
        pass


def trained_epochs(
    study: Study, name: str, data: DataSet, out: Place, worker: Worker, recorded: Container[int]
) -> Iterator[int]:
    """Train one run epoch by epoch, from its last checkpoint if there is one.

    Writes, after every epoch and before the first, the loss tables of both splits, the metrics,
    and a checkpoint; then yields the epoch, so that the caller may stop there. The epoch from
    which it goes on is yielded first.

    Parameters
    ----------
    study, name, data
        The run, and the samples of its study.
    out
        Where tables and checkpoints go.
    worker
        See `train_run`.
    recorded
        The epochs whose tables there are, here or elsewhere: a checkpoint counts only where all
        up to its own are among them.
    """
    training = study.runs[name].training
    set_up_torch(training)
    state = initial_state(study.runs[name], data, worker)
    splits = {split: resident(data.split(split), worker) for split in SPLITS}
    recorder = LossRecorder(out, name)
    digest, kept = run_digest(study, name), kept_epochs(study, name)
    done = _resumed_epoch(state, checkpoints(out, name, kept, digest), recorded)
    _check_agreement(done, worker)
    if done is not None:
        yield done
    for epoch in range(0 if done is None else done + 1, training.epochs + 1):
        start = time.perf_counter()
        if epoch > 0:
            train_epoch(state, splits["train"], training, epoch, worker)
        tables = {s: recorded_losses(state, splits[s], training, worker) for s in SPLITS}
        if worker.rank == 0:
            for split, table in tables.items():
                ids = np.arange(len(table.loss))
                recorder.update(
                    table.loss, ids, split, epoch, labels=table.label, predictions=table.prediction
                )
            rate = training.learning_rate(epoch) if epoch > 0 else None
            seconds = time.perf_counter() - start
            recorder.close_epoch(epoch, learning_rate=rate, seconds=seconds)
            checkpoint = Checkpoint(
                bare(state.model).state_dict(), state.optimizer.state_dict(), epoch, digest
            )
            write_checkpoint(checkpoint, out, name, kept)
        yield epoch


def train_epoch(
    state: State, split: Resident, training: Training, epoch: int, worker: Worker
) -> None:
    """One pass over the training set in batches of the global ``batch_size``."""
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate(epoch)
    torch.manual_seed(_derived_seed(training.seed, epoch, _DROPOUT) + worker.rank)
    generator = torch.Generator().manual_seed(_derived_seed(training.seed, epoch, _SHUFFLE))
    order = torch.randperm(len(split.y), generator=generator)
    augment = torch.Generator().manual_seed(_derived_seed(training.seed, epoch, _AUGMENT))
    state.model.train()
    for batch in _batches(order, training.batch_size, 2 * worker.size):
        x, y = split.x[batch.to(worker.device)], split.y[batch.to(worker.device)]
        if training.augment == "crop_flip":
            # drawn for the whole batch, so that it does not depend on the number of workers
            x = cropped_and_flipped(x, augment)
        mine = slice(worker.rank, None, worker.size)
        x = _network_input(x[mine], state, training)
        with torch.autocast(
            worker.device.type, torch.bfloat16, enabled=training.precision == "bf16"
        ):
            total = F.cross_entropy(state.model(x), y[mine], reduction="sum")
        # DDP averages over workers; this makes it the mean over the global batch
        loss = total * (worker.size / len(batch))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()


def recorded_losses(state: State, split: Resident, training: Training, worker: Worker) -> LossTable:
    """The loss of every sample in sample order, the same bits for any number of workers.

    Whole batches of ``eval_batch_size`` are dealt to the workers in runs, at rank 0's buffers.
    """
    model = bare(state.model)
    if worker.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
    starts = list(range(0, len(split.y), training.eval_batch_size))
    mine = np.array_split(np.asarray(starts), worker.size)[worker.rank]
    pieces = []
    with evaluating(model):
        for start in mine:
            rows = slice(int(start), int(start) + training.eval_batch_size)
            x = _network_input(split.x[rows], state, training)
            pieces.append(batch_losses(model, x, split.y[rows]))
    losses = [loss.numpy() for loss, _ in pieces]
    predictions = [predicted.numpy() for _, predicted in pieces]
    if worker.size > 1:
        gathered: list[Any] = [None] * worker.size
        dist.all_gather_object(gathered, (losses, predictions))
        losses = [piece for theirs, _ in gathered for piece in theirs]
        predictions = [piece for _, theirs in gathered for piece in theirs]
    label = split.y.to(torch.int16).cpu().numpy()
    return LossTable(np.concatenate(losses), label, np.concatenate(predictions))


def cropped_and_flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels (zeros come in) and mirrored with probability 1/2."""
    n, _, height, width = x.shape
    draws = torch.randint(0, 9, (2, n), generator=generator)
    flip = torch.randint(0, 2, (n,), generator=generator).bool()
    top, left = draws.to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(flip.to(x.device)[:, None], columns.flip(1), columns)
    padded = F.pad(x, (4, 4, 4, 4))
    samples = torch.arange(n, device=x.device)[:, None, None]
    # the channel axis, sliced between index arrays, comes last
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def set_up_torch(training: Training) -> None:
    """Set what decides the last bits of a result the way the study says."""
    # cuBLAS is deterministic only with a fixed workspace, chosen before its first use
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # threads and algorithms decide the last bits of a sum, so they belong to the study
    torch.set_num_threads(training.threads)
    torch.use_deterministic_algorithms(training.deterministic)
    # NaN in every fresh tensor would cost a pass over it and changes no result of ours
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not training.deterministic
    # a GPU's convolutions would round to TF32 by default
    torch.backends.cudnn.allow_tf32 = training.tf32
    torch.backends.cuda.matmul.allow_tf32 = training.tf32


def check_run(run: Run, data: DataSet) -> None:
    """Raise an InputError unless the run's model and settings fit the data."""
    initial_state(run, data, Worker(0, 1, torch.device("cpu")))


def initial_state(run: Run, data: DataSet, worker: Worker) -> State:
    """The network before training, on its device, and its optimizer."""
    training = run.training
    if training.augment != "none" and data.train.x.ndim != 4:
        raise InputError(
            f"training.augment: {training.augment} needs images, got samples of shape "
            f"{data.input_shape}. Use none."
        )
    model = build_model(run.model, data.input_shape, data.n_classes, training.seed)
    _check_fit(model, run.model.name, data)
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    model = model.to(worker.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    if training.compile:
        model.compile()  # in place: the names of the weights stay
    if worker.size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    shape = (1, -1, *[1] * (len(data.input_shape) - 1))
    mean, std = (
        torch.from_numpy(values).reshape(shape).to(worker.device)
        for values in (data.mean, data.std)
    )
    return State(model, optimizer, mean, std)


def _check_fit(model: nn.Module, name: str, data: DataSet) -> None:
    expected = (2, data.n_classes)
    try:
        with evaluating(model):
            found = tuple(model(torch.zeros(2, *data.input_shape)).shape)
        problem = "" if found == expected else f"got outputs of shape {found}"
    except (RuntimeError, ValueError, TypeError) as error:
        problem = f"got {' '.join(str(error).split())[:200]}"
    if problem:
        raise InputError(
            f"model: {name} does not fit samples of shape {data.input_shape}: expected outputs of "
            f"shape {expected} for two of them, {problem}. Use another model or mend it."
        )


def resident(samples: Samples, worker: Worker) -> Resident:
    """A split's samples on the worker's device."""
    return Resident(
        torch.from_numpy(samples.x).to(worker.device), torch.from_numpy(samples.y).to(worker.device)
    )


def _network_input(x: Tensor, state: State, training: Training) -> Tensor:
    x = (x.float() - state.mean) / state.std
    if training.channels_last and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def _batches(order: Tensor, batch_size: int, fewest: int) -> Iterator[Tensor]:
    """Runs of ``batch_size``; a last one of fewer than ``fewest`` joins the one before, for
    batch normalisation needs two samples on each worker."""
    n = len(order)
    start = 0
    while start < n:
        end = start + batch_size
        if n - end < fewest:
            end = n
        yield order[start:end]
        start = end


def _derived_seed(seed: int, epoch: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1)[0])


def _check_agreement(done: int | None, worker: Worker) -> None:
    """Hold all workers of a run to the epoch from which rank 0 goes on.

    On another node a shared folder may still lack what has just been written.
    """
    if worker.size == 1:
        return
    first = [done]
    dist.broadcast_object_list(first, src=0)
    if first != [done]:
        raise RuntimeError(
            f"rank {worker.rank} goes on from epoch {done}, rank 0 from {first[0]}: they see other "
            "checkpoints. Is --out the same on all nodes?"
        )


def _resumed_epoch(
    state: State, found: Iterable[Checkpoint], recorded: Container[int]
) -> int | None:
    """Load the first checkpoint before which no table is missing; None to start afresh."""
    for checkpoint in found:
        if all(epoch in recorded for epoch in range(checkpoint.epoch + 1)):
            bare(state.model).load_state_dict(checkpoint.model)
            state.optimizer.load_state_dict(checkpoint.optimizer)
            return checkpoint.epoch
    return None
