"""Losses on a plane through a network's weights, along two filter-normalised random directions.

Li, Xu, Taylor, Studer and Goldstein, "Visualizing the Loss Landscape of Neural Nets" (NeurIPS
2018), section 4. A direction is Gaussian noise whose filters have the norms of the network's own,
so that planes through networks of different scale can be compared. The two directions are not made
orthogonal: their cosine is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lltopo.checkpoints import Checkpoint
from lltopo.data import DataSet
from lltopo.evaluation import LossFunction, dataset_losses
from lltopo.loop import Worker, initial_state, recorded_losses, resident, set_up_torch
from lltopo.recorder import split_metrics
from lltopo.sections import SPLITS, Split
from lltopo.study import Run
from lltopo.surface_files import Surface
from lltopo.tables import LossTable

Weights = dict[str, Tensor]
Evaluate = Callable[[nn.Module], Mapping[Split, LossTable]]
"""Gives the losses of each split's samples at a network's present weights."""

_TINY = 1e-10  # keeps the division finite, as in the paper's own code


class Plane(NamedTuple):
    """Weights, and two directions from there; tensors by the names of the parameters."""

    origin: Weights
    x: Weights
    y: Weights


class Mean(NamedTuple):
    """Mean loss of a split's samples, and the fraction told right; NaN where it is not known."""

    loss: float
    accuracy: float


def filter_normalised_direction(model: nn.Module, seed: int | Sequence[int]) -> Weights:
    """Draw a random direction in which every filter is as long as the network's own.

    Of each parameter of more than one dimension, every index i of the first axis is a filter:
    its noise d_i becomes d_i |w_i| / (|d_i| + 1e-10), with Frobenius norms. Parameters of one
    dimension or less (biases, and the weights of batch normalisation) do not move: theirs is 0.

    Parameters
    ----------
    model
        At the weights w; left as it is.
    seed
        Any seed of numpy's ``default_rng``. The noise depends on it and on the parameters' shapes
        and order alone: two runs of one architecture get the same.

    Returns
    -------
    dict of str to Tensor
        By the parameter's name; of its shape, type, device and memory format.
    """
    generator = np.random.default_rng(seed)
    direction = {}
    for name, weight in model.named_parameters():
        direction[name] = torch.zeros_like(weight, requires_grad=False)
        if weight.ndim > 1:
            noise = torch.from_numpy(generator.standard_normal(weight.shape, dtype=np.float32))
            lengths = _filter_lengths(weight.detach().cpu()) / (_filter_lengths(noise) + _TINY)
            shape = (-1, *[1] * (weight.ndim - 1))
            direction[name].copy_(noise * lengths.reshape(shape))
    return direction


def random_plane(model: nn.Module, seed: int) -> Plane:
    """Span a plane through a network's weights by two filter-normalised directions.

    Parameters
    ----------
    model
        Left as it is.
    seed
        Of both directions; the noise depends on nothing else, so that runs share their planes.
    """
    origin = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    x, y = (filter_normalised_direction(model, (seed, axis)) for axis in range(2))
    return Plane(origin, x, y)


def cosine(a: Weights, b: Weights) -> float:
    """Return the cosine of the angle between two directions, NaN for one of length 0."""
    a_b, a_a, b_b = (
        sum(float((u[name].double() * v[name].double()).sum()) for name in u)
        for u, v in ((a, b), (a, a), (b, b))
    )
    return a_b / math.sqrt(a_a * b_b) if a_a * b_b > 0 else math.nan


def plane_losses(
    model: nn.Module, plane: Plane, points: Iterable[tuple[float, float]], evaluate: Evaluate
) -> list[dict[Split, Mean]]:
    """Evaluate a network at points of a plane, and put its weights back.

    Buffers, such as the statistics of batch normalisation, stay as trained.

    Parameters
    ----------
    model
        Whose parameters are named as the plane's.
    plane, points
        A point (x, y) stands for the weights ``origin + x * plane.x + y * plane.y``.
    evaluate
        Called once a point. It must leave the buffers alone, as in eval mode.

    Returns
    -------
    list of dict
        For each point the mean of each split.
    """
    means = []
    try:
        for x, y in points:
            _move(model, plane, x, y)
            means.append({split: _mean(table) for split, table in evaluate(model).items()})
    finally:
        _move(model, plane, 0.0, 0.0)
    return means


def loss_surface(
    model: nn.Module,
    datasets: Mapping[Split, Any],
    seed: int,
    coordinates: ArrayLike,
    *,
    batch_size: int = 1000,
    loss_function: LossFunction | None = None,
) -> Surface:
    """Evaluate anybody's network on a random plane through its weights.

    Parameters
    ----------
    model
        A network on any device; evaluated in eval mode and left as it was.
    datasets
        For ``train``, ``val`` or both a map-style torch data set of (input, label), without
        augmentation.
    seed
        Of the two filter-normalised directions.
    coordinates : (n,) array
        Of the grid on both axes, such as ``numpy.linspace(-1, 1, 51)``.
    batch_size
        Samples a batch; it may change the last bits of a loss.
    loss_function
        (outputs, labels) -> one loss a sample; default: cross-entropy.

    Returns
    -------
    Surface
        Of n x n points. The cost is that of evaluating the data sets n * n times.
    """
    axis = np.asarray(coordinates, dtype=np.float64)

    def evaluate(network: nn.Module) -> Mapping[Split, LossTable]:
        return {
            split: dataset_losses(network, dataset, batch_size, loss_function)
            for split, dataset in datasets.items()
        }

    points = [(float(x), float(y)) for y in axis for x in axis]
    means = plane_losses(model, random_plane(model, seed), points, evaluate)
    loss, accuracy = (
        {
            split: np.array([getattr(mean[split], name) for mean in means]).reshape(2 * axis.shape)
            for split in datasets
        }
        for name in Mean._fields
    )
    return Surface(axis, axis, loss, accuracy)


def trained_plane_losses(
    run: Run,
    data: DataSet,
    checkpoint: Checkpoint,
    seed: int,
    points: Sequence[tuple[float, float]],
) -> tuple[list[dict[Split, Mean]], float]:
    """Evaluate a study's run at points of a random plane through the weights of a checkpoint.

    As the training loop does after an epoch: in its batches, precision and memory format, on a GPU
    where there is one.

    Returns
    -------
    means, cosine
        As of `plane_losses`, and the cosine of the plane's directions.
    """
    # compiled anew by every task, the network would cost more than it saves
    training = run.training.model_copy(update={"compile": False})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    worker = Worker(0, 1, device)
    set_up_torch(training)
    state = initial_state(run.model_copy(update={"training": training}), data, worker)
    state.model.load_state_dict(checkpoint.model)
    plane = random_plane(state.model, seed)
    splits = {split: resident(data.split(split), worker) for split in SPLITS}

    def evaluate(_: nn.Module) -> Mapping[Split, LossTable]:
        return {s: recorded_losses(state, splits[s], training, worker) for s in SPLITS}

    return plane_losses(state.model, plane, points, evaluate), cosine(plane.x, plane.y)


def _filter_lengths(weight: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=torch.float64)
    return lengths


def _move(model: nn.Module, plane: Plane, x: float, y: float) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(plane.origin[name])
            weight.add_(plane.x[name], alpha=x).add_(plane.y[name], alpha=y)


def _mean(table: LossTable) -> Mean:
    measured = split_metrics("", table)
    accuracy = measured["accuracy"]
    return Mean(measured["loss"], math.nan if accuracy is None else accuracy)
