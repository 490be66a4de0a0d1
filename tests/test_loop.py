"""The training loop in plain torch: what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alone import ALONE, train, with_training
from tiny import N_TRAIN, N_VAL, tiny_raw, tiny_study
from torch import Tensor

from lltopo import loop
from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.loop import (
    Worker,
    cropped_and_flipped,
    initial_state,
    recorded_losses,
    resident,
    set_up_torch,
    train_epoch,
)
from lltopo.models import build_model
from lltopo.storage import Place, place
from lltopo.study import Study
from lltopo.study_files import resolved_study
from lltopo.tables import Field, metrics_file, read_losses, read_table

pytestmark = pytest.mark.usefixtures("torch_settings")

# -- what is computed --


def mean_losses(out: Place, split: str, epochs: int) -> list[float]:
    return [
        float(read_losses(out / "losses", Field("only", split, epoch)).loss.mean(dtype=float))
        for epoch in range(epochs + 1)
    ]


def test_training_is_nesterovs_method_with_weight_decay_and_a_schedule(tmp_path: Path) -> None:
    """Against the update written out, in float64, with whole-set batches."""
    settings = {"epochs": 4, "batch_size": 60, "lr": 0.2, "momentum": 0.8, "weight_decay": 0.03}
    study = tiny_study(tmp_path, **settings, milestones=[2, 4], gamma=0.5)
    data, out = load_data(study.data), place(tmp_path / "out")
    train(study, out)
    model = build_model(study.runs["only"].model, (1, 8, 8), 3, 0).double()
    x, y = {}, {}
    for split in ("train", "val"):
        pixels = data.split(split).x.astype(float)
        centre, spread = data.train.x.mean(dtype=float), data.train.x.std(dtype=float)
        x[split] = torch.from_numpy((pixels - centre) / spread)
        y[split] = torch.from_numpy(data.split(split).y)
    velocity = [torch.zeros_like(weights) for weights in model.parameters()]
    expected: dict[str, list[float]] = {"train": [], "val": []}
    for rate in (None, 0.2, 0.1, 0.1, 0.05):
        if rate is not None:
            loss = F.cross_entropy(model(x["train"]), y["train"])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for weights, v, gradient in zip(
                    model.parameters(), velocity, gradients, strict=True
                ):
                    g = gradient + 0.03 * weights
                    v.mul_(0.8).add_(g)
                    weights.sub_(rate * (g + 0.8 * v))
        for split, found in expected.items():
            found.append(F.cross_entropy(model(x[split]), y[split]).item())
    for split, losses in expected.items():
        np.testing.assert_allclose(mean_losses(out, split, 4), losses, rtol=2e-5)
    rates = [
        read_table(metrics_file(out, "only", epoch))["learning_rate"][0].as_py()
        for epoch in range(5)
    ]
    assert rates == [None, 0.2, 0.1, 0.1, 0.05]


def test_a_smaller_last_batch_weighs_its_samples_as_a_batch_does(tmp_path: Path) -> None:
    """SGD without momentum at a tiny rate adds up the batches' mean gradients."""
    rate = 1e-6
    settings = {"lr": rate, "momentum": 0, "nesterov": False, "batch_size": 25}
    study = tiny_study(tmp_path, **settings)
    data = load_data(study.data)
    state = initial_state(study.runs["only"], data, ALONE)
    split = resident(data.train, ALONE)
    before = state.model.layers[1].bias.detach().double()
    train_epoch(state, split, study.runs["only"].training, 1, ALONE)
    moved = (before - state.model.layers[1].bias.detach().double()) / rate
    fresh = initial_state(study.runs["only"], data, ALONE)
    x = (split.x.float() - state.mean) / state.std
    loss = F.cross_entropy(fresh.model(x), split.y)
    [mean_gradient] = torch.autograd.grad(loss, [fresh.model.layers[1].bias])
    # three batches: as if by three whole-set steps, but for which samples are in the last
    assert torch.dot(moved, mean_gradient.double()) / mean_gradient.double().norm() ** 2 == (
        pytest.approx(3, rel=0.1)
    )


