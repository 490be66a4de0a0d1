"""The loss of each single sample of a split at fixed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lltopo.errors import InputError
from lltopo.tables import LossTable

LossFunction = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Hold a model in eval mode, without gradients; each part's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, in float32."""
    return F.cross_entropy(outputs.float(), y, reduction="none")


def batch_losses(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a classifier on a batch.

    Parameters
    ----------
    model, x, y
        A network, inputs and classes, all on one device.

    Returns
    -------
    (n,) float32, (n,) int64
        Cross-entropies and predicted classes, on the CPU.
    """
    outputs = model(x)
    return cross_entropy(outputs, y).cpu(), outputs.argmax(dim=-1).cpu()


def dataset_losses(
    model: nn.Module, dataset: Any, batch_size: int, loss_function: LossFunction | None
) -> LossTable:
    """Evaluate a whole map-style torch data set of (input, label), in its own order.

    Parameters
    ----------
    model
        Evaluated in eval mode on its own device.
    dataset
        One sample at least.
    batch_size
        Samples a batch; it may change the last bits of a loss.
    loss_function
        (outputs, y) -> one loss a sample; default: cross-entropy in float32.

    Returns
    -------
    LossTable
        Labels as the data set has them, of any integer type, and predictions as int64; None both
        where labels are no integers or outputs no scores of several classes, as in regression.

    Raises
    ------
    InputError
        Where the loss function does not give one loss a sample.
    """
    per_sample = cross_entropy if loss_function is None else loss_function
    device = next(iter(model.parameters()), torch.empty(0)).device
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=False)
    losses, labels, predictions = [], [], []
    classify = True
    with evaluating(model):
        for x, y in loader:
            outputs = model(x.to(device))
            loss = per_sample(outputs, y.to(device))
            _check_per_sample(loss, len(x))
            losses.append(loss.float().cpu())
            classify = classify and _are_classes(outputs, y)
            if classify:
                labels.append(y)
                predictions.append(outputs.argmax(dim=1).cpu())
    return LossTable(
        torch.cat(losses).numpy(),
        torch.cat(labels).numpy() if classify else None,
        torch.cat(predictions).numpy() if classify else None,
    )


def _check_per_sample(loss: Tensor, n: int) -> None:
    if loss.shape != (n,):
        raise InputError(
            f"loss_function: gives no loss of each sample: expected shape ({n},), got "
            f"{tuple(loss.shape)}. Use reduction='none'."
        )


def _are_classes(outputs: Tensor, y: Tensor) -> bool:
    """Say whether outputs are scores of several classes, and labels are such classes."""
    scores = outputs.ndim == 2 and outputs.shape[1] > 1
    return scores and y.ndim == 1 and not (y.is_floating_point() or y.is_complex())
