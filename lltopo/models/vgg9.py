"""VGG-9 with batch normalisation, as in Li, Xu, Taylor, Studer and Goldstein (2018).

Seven 3x3 convolutions of 64, 64, 128, 128, 256, 256 and 256 channels, the image halved after the
second, fourth and last, then two linear layers with 256 units between. 2,789,706 parameters on
CIFAR-10.
"""

from __future__ import annotations

from torch import Tensor, nn

_PLAN = ((1, 1), (2, 2), (4, 4, 4))
"""Channels of each convolution, in units of the first one's, by size of the image."""


class Vgg9(nn.Module):
    """VGG-9.

    Parameters
    ----------
    input_shape
        (channels, height, width), 8 x 8 at least.
    n_classes
        How many outputs.
    width
        Channels of the first convolution; 64 in the source.
    """

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, width: int) -> None:
        super().__init__()
        c_in, height, width_of_image = input_shape
        layers: list[nn.Module] = []
        for group in _PLAN:
            for factor in group:
                c_out = factor * width
                layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out)]
                layers.append(nn.ReLU(inplace=True))
                c_in = c_out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        n_units = 4 * width
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(c_in * (height // 8) * (width_of_image // 8), n_units),
            nn.BatchNorm1d(n_units),
            nn.ReLU(inplace=True),
            nn.Linear(n_units, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits
