"""Residual networks for small images (He, Zhang, Ren and Sun 2016, section 4.2), and without them.

A 3x3 stem, three groups of (depth - 2) / 6 basic blocks with 16, 32 and 64 channels, the last
two starting at stride 2. Where the shape changes, the shortcut is a 1x1 convolution with batch
normalisation. ResNet-56 has 855,770 parameters on CIFAR-10; with every shortcut left out, as in
Li, Xu, Taylor, Studer and Goldstein (2018), 853,018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution and the normalisation of its outputs."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class PlainBlock(nn.Module):
    """conv-BN-ReLU-conv-BN-ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(c_in, c_out, 3, stride)
        self.conv2 = _conv(c_out, c_out, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class BasicBlock(PlainBlock):
    """The same, with the block's input added before the last ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(c_in, c_out, stride)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else _conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-``depth``.

    Parameters
    ----------
    input_shape
        (channels, height, width).
    n_classes
        How many outputs.
    depth
        6n + 2.
    width
        Channels of the first group; 16 in the source.
    block
        `BasicBlock`, or `PlainBlock` for a network without shortcuts.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        depth: int,
        width: int,
        block: type[PlainBlock],
    ) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width]
        self.stem = _conv(input_shape[0], width, 3, 1)
        blocks = []
        for group in range(3):
            for i in range((depth - 2) // 6):
                c_in = widths[group] if i == 0 else widths[group + 1]
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(block(c_in, widths[group + 1], stride))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[3], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
