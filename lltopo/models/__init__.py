"""Architectures, one a file; all take images of (channels, height, width)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lltopo.models.convnet import ConvNet
from lltopo.models.mlp import Mlp
from lltopo.models.wideresnet import WideResNet
from lltopo.plugins import imported_function
from lltopo.study import ConvNetModel, MlpModel, PythonModel, WideResNetModel

Shape = tuple[int, ...]


def build_model(
    model: WideResNetModel | ConvNetModel | MlpModel | PythonModel,
    input_shape: Shape,
    n_classes: int,
    seed: int,
) -> nn.Module:
    """The network of a study on the CPU, its weights drawn from ``seed``.

    ``input_shape`` is one sample's, without the batch: (channels, height, width) or (d,).
    """
    build: Callable[[], nn.Module]
    match model:
        case WideResNetModel():
            build = lambda: WideResNet(input_shape, n_classes, model.depth, model.widen_factor)  # noqa: E731
        case ConvNetModel():
            build = lambda: ConvNet(input_shape, n_classes, model.width)  # noqa: E731
        case MlpModel():
            build = lambda: Mlp(input_shape, n_classes, model.hidden)  # noqa: E731
        case PythonModel():
            function = imported_function(model.python, "model.python")
            build = lambda: function(input_shape, n_classes, **model.options)  # noqa: E731
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
