"""Architectures: sizes, shapes, initial weights, seeds."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lltopo.errors import InputError
from lltopo.models import build_model
from lltopo.models.wideresnet import WideResNet
from lltopo.study_models import (
    ConvNetModel,
    DenseNet121Model,
    MlpModel,
    PythonModel,
    ResNetModel,
    Vgg9Model,
    WideResNetModel,
)

CONVNET = ConvNetModel(name="convnet", width=2)
MLP = MlpModel(name="mlp", hidden=[5, 4])
SMALL = [
    WideResNetModel(name="wideresnet", depth=10, widen_factor=1),
    ResNetModel(name="resnet", depth=8, width=4),
    ResNetModel(name="resnet", depth=8, width=4, shortcuts=False),
    Vgg9Model(name="vgg9", width=2),
    DenseNet121Model(name="densenet121", growth=2),
    CONVNET,
    MLP,
]
HALVING = ("vgg9", "densenet121", "convnet")
names = [f"{model.name}-{i}" for i, model in enumerate(SMALL)]


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_theses_network_has_its_size() -> None:
    wide = WideResNet((3, 32, 32), 10, 16, 10)
    assert n_parameters(wide) == 17_116_634
    assert len(wide.blocks) == 6
    # Zagoruyko and Komodakis 2016, table 4: 2.7 million
    assert n_parameters(WideResNet((3, 32, 32), 10, 16, 4)) == 2_748_890


@pytest.mark.parametrize(
    ("model", "n"),
    [
        (ResNetModel(name="resnet"), 855_770),
        (ResNetModel(name="resnet", shortcuts=False), 853_018),
        (ResNetModel(name="resnet", depth=20), 272_474),
        (Vgg9Model(name="vgg9"), 2_789_706),
        (DenseNet121Model(name="densenet121"), 6_956_298),
    ],
)
def test_the_networks_of_the_surfaces_have_their_size(model: Any, n: int) -> None:
    network = build_model(model, (3, 32, 32), 10, 0)
    assert n_parameters(network) == n
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_resnet_has_its_depth_and_its_shortcuts() -> None:
    for shortcuts in (True, False):
        network = build_model(ResNetModel(name="resnet", shortcuts=shortcuts), (3, 32, 32), 10, 0)
        kernels = [m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert kernels.count((3, 3)) == 55  # and the head is the 56th layer
        assert kernels.count((1, 1)) == 2 * shortcuts
        inner = network.blocks[1]
        with torch.no_grad():
            for conv in (inner.conv1, inner.conv2):
                conv[0].weight.zero_()
        x = torch.rand(2, 16, 4, 4)
        # with nothing learned a block with a shortcut hands its input on
        assert torch.equal(inner.eval()(x), x if shortcuts else torch.zeros_like(x))


def test_a_densenet_keeps_all_earlier_channels() -> None:
    network = build_model(DenseNet121Model(name="densenet121"), (3, 32, 32), 10, 0).eval()
    x = torch.randn(1, 64, 4, 4)
    after = network.blocks[0](x)
    assert after.shape == (1, 96, 4, 4)
    assert torch.equal(after[:, :64], x)
    shapes = {network.head.in_features, network.bn.num_features}
    assert shapes == {1024}


def test_the_small_networks_have_their_size() -> None:
    convnet = build_model(ConvNetModel(name="convnet", width=4), (3, 8, 8), 10, 0)
    convolutions = 9 * (3 * 4 + 4 * 8 + 8 * 16)
    assert n_parameters(convnet) == convolutions + 2 * (4 + 8 + 16) + 16 * 10 + 10
    mlp = build_model(MlpModel(name="mlp", hidden=[5]), (3, 2, 2), 7, 0)
    assert n_parameters(mlp) == 12 * 5 + 5 + 5 * 7 + 7
    linear = build_model(MlpModel(name="mlp", hidden=[]), (6,), 2, 0)
    assert n_parameters(linear) == 6 * 2 + 2


@pytest.mark.parametrize("model", SMALL, ids=names)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 28, 30)])
def test_one_output_a_class(model: Any, shape: tuple[int, ...]) -> None:
    network = build_model(model, shape, 7, seed=0)
    outputs = network(torch.randn(4, *shape))
    assert outputs.shape == (4, 7)
    assert outputs.isfinite().all()
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_groups_of_a_wide_resnet_halve_the_image() -> None:
    network = build_model(SMALL[0], (3, 32, 32), 10, 0).eval()
    x = network.stem(torch.randn(1, 3, 32, 32))
    shapes = [tuple(x.shape[1:])]
    for block in network.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_block_of_one_shape_adds_to_its_input() -> None:
    network = WideResNet((3, 8, 8), 10, 16, 1)
    shortcuts = [block.shortcut is not None for block in network.blocks]
    # with a widen factor of 1 the first group needs no shortcut
    assert shortcuts == [False, False, True, False, True, False]
    block = network.blocks[1].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_a_wide_resnet_starts_as_in_its_source() -> None:
    torch.manual_seed(0)
    network = WideResNet((3, 32, 32), 10, 10, 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            expected = math.sqrt(2 / fan_out)
            n = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * n))
            assert module.bias is None
    assert not network.head.bias.any()


@pytest.mark.parametrize("model", SMALL, ids=names)
def test_the_weights_are_the_seeds(model: Any) -> None:
    def weights(seed: int) -> torch.Tensor:
        network = build_model(model, (1, 8, 8), 3, seed)
        return torch.cat([parameter.detach().ravel() for parameter in network.parameters()])

    torch.manual_seed(1)
    first = weights(7)
    torch.manual_seed(2)
    assert torch.equal(weights(7), first)
    assert not torch.equal(weights(8), first)


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model(MLP, (4,), 2, seed=9)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        *((model, (64,)) for model in SMALL if model is not MLP),
        *(
            (model, (3, 7, 8))
            for model in SMALL
            if model.name in ("vgg9", "densenet121", "convnet")
        ),
    ],
)
def test_samples_that_do_not_fit_are_refused(model: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"model: {model.name} does not fit the samples: expec"):
        build_model(model, shape, 3, 0)


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_of_a_test.py").write_text(
        "from torch import nn\n\n\n"
        "def build(input_shape, n_classes, width):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Linear(width, n_classes))\n"
        "\n\ndef wrong(input_shape, n_classes):\n    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "model_of_a_test", raising=False)
    own = PythonModel(name="python", python="model_of_a_test:build", options={"width": 9})
    assert [layer.weight.shape for layer in build_model(own, (4,), 2, 0)] == [(9, 4), (2, 9)]
    wrong = PythonModel(name="python", python="model_of_a_test:wrong")
    with pytest.raises(InputError, match=r"model\.python: .*:wrong gave no network: .*NoneType"):
        build_model(wrong, (4,), 2, 0)
