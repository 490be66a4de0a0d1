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


def batch_losses(
    model: nn.Module, x: Tensor, y: Tensor, loss_function: LossFunction | None = None
) -> tuple[Tensor, Tensor]:
    """Evaluate a batch.

    Parameters
    ----------
    model, x, y
        A network, inputs and classes, all on one device.
    loss_function
        (outputs, y) -> one loss a sample; default: cross-entropy in float32.

    Returns
    -------
    (n,) float32, (n,) int16
        Losses and predicted classes, on the CPU.

    Raises
    ------
    InputError
        Where the loss function does not give one loss a sample.
    """
    outputs = model(x)
    if loss_function is None:
        loss = F.cross_entropy(outputs.float(), y, reduction="none")
    else:
        loss = loss_function(outputs, y)
    if loss.shape != (len(x),):
        raise InputError(
            f"loss_function: gives no loss of each sample: expected shape ({len(x)},), got "
            f"{tuple(loss.shape)}. Use reduction='none'."
        )
    return loss.float().cpu(), outputs.argmax(dim=-1).to(torch.int16).cpu()


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
        As in `batch_losses`, whose errors are raised.

    Returns
    -------
    LossTable
        Labels as the data set has them, of any integer type.
    """
    device = next(iter(model.parameters()), torch.empty(0)).device
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=False)
    losses, labels, predictions = [], [], []
    with evaluating(model):
        for x, y in loader:
            loss, predicted = batch_losses(model, x.to(device), y.to(device), loss_function)
            losses.append(loss)
            labels.append(y)
            predictions.append(predicted)
    return LossTable(*(torch.cat(column).numpy() for column in (losses, labels, predictions)))
