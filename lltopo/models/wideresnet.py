"""Wide residual networks (Zagoruyko and Komodakis 2016), in the pre-activation form.

A 3x3 stem of 16 channels, three groups of (depth - 4) / 6 blocks with 16k, 32k and 64k channels,
the last two starting at stride 2; no dropout. 16-10 has 17,116,634 parameters on CIFAR-10.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / (kernel * kernel * c_out)))
    return conv


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv twice, added to the block's input.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = _conv(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = _conv(c_out, c_out, 3, 1)
        self.shortcut = _conv(c_in, c_out, 1, stride) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        skipped: Tensor = x if self.shortcut is None else self.shortcut(active)
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return skipped + inner


class WideResNet(nn.Module):
    """WideResNet-``depth``-``widen_factor``.

    Parameters
    ----------
    input_shape
        (channels, height, width).
    n_classes
        How many outputs.
    depth
        6n + 4.
    widen_factor
        The k above.
    """

    def __init__(
        self, input_shape: tuple[int, ...], n_classes: int, depth: int, widen_factor: int
    ) -> None:
        super().__init__()
        widths = [16, *(width * widen_factor for width in (16, 32, 64))]
        n_blocks = (depth - 4) // 6
        self.stem = _conv(input_shape[0], widths[0], 3, 1)
        blocks = []
        for group in range(3):
            for i in range(n_blocks):
                c_in = widths[group] if i == 0 else widths[group + 1]
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(PreActivationBlock(c_in, widths[group + 1], stride))
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], n_classes)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
