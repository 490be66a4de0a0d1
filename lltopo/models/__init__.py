"""Architectures, one a file, and the network that a study names."""

from __future__ import annotations

import torch
from torch import nn

from lltopo.errors import InputError
from lltopo.models.convnet import ConvNet
from lltopo.models.densenet121 import DenseNet121
from lltopo.models.mlp import Mlp
from lltopo.models.resnet import BasicBlock, PlainBlock, ResNet
from lltopo.models.vgg9 import Vgg9
from lltopo.models.wideresnet import WideResNet
from lltopo.plugins import imported_function
from lltopo.study_models import (
    ConvNetModel,
    DenseNet121Model,
    MlpModel,
    Model,
    PythonModel,
    ResNetModel,
    Vgg9Model,
    WideResNetModel,
)

Shape = tuple[int, ...]


def build_model(model: Model, input_shape: Shape, n_classes: int, seed: int) -> nn.Module:
    """Build the network of a study on the CPU.

    Parameters
    ----------
    model
        A study's model section.
    input_shape
        One sample's, without the batch: (channels, height, width) or (d,).
    n_classes
        How many outputs.
    seed
        Its weights are drawn from this alone; the global random state is left as it was.

    Raises
    ------
    InputError
        Where the model does not take such samples, or one's own function gives no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(model, input_shape, n_classes)


def _built(model: Model, input_shape: Shape, n_classes: int) -> nn.Module:
    match model:
        case MlpModel():
            return Mlp(input_shape, n_classes, model.hidden)
        case ConvNetModel():
            _check_images(model.name, input_shape, least=8)
            return ConvNet(input_shape, n_classes, model.width)
        case WideResNetModel():
            _check_images(model.name, input_shape, least=1)
            return WideResNet(input_shape, n_classes, model.depth, model.widen_factor)
        case ResNetModel():
            _check_images(model.name, input_shape, least=1)
            block = BasicBlock if model.shortcuts else PlainBlock
            return ResNet(input_shape, n_classes, model.depth, model.width, block)
        case Vgg9Model():
            _check_images(model.name, input_shape, least=8)
            return Vgg9(input_shape, n_classes, model.width)
        case DenseNet121Model():
            _check_images(model.name, input_shape, least=8)
            return DenseNet121(input_shape, n_classes, model.growth)
        case PythonModel():
            function = imported_function(model.python, "model.python")
            network = function(input_shape, n_classes, **model.options)
            if not isinstance(network, nn.Module):
                raise InputError(
                    f"model.python: {model.python} gave no network: expected a torch.nn.Module, "
                    f"got {type(network).__name__}. Mend the function."
                )
            return network


def _check_images(name: str, shape: Shape, least: int) -> None:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise InputError(
            f"model: {name} does not fit the samples: expected images of at least "
            f"{least} x {least}, got samples of shape {shape}. Use mlp."
        )
