"""The loss of each single sample of a split at fixed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lltopo.tables import LossTable

LossFunction = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, without gradients; each part's own mode is put back."""
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
    """One float32 loss and one predicted class (int16) a sample of a batch."""
    outputs = model(x)
    if loss_function is None:
        loss = F.cross_entropy(outputs.float(), y, reduction="none")
    else:
        loss = loss_function(outputs, y)
    return loss.float().cpu(), outputs.argmax(dim=-1).to(torch.int16).cpu()


def dataset_losses(
    model: nn.Module, dataset: Any, batch_size: int, loss_function: LossFunction | None
) -> LossTable:
    """The losses of a whole map-style torch data set, in its own order."""
    device = next(iter(model.parameters()), torch.empty(0)).device
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=False)
    losses, labels, predictions = [], [], []
    with evaluating(model):
        for x, y in loader:
            loss, predicted = batch_losses(model, x.to(device), y.to(device), loss_function)
            losses.append(loss)
            labels.append(y.to(torch.int16))
            predictions.append(predicted)
    return LossTable(
        torch.cat(losses).numpy().astype(np.float32),
        torch.cat(labels).numpy(),
        torch.cat(predictions).numpy(),
    )
