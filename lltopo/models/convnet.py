"""A small convolutional network that a CPU trains in minutes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three 3x3 convolutions with batch normalisation, each followed by halving the image.

    Then the mean over what is left and a linear layer.

    Parameters
    ----------
    input_shape
        (channels, height, width), 8 x 8 at least.
    n_classes
        How many outputs.
    width
        Channels of the first convolution; the next have twice and four times as many.
    """

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, width: int) -> None:
        super().__init__()
        widths = [input_shape[0], width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            layers += [
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.mean(self.features(x), dim=(2, 3)))
        return logits
