"""A perceptron on the flattened sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers of the ``hidden`` widths with ReLU between them."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for d_in, d_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(d_in, d_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
