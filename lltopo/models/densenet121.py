"""DenseNet-121 for small images (Huang, Liu, van der Maaten and Weinberger 2017).

A 3x3 stem, then four blocks of 6, 12, 24 and 16 layers; each layer adds ``growth`` channels to
all those before it, and between blocks a transition halves channels and image. 6,956,298
parameters on CIFAR-10 with a growth of 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAYERS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """BN-ReLU-conv of 1x1, then of 3x3; its outputs are put behind its inputs."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(inner)))], dim=1)


class Transition(nn.Module):
    """BN-ReLU-conv of 1x1 to fewer channels, and the mean of each 2 x 2 pixels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet121(nn.Module):
    """DenseNet-121.

    Parameters
    ----------
    input_shape
        (channels, height, width), 8 x 8 at least.
    n_classes
        How many outputs.
    growth
        Channels that each layer adds; 32 in the source.
    """

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, growth: int) -> None:
        super().__init__()
        n_channels = 2 * growth
        self.stem = nn.Conv2d(input_shape[0], n_channels, 3, padding=1, bias=False)
        parts: list[nn.Module] = []
        for block, n_layers in enumerate(_LAYERS):
            for _ in range(n_layers):
                parts.append(DenseLayer(n_channels, growth))
                n_channels += growth
            if block < len(_LAYERS) - 1:
                parts.append(Transition(n_channels, n_channels // 2))
                n_channels //= 2
        self.blocks = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(n_channels)
        self.head = nn.Linear(n_channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
