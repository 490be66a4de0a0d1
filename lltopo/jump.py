"""Jump away from trained weights and train again from there.

Horoi, Huang, Rieck, Lajoie, Wolf and Krishnaswamy, "Exploring the Geometry and Topology of Neural
Network Loss Landscapes" (IDA 2022): from the optimum w to w + step d, where d is filter-normalised
noise, then some epochs of plain SGD at a constant rate. Each point's losses are those of the very
weights that are kept beside them.

Whatever is random is drawn from (seed, epoch), so that an interrupted trajectory goes on to the
same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lltopo.checkpoints import Checkpoint, checkpoint_bytes, checkpoint_file, read_checkpoint
from lltopo.data import DataSet
from lltopo.errors import InputError
from lltopo.jump_files import (
    Row,
    Trajectory,
    recorded_points,
    trajectory_folder,
    weights_file,
    write_points,
    write_weights,
)
from lltopo.loop import (
    Resident,
    State,
    Worker,
    initial_state,
    recorded_losses,
    resident,
    set_up_torch,
    train_epoch,
)
from lltopo.recorder import split_metrics
from lltopo.sections import SPLITS, Split
from lltopo.storage import Place, remove, remove_partial_files, write_bytes
from lltopo.study import Study, Training, jump_epochs, run_digest
from lltopo.surface import filter_normalised_direction


class Optimum(NamedTuple):
    """Trained weights to jump from, with their buffers, and the digest of all that determines the
    points around them but seed, step and number of epochs."""

    model: dict[str, Tensor]
    digest: str


def optimum(study: Study, out: Place, run: str) -> Optimum:
    """Read the weights of the epoch of a run from which the study jumps.

    Raises
    ------
    InputError
        Where there is no checkpoint of that epoch.
    """
    (epoch,) = jump_epochs(study, run)
    for name in (epoch, None):
        checkpoint = read_checkpoint(checkpoint_file(out, run, name), run_digest(study, run))
        if checkpoint is not None and checkpoint.epoch == epoch:
            return Optimum(checkpoint.model, _digest(study, run, checkpoint.model))
    raise InputError(
        f"{checkpoint_file(out, run, epoch)}: is missing: jumps need the weights of epoch {epoch}. "
        "Train the run, from the start where it went on without keeping them."
    )


def made_by(source: Optimum, trajectory: Trajectory) -> str:
    """Return the digest of what determines a trajectory's points, but the number of epochs."""
    content = json.dumps([source.digest, trajectory.seed, trajectory.step])
    return hashlib.sha256(content.encode()).hexdigest()


def retraining(study: Study, trajectory: Trajectory) -> Training:
    """Return how a trajectory is trained: as its run, but plainly and at a constant rate.

    Batch size, rate, momentum (not Nesterov's) and weight decay are the study's of jumps; the
    order of the data and their augmentation come from the trajectory's seed.
    """
    jump = study.jump
    assert jump is not None
    changed = {
        "epochs": trajectory.epochs,
        "batch_size": jump.batch_size,
        "lr": jump.lr,
        "momentum": jump.momentum,
        "nesterov": False,
        "weight_decay": jump.weight_decay,
        "milestones": [],
        "seed": trajectory.seed,
        "workers": 1,
    }
    return study.runs[trajectory.run].training.model_copy(update=changed)


def sample_trajectories(
    study: Study, data: DataSet, trajectories: Sequence[Trajectory], out: Place, worker: Worker
) -> None:
    """Sample this worker's share of a run's trajectories, each of them alone.

    Parameters
    ----------
    study, data
        The study and its samples.
    trajectories
        Of one run, the same ones for all workers; what is there already is kept.
    out
        Where they go.
    worker
        Takes every ``size``-th from its ``rank`` on.
    """
    source = optimum(study, out, trajectories[0].run)
    alone = Worker(0, 1, worker.device)
    for trajectory in trajectories[worker.rank :: worker.size]:
        sample_trajectory(study, data, source, trajectory, out, alone)


def sample_trajectory(
    study: Study,
    data: DataSet,
    source: Optimum,
    trajectory: Trajectory,
    out: Place,
    worker: Worker,
) -> None:
    """Jump from an optimum and train again, from the last epoch that is there.

    Writes the weight vector and the losses of the jump itself (epoch 0) and after every epoch.
    Buffers, such as the statistics of batch normalisation, are the optimum's at the jump and then
    follow the training; they are no part of the vector.
    """
    digest = made_by(source, trajectory)
    rows = recorded_points(out, trajectory, digest)
    if len(rows) > trajectory.epochs:
        return
    training = retraining(study, trajectory)
    set_up_torch(training)
    run = study.runs[trajectory.run].model_copy(update={"training": training})
    state = initial_state(run, data, worker)
    splits = {split: resident(data.split(split), worker) for split in SPLITS}
    folder = trajectory_folder(out, trajectory)
    remove_partial_files(folder)  # a worker that was killed may have left some
    rows = _resumed(state, rows, folder / "last.pt", digest)
    if not rows:
        # there may be what was made of another optimum or in another way
        remove(folder)
        state.model.load_state_dict(source.model)
        _jump(state.model, trajectory)
    for epoch in range(len(rows), trajectory.epochs + 1):
        if epoch > 0:
            train_epoch(state, splits["train"], training, epoch, worker)
        losses = _mean_losses(state, splits, training, worker)
        weights = write_weights(weights_file(out, trajectory, epoch), weight_vector(state.model))
        rows.append({"epoch": epoch, **losses, "weights": weights})
        write_points(out, trajectory, rows, digest)
        states = state.model.state_dict(), state.optimizer.state_dict()
        write_bytes(folder / "last.pt", checkpoint_bytes(Checkpoint(*states, epoch, digest)))


def weight_vector(model: nn.Module) -> NDArray[np.float32]:
    """Return all parameters, one after the other in their order, without buffers."""
    flat = [weight.detach().reshape(-1).float().cpu() for weight in model.parameters()]
    vector: NDArray[np.float32] = torch.cat(flat).numpy()
    return vector


def _jump(model: nn.Module, trajectory: Trajectory) -> None:
    direction = filter_normalised_direction(model, trajectory.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(direction[name], alpha=trajectory.step)


def _resumed(state: State, rows: list[Row], last: Place, digest: str) -> list[Row]:
    """Load where a trajectory stopped, and return its rows up to there; none to start afresh."""
    checkpoint = read_checkpoint(last, digest) if rows else None
    if checkpoint is None or checkpoint.epoch >= len(rows):
        return []
    state.model.load_state_dict(checkpoint.model)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    return rows[: checkpoint.epoch + 1]


def _mean_losses(
    state: State, splits: dict[Split, Resident], training: Training, worker: Worker
) -> dict[str, float]:
    means: dict[str, float] = {}
    for split in SPLITS:
        measured = split_metrics(split, recorded_losses(state, splits[split], training, worker))
        means |= {f"{split}_{column}": measured[column] for column in ("loss", "accuracy")}
    return means


def _digest(study: Study, run: str, model: dict[str, Tensor]) -> str:
    assert study.jump is not None
    weights = hashlib.sha256()
    for name, tensor in sorted(model.items()):
        weights.update(name.encode())
        weights.update(tensor.contiguous().numpy().tobytes())
    # of the jumps everything but which and how many there are, and what is computed of them
    free = {"runs", "epoch", "seeds", "steps", "epochs", "k"}
    settings = study.jump.model_dump(mode="json", exclude=free)
    content = json.dumps([weights.hexdigest(), run_digest(study, run), settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
