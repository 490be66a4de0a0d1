"""Filter-normalised directions, and losses on the planes that they span."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from reference import filter_normalised
from tiny import tiny_study
from torch import nn

from lltopo.checkpoints import checkpoint_file, read_checkpoint
from lltopo.data import load_data
from lltopo.evaluation import dataset_losses
from lltopo.loop import Worker, initial_state, recorded_losses, resident, set_up_torch, train_run
from lltopo.models import build_model
from lltopo.recorder import split_metrics
from lltopo.storage import place
from lltopo.study import run_digest
from lltopo.study_models import (
    ConvNetModel,
    DenseNet121Model,
    MlpModel,
    ResNetModel,
    Vgg9Model,
    WideResNetModel,
)
from lltopo.surface import (
    cosine,
    filter_normalised_direction,
    loss_surface,
    plane_losses,
    random_plane,
    trained_plane_losses,
)

MODELS = {
    "wideresnet": WideResNetModel(name="wideresnet", depth=10, widen_factor=1),
    "resnet": ResNetModel(name="resnet", depth=8, width=2),
    "resnet without shortcuts": ResNetModel(name="resnet", depth=8, width=2, shortcuts=False),
    "vgg9": Vgg9Model(name="vgg9", width=2),
    "densenet121": DenseNet121Model(name="densenet121", growth=2),
    "convnet": ConvNetModel(name="convnet", width=2),
    "mlp": MlpModel(name="mlp", hidden=[5, 4]),
}


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def arrays(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: w.detach().numpy().copy() for name, w in weights.items()}


def small_network(name: str = "convnet") -> nn.Module:
    return build_model(MODELS[name], (3, 8, 8), 4, seed=3)


@pytest.mark.parametrize("name", MODELS)
def test_filter_normalisation_is_the_references(name: str) -> None:
    model = small_network(name)
    before = copy.deepcopy(model.state_dict())
    found = filter_normalised_direction(model, (5, 1))
    expected = filter_normalised(arrays(dict(model.named_parameters())), (5, 1))
    assert list(found) == list(expected)
    for key, direction in expected.items():
        assert not found[key].requires_grad
        assert_allclose(found[key].numpy(), direction, rtol=2e-6, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_filters_are_as_long_as_the_networks_own_and_vectors_stay() -> None:
    model = small_network("wideresnet")
    for name, d in filter_normalised_direction(model, 0).items():
        w = model.get_parameter(name)
        if w.ndim > 1:
            lengths = [torch.linalg.vector_norm(t.detach().flatten(1), dim=1) for t in (d, w)]
            torch.testing.assert_close(*lengths)
        else:
            assert not d.any()


def test_a_dead_filter_does_not_move() -> None:
    model = small_network("mlp")
    weight = next(iter(model.parameters()))
    with torch.no_grad():
        weight[0] = 0.0
    direction = next(iter(filter_normalised_direction(model, 0).values()))
    assert not direction[0].any()
    assert direction[1].any()


def test_networks_of_one_shape_share_their_noise() -> None:
    model = small_network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight *= 3.0
    planes = [random_plane(network, 7) for network in (model, other)]
    for axis in ("x", "y"):
        for name, direction in getattr(planes[0], axis).items():
            torch.testing.assert_close(getattr(planes[1], axis)[name], 3.0 * direction)
    x, y = planes[0].x, planes[0].y
    assert not any(torch.equal(x[name], y[name]) for name in x if x[name].any())


def test_directions_keep_the_memory_format() -> None:
    model = small_network().to(memory_format=torch.channels_last)
    for name, direction in filter_normalised_direction(model, 0).items():
        assert direction.stride() == model.get_parameter(name).stride()
    plain = filter_normalised_direction(small_network(), 0)
    for name, direction in filter_normalised_direction(model, 0).items():
        torch.testing.assert_close(direction, plain[name])


def test_cosine_is_that_of_the_whole_vectors() -> None:
    plane = random_plane(small_network(), 1)
    a, b = (np.concatenate([d.ravel() for d in arrays(v).values()]) for v in (plane.x, plane.y))
    expected = float(a.astype(float) @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
    assert cosine(plane.x, plane.y) == pytest.approx(expected, rel=1e-5)
    assert 0 < abs(expected) < 0.5
    assert cosine(plane.x, plane.x) == pytest.approx(1.0)
    assert np.isnan(cosine(plane.x, {name: 0 * d for name, d in plane.x.items()}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A small network with batch normalisation after two epochs: run, data, checkpoint."""
    folder = tmp_path_factory.mktemp("surface")
    study = tiny_study(folder, epochs=2, channels_last=True)
    model = MODELS["convnet"]
    run = study.runs["only"].model_copy(update={"model": model})
    study = study.model_copy(update={"runs": {"only": run}})
    data = load_data(study.data)
    train_run(study, "only", data, place(folder), Worker(0, 1, torch.device("cpu")))
    torch.use_deterministic_algorithms(False)
    source = checkpoint_file(place(folder), "only", None)
    return run, data, read_checkpoint(source, run_digest(study, "only"))