def test_epoch_0_is_the_network_before_training_in_eval_mode(stateful: Study) -> None:
    out = place("out")
    train(with_training(stateful, epochs=1), out)
    data = load_data(stateful.data)
    model = build_model(stateful.runs["only"].model, data.input_shape, data.n_classes, 0).eval()
    for split in ("train", "val"):
        samples = data.split(split)
        x = (torch.from_numpy(samples.x).float() - data.mean[0]) / data.std[0]
        outputs = model(x).detach()
        expected = F.cross_entropy(outputs, torch.from_numpy(samples.y), reduction="none")
        table = read_losses(out / "losses", Field("only", split, 0))
        np.testing.assert_allclose(table.loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(table.prediction, outputs.argmax(1))
        np.testing.assert_array_equal(table.label, samples.y)
    assert table.loss.shape == (N_VAL,)


def test_evaluation_changes_nothing_and_takes_every_sample_once(stateful: Study) -> None:
    training = stateful.runs["only"].training
    data = load_data(stateful.data)
    state = initial_state(stateful.runs["only"], data, ALONE)
    state.model.train()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    split = resident(data.train, ALONE)
    pieces = []
    for eval_batch_size in (1, 7, 60, 1000):
        changed = training.model_copy(update={"eval_batch_size": eval_batch_size})
        pieces.append(recorded_losses(state, split, changed, ALONE))
    for piece in pieces:
        np.testing.assert_allclose(piece.loss, pieces[0].loss, rtol=1e-5)
        np.testing.assert_array_equal(piece.label, data.train.y)
    assert all(torch.equal(before[name], v) for name, v in state.model.state_dict().items())
    assert state.model.training


def test_the_tiny_network_learns(tmp_path: Path) -> None:
    out = place(tmp_path / "out")
    train(tiny_study(tmp_path, epochs=5), out)
    losses = mean_losses(out, "val", 5)
    assert losses[5] < losses[0] / 3
    [accuracy] = [
        row["accuracy"]
        for row in read_table(metrics_file(out, "only", 5)).to_pylist()
        if row["split"] == "val"
    ]
    assert accuracy > 0.8


def test_a_run_that_diverges_is_recorded_to_its_end(tmp_path: Path) -> None:
    out = place(tmp_path / "out")
    train(tiny_study(tmp_path, epochs=3, lr=1e30), out)
    last = read_losses(out / "losses", Field("only", "train", 3)).loss
    assert last.shape == (N_TRAIN,)
    assert not np.isfinite(last).all()


@pytest.mark.parametrize("first", [3, 2, None])
def test_workers_that_would_go_on_from_different_epochs_are_stopped(
    monkeypatch: pytest.MonkeyPatch, first: int | None
) -> None:
    monkeypatch.setattr(
        loop.dist, "broadcast_object_list", lambda said, src: said.__setitem__(0, first)
    )
    second = Worker(1, 2, torch.device("cpu"))
    if first == 3:
        loop._check_agreement(3, second)
        return
    with pytest.raises(RuntimeError, match=f"rank 1 goes on from epoch 3, rank 0 from {first}"):
        loop._check_agreement(3, second)


@pytest.mark.parametrize(
    "changes", [{"channels_last": True}, {"precision": "bf16"}, {"deterministic": False}]
)
def test_other_ways_to_compute_give_nearly_the_same(
    stateful: Study, changes: dict[str, Any]
) -> None:
    plain = with_training(stateful, epochs=1)
    train(plain, place("plain"))
    train(with_training(plain, **changes), place("other"))
    found = [read_losses(place(f"{name}/losses"), Field("only", "val", 1)) for name in
             ("plain", "other")]  # fmt: skip
    np.testing.assert_allclose(found[1].loss, found[0].loss, rtol=0.1, atol=0.05)
    assert found[1].loss.dtype == np.float32


def test_a_compiled_network_trains_and_goes_on_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    # without a compiler: the same network, seen to be asked for
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    study = tiny_study(tmp_path, epochs=2)
    train(study, place(tmp_path / "plain"))
    assert not compiled
    train(with_training(study, compile=True, epochs=1), place(tmp_path / "compiled"))
    train(with_training(study, compile=True), place(tmp_path / "compiled"))
    assert len(compiled) == 2
    names = ("plain", "compiled")
    found = [read_losses(place(tmp_path / f"{n}/losses"), Field("only", "val", 2)) for n in names]
    np.testing.assert_array_equal(found[0].loss, found[1].loss)


@pytest.mark.parametrize("tf32", [False, True])
def test_products_of_float32_are_rounded_to_tf32_only_where_the_study_says_so(
    tmp_path: Path, tf32: bool
) -> None:
    set_up_torch(tiny_study(tmp_path, tf32=tf32).runs["only"].training)
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


# -- augmentation --


def naive_crop_and_flip(image: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    """One image: four zeros on each side, a window of its own size, perhaps mirrored."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 8, width + 8), image.dtype)
    padded[:, 4 : 4 + height, 4 : 4 + width] = image
    window = padded[:, top : top + height, left : left + width]
    return window[:, :, ::-1] if flip else window


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_image_is_cropped_and_flipped_by_itself(dtype: type) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(1, 256, (400, 2, 5, 7)).astype(dtype)
    found = cropped_and_flipped(torch.from_numpy(x), torch.Generator().manual_seed(4)).numpy()
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    drawn = []
    for image, result in zip(x, found, strict=True):
        drawn.append(
            [
                (top, left, flip)
                for top in range(9)
                for left in range(9)
                for flip in (False, True)
                if np.array_equal(naive_crop_and_flip(image, top, left, flip), result)
            ]
        )
    # random pixels: every result is that of exactly one way to crop and flip
    assert all(len(ways) == 1 for ways in drawn)
    tops, lefts, flips = np.array([ways[0] for ways in drawn]).T
    for shifts in (tops, lefts):
        assert np.bincount(shifts, minlength=9).min() > 400 / 9 / 2
    assert 150 < flips.sum() < 250
    for a, b in ((tops, lefts), (tops, flips), (lefts, flips)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.2


def test_augmentation_differs_from_epoch_to_epoch_and_spares_the_evaluation(
    stateful: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(stateful.data)
    state = initial_state(stateful.runs["only"], data, ALONE)
    split = resident(data.train, ALONE)
    # the order of the data is not what differs
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    training = stateful.runs["only"].training.model_copy(update={"batch_size": 100, "lr": 1e-9})
    seen: list[Tensor] = []
    state.model.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for epoch in (1, 2):
        train_epoch(state, split, training, epoch, ALONE)
    recorded_losses(state, split, training, ALONE)
    same = [torch.equal(*images) for images in zip(*seen[:2], strict=True)]
    assert sum(same) < 10
    plain = (split.x.float() - state.mean) / state.std
    torch.testing.assert_close(torch.cat(seen[2:]), plain, rtol=0, atol=0)


def test_augmentation_of_what_are_no_images_is_refused(tmp_path: Path) -> None:
    raw = tiny_raw(tmp_path)
    raw["training"]["augment"] = "crop_flip"
    study = resolved_study(raw, "tiny")
    data = load_data(study.data)
    flat = data._replace(train=data.train._replace(x=data.train.x.reshape(N_TRAIN, -1)))
    with pytest.raises(InputError, match=r"training\.augment: crop_flip needs images, got .*\(64,"):
        initial_state(study.runs["only"], flat, ALONE)


# -- batches --


@pytest.mark.parametrize(
    ("n", "batch_size", "fewest", "sizes"),
    [
        (10, 5, 2, [5, 5]),
        (11, 5, 2, [5, 6]),
        (12, 5, 2, [5, 5, 2]),
        (3, 5, 2, [3]),
        (1, 5, 2, [1]),
        (13, 5, 4, [5, 8]),
        (14, 5, 4, [5, 5, 4]),
        (4, 1, 2, [1, 1, 2]),
    ],
)
def test_batches_hold_every_sample_once_and_the_last_is_not_too_small(
    n: int, batch_size: int, fewest: int, sizes: list[int]
) -> None:
    order = torch.arange(n).flip(0)
    batches = list(loop._batches(order, batch_size, fewest))
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(batches), order)


def test_batch_normalisation_never_sees_a_single_sample(tmp_path: Path) -> None:
    raw = tiny_raw(tmp_path)
    raw["model"] = {"name": "convnet", "width": 1}
    raw["training"] |= {"batch_size": 59, "epochs": 1}
    out = place(tmp_path / "out")
    train(resolved_study(raw, "tiny"), out)
    assert np.isfinite(read_losses(out / "losses", Field("only", "train", 1)).loss).all()


def test_modules_are_told_whether_they_train(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    data = load_data(study.data)
    state = initial_state(study.runs["only"], data, ALONE)
    state.model.eval()
    modes = []
    state.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    split = resident(data.train, ALONE)
    train_epoch(state, split, study.runs["only"].training, 1, ALONE)
    recorded_losses(state, split, study.runs["only"].training, ALONE)
    assert modes == [True] * 4 + [False] * 3