def evaluated(run: Any, data: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Loss and accuracy of both splits at some weights, as the training loop records them."""
    worker = Worker(0, 1, torch.device("cpu"))
    set_up_torch(run.training)
    state = initial_state(run, data, worker)
    state.model.load_state_dict(weights)
    tables = {
        split: recorded_losses(state, resident(data.split(split), worker), run.training, worker)
        for split in ("train", "val")
    }
    return {split: split_metrics(split, table) for split, table in tables.items()}


def test_the_middle_of_a_surface_is_the_evaluated_loss(trained: Any) -> None:
    run, data, checkpoint = trained
    points = [(0.5, -0.25), (0.0, 0.0)]
    (moved, middle), _ = trained_plane_losses(run, data, checkpoint, 4, points)
    for split, measured in evaluated(run, data, checkpoint.model).items():
        assert middle[split].loss == measured["loss"]
        assert middle[split].accuracy == measured["accuracy"]
        assert moved[split].loss != middle[split].loss


def test_a_point_is_the_loss_of_the_moved_weights(trained: Any) -> None:
    run, data, checkpoint = trained
    state = initial_state(run, data, Worker(0, 1, torch.device("cpu")))
    state.model.load_state_dict(checkpoint.model)
    weights = arrays(dict(state.model.named_parameters()))
    x, y = (filter_normalised(weights, (4, axis)) for axis in range(2))
    moved = dict(checkpoint.model)
    for name, w in weights.items():
        moved[name] = torch.from_numpy((w + 0.5 * x[name] - 0.25 * y[name]).astype(np.float32))
    [means], found = trained_plane_losses(run, data, checkpoint, 4, [(0.5, -0.25)])
    for split, measured in evaluated(run, data, moved).items():
        assert means[split].loss == pytest.approx(measured["loss"], rel=1e-5)
    flat = [np.concatenate([d.ravel() for d in v.values()]) for v in (x, y)]
    lengths = np.prod([np.linalg.norm(d) for d in flat])
    assert found == pytest.approx(float(flat[0] @ flat[1]) / lengths, rel=1e-4)


def test_weights_and_statistics_are_left_as_trained() -> None:
    model = small_network("wideresnet").train()
    before = copy.deepcopy(model.state_dict())
    assert any("running_mean" in name for name in before)
    data = torch.utils.data.TensorDataset(torch.randn(9, 3, 8, 8), torch.arange(9) % 4)
    loss_surface(model, {"train": data}, 0, [-1.0, 0.0, 1.0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_weights_are_put_back_when_the_evaluation_fails() -> None:
    model = small_network("mlp")
    before = copy.deepcopy(model.state_dict())

    def fails(network: nn.Module) -> Any:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        plane_losses(model, random_plane(model, 0), [(1.0, 1.0)], fails)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_anybodys_surface_has_its_points_where_they_belong() -> None:
    model = small_network("mlp")
    data = torch.utils.data.TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 4)
    axis = np.array([-0.5, 0.0, 1.0])
    surface = loss_surface(model, {"val": data}, 2, axis, batch_size=5)
    assert list(surface.loss) == ["val"]
    assert surface.x.tolist() == surface.y.tolist() == axis.tolist()
    plane = random_plane(model, 2)
    for i, y in enumerate(axis):
        for j, x in enumerate(axis):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for name, weight in moved.named_parameters():
                    weight += float(x) * plane.x[name] + float(y) * plane.y[name]
            table = dataset_losses(moved, data, 5, None)
            assert surface.loss["val"][i, j] == pytest.approx(table.loss.mean(), rel=1e-5)
            right = np.mean(table.label == table.prediction)
            assert surface.accuracy["val"][i, j] == pytest.approx(right)
    middle = dataset_losses(model, data, 5, None).loss.mean(dtype=np.float64)
    assert surface.loss["val"][1, 1] == float(middle)


def test_a_regression_has_no_accuracy() -> None:
    model = nn.Linear(3, 1)
    data = torch.utils.data.TensorDataset(torch.randn(5, 3), torch.randn(5))
    surface = loss_surface(
        model,
        {"train": data},
        0,
        [0.0, 1.0],
        loss_function=lambda out, y: (out[:, 0] - y) ** 2,
    )
    assert np.isfinite(surface.loss["train"]).all()
    assert np.isnan(surface.accuracy["train"]).all()


def test_a_loss_that_is_not_finite_is_kept() -> None:
    model = nn.Linear(2, 3)
    data = torch.utils.data.TensorDataset(torch.full((4, 2), 1e30), torch.arange(4) % 3)
    surface = loss_surface(model, {"train": data}, 0, [0.0, 1e30])
    assert not np.isfinite(surface.loss["train"][1, 1])
    assert np.isfinite(surface.loss["train"][0, 0])


def test_planes_come_from_their_seed_alone() -> None:
    torch.manual_seed(1)
    first = random_plane(small_network(), 9)
    torch.manual_seed(2)
    again, other = random_plane(small_network(), 9), random_plane(small_network(), 10)
    for axis in ("x", "y"):
        a, b, c = (getattr(plane, axis) for plane in (first, again, other))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert not all(torch.equal(a[name], c[name]) for name in a)
