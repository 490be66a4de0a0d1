"""Per-sample losses from anybody's training loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_arrays
from torch import nn
from torch.utils.data import TensorDataset

import lltopo
from lltopo.errors import InputError
from lltopo.evaluation import dataset_losses
from lltopo.recorder import LossRecorder, split_metrics
from lltopo.storage import files_below, place
from lltopo.tables import Field, LossTable, metrics_file, read_losses, read_table

PLAIN_LOOP = """
import sys
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lltopo import LossRecorder

arrays = np.load(sys.argv[1])
sets = {
    split: TensorDataset(torch.from_numpy(arrays[f"x_{split}"]).float() / 255,
                         torch.from_numpy(arrays[f"y_{split}"]))
    for split in ("train", "val")
}
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
recorder = LossRecorder(sys.argv[2], run="mine")
recorder.record(model, sets, 0)
for epoch in (1, 2):
    for x, y in DataLoader(sets["train"], batch_size=10, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    recorder.record(model, sets, epoch)
assert model.training
for name in ("ray", "numba", "gudhi", "matplotlib", "sklearn"):
    assert name not in sys.modules, name
torch.save(model.state_dict(), sys.argv[2] + "/model.pt")
"""


@pytest.fixture
def recorder(tmp_path: Path) -> LossRecorder:
    return LossRecorder(tmp_path, run="mine")


def losses(out: Path, split: str = "train", epoch: int = 1) -> LossTable:
    return read_losses(place(out) / "losses", Field("mine", split, epoch))


def metrics(out: Path, epoch: int = 1) -> list[dict]:
    return read_table(metrics_file(place(out), "mine", epoch)).to_pylist()


# -- record --


def test_a_plain_torch_loop_records_without_ray(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **tiny_arrays())
    command = [sys.executable, "-W", "error", "-c", PLAIN_LOOP]
    subprocess.run(
        [*command, str(tmp_path / "data.npz"), str(tmp_path / "out")],
        check=True,
        timeout=120,
        cwd=Path(lltopo.__file__).parents[1],
    )
    # the last epoch's losses, one sample at a time, from the weights that the loop ended with
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )
    model.load_state_dict(torch.load(tmp_path / "out" / "model.pt"))
    model.eval()
    for split in ("train", "val"):
        x, y = (torch.from_numpy(tiny_arrays()[f"{name}_{split}"]) for name in "xy")
        with torch.no_grad():
            outputs = model(x.float() / 255)
        expected = [-outputs[i].log_softmax(0)[y[i]].item() for i in range(len(y))]
        found = losses(tmp_path / "out", split, 2)
        np.testing.assert_allclose(found.loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.label, y)
        np.testing.assert_array_equal(found.prediction, outputs.argmax(1))
        accuracy = (outputs.argmax(1) == y).double().mean().item()
        [row] = [row for row in metrics(tmp_path / "out", 2) if row["split"] == split]
        assert row["accuracy"] == pytest.approx(accuracy, abs=1e-15)
        assert row["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert losses(tmp_path / "out", "val", 0).loss.shape == (25,)


def test_recording_leaves_the_model_as_it_was(recorder: LossRecorder, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model.train()
    model[1].eval()  # a frozen part
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    recorder.record(model, {"train": TensorDataset(x, y)}, 1, batch_size=7)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    model.eval()
    expected = F.cross_entropy(model(x), y, reduction="none").detach()
    np.testing.assert_allclose(losses(tmp_path).loss, expected, rtol=1e-5)


def test_the_modes_are_put_back_when_the_evaluation_fails(recorder: LossRecorder) -> None:
    model = nn.Linear(4, 3).train()
    with pytest.raises(RuntimeError):
        recorder.record(model, {"train": TensorDataset(torch.randn(5, 9), torch.arange(5))}, 1)
    assert model.training


def test_ones_own_loss_function(recorder: LossRecorder, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    data = TensorDataset(torch.randn(9, 2), torch.arange(9) % 2)

    def hinge(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.multi_margin_loss(outputs, y, reduction="none")

    recorder.record(model, {"val": data}, 3, loss_function=hinge)
    expected = hinge(model(data.tensors[0]), data.tensors[1]).detach()
    np.testing.assert_allclose(losses(tmp_path, "val", 3).loss, expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_function_of_whole_batches_is_refused(
    recorder: LossRecorder, reduction: str
) -> None:
    loss_function = nn.CrossEntropyLoss(reduction=reduction)
    data = TensorDataset(torch.randn(9, 2), torch.arange(9) % 2)
    with pytest.raises(InputError, match=r"loss_function: gives no loss of each sample: .*\(9,\)"):
        recorder.record(nn.Linear(2, 2), {"val": data}, 1, loss_function=loss_function)


def test_a_class_that_the_table_cannot_hold_is_refused(recorder: LossRecorder) -> None:
    data = TensorDataset(torch.randn(2, 2), torch.tensor([0, 70_000]))

    def ignoring(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return outputs.sum(dim=1)

    with pytest.raises(InputError, match=r"labels: are out of range: expected 0 to 32767"):
        recorder.record(nn.Linear(2, 2), {"val": data}, 1, loss_function=ignoring)


def test_recording_may_be_tried_again(recorder: LossRecorder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, y = nn.Linear(2, 2), torch.arange(9) % 2
    good = TensorDataset(torch.randn(9, 2), y)
    wrong_shape = TensorDataset(torch.randn(9, 3), y)
    wrong_class = TensorDataset(torch.randn(9, 2), torch.full((9,), 70_000))

    def squares(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return outputs.square().sum(dim=1)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recorder.record(model, {"train": good, "val": wrong_shape}, 1)
    with pytest.raises(InputError, match="labels: are out of range"):
        recorder.record(model, {"train": good, "val": wrong_class}, 1, loss_function=squares)
    assert files_below(place(tmp_path)) == []
    recorder.record(model, {"train": good, "val": good}, 1)
    assert [len(losses(tmp_path, split).loss) for split in ("train", "val")] == [9, 9]


def test_a_regression_has_losses_and_no_classes(recorder: LossRecorder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(9, 2), torch.randn(9)

    def squares(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (outputs.reshape(len(y), -1) - y.reshape(len(y), -1)).square().sum(dim=1)

    targets = {
        "flat": y,
        "column": y[:, None],
        "integers": torch.arange(9),
        "two": torch.randn(9, 2),
    }
    for epoch, (name, target) in enumerate(targets.items()):
        model = nn.Linear(2, 2 if name == "two" else 1)
        if name == "flat":
            model = nn.Sequential(model, nn.Flatten(0))
        recorder.record(model, {"val": TensorDataset(x, target)}, epoch, loss_function=squares)
        found = losses(tmp_path, "val", epoch)
        expected = squares(model(x), target).detach()
        np.testing.assert_allclose(found.loss, expected, rtol=1e-5, atol=1e-6)
        assert (found.label, found.prediction) == (None, None)
        assert [row["accuracy"] for row in metrics(tmp_path, epoch)] == [None]


def test_a_class_above_int16_is_not_wrapped() -> None:
    scores = torch.zeros(2, 40_000)
    scores[:, 39_999] = 1.0
    data = TensorDataset(scores, torch.tensor([0, 39_999]))
    found = dataset_losses(nn.Identity(), data, 2, None)
    assert found.prediction.tolist() == [39_999, 39_999]
    assert found.label.tolist() == [0, 39_999]


# -- update --


def test_updates_may_come_in_any_order_and_any_pieces(
    recorder: LossRecorder, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    loss, label = rng.exponential(size=20), rng.integers(0, 5, 20)
    order = rng.permutation(20)
    for ids in np.split(order, [3, 3, 11, 12]):
        recorder.update(loss[ids], ids, "train", 1, labels=label[ids], predictions=label[ids] + 1)
    recorder.update([0.5], [0], "val", 1)
    recorder.update([0.25], [0], "val", 2)
    recorder.close_epoch(1, learning_rate=0.1, seconds=2.5)
    found = losses(tmp_path)
    np.testing.assert_array_equal(found.loss, loss.astype(np.float32))
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_array_equal(found.prediction, label + 1)
    assert losses(tmp_path, "val") == LossTable(np.float32([0.5]), None, None)
    assert metrics(tmp_path) == [
        {
            "split": "train",
            "loss": pytest.approx(loss.mean(), rel=1e-6),
            "accuracy": 0.0,
            "learning_rate": 0.1,
            "seconds": 2.5,
        },
        {"split": "val", "loss": 0.5, "accuracy": None, "learning_rate": 0.1, "seconds": 2.5},
    ]
    # the next epoch is still open, and its own
    assert not (tmp_path / "losses/run=mine/split=val/epoch=00002").exists()
    recorder.close_epoch(2)
    assert losses(tmp_path, "val", 2).loss.tolist() == [0.25]


def test_tensors_with_gradients_and_every_integer_type_are_taken(
    recorder: LossRecorder, tmp_path: Path
) -> None:
    recorder.update(torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3, 1]), "val", 1)
    recorder.update(np.float64([[3.0], [4.0]]), np.array([[0], [2]], np.uint64), "val", 1)
    recorder.close_epoch(1)
    assert losses(tmp_path, "val").loss.tolist() == [3.0, 2.0, 4.0, 1.0]


def test_what_was_handed_over_may_be_used_again(recorder: LossRecorder, tmp_path: Path) -> None:
    buffer, ids = np.zeros(2, np.float32), np.arange(2)
    recorder.update(buffer, ids, "train", 1)
    buffer += 7
    ids += 2
    recorder.update(buffer, ids, "train", 1)
    recorder.close_epoch(1)
    assert losses(tmp_path).loss.tolist() == [0, 0, 7, 7]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 3], r"expected 0 to 2 once each, got 1 missing and 0 repeated"),
        ([0, 1, 1], r"expected 0 to 2 once each, got 1 missing and 1 repeated"),
        ([1, 2, 3], r"expected 0 to 2 once each, got 1 missing and 0 repeated"),
        ([-1, 0, 1], r"expected 0 to 2 once each, got 1 missing and 0 repeated"),
    ],
)
def test_missing_and_repeated_samples_are_errors(
    recorder: LossRecorder, tmp_path: Path, ids: list[int], message: str
) -> None:
    recorder.update([1.0], [0], "train", 1)
    recorder.update(np.ones(3), ids, "val", 1)
    with pytest.raises(InputError, match=rf"sample_ids \(val, epoch 1\): .*{message}"):
        recorder.close_epoch(1)
    # nothing is written of an epoch that is not whole
    assert files_below(place(tmp_path)) == []


def test_a_missing_sample_may_still_be_added(recorder: LossRecorder, tmp_path: Path) -> None:
    recorder.update([1.0, 3.0], [0, 2], "train", 1)
    with pytest.raises(InputError, match="1 missing"):
        recorder.close_epoch(1)
    recorder.update([2.0], [1], "train", 1)
    recorder.close_epoch(1)
    assert losses(tmp_path).loss.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "classes", "message"),
    [
        (([1.0], [0], "test", 1), {}, "split: is unknown: expected train or val, got 'test'"),
        (([1.0], [0], "val", -1), {}, "epoch: is negative"),
        (([1.0], [0, 1], "val", 1), {}, "sample_ids: do not fit the losses: expected 1 integers"),
        (([1.0], [0.0], "val", 1), {}, "sample_ids: do not fit the losses: expected 1 integers"),
        (([1.0], [0], "val", 1), {"labels": [1, 2]}, "labels: do not fit the losses"),
        (([1.0], [0], "val", 1), {"labels": [0.5]}, "labels: do not fit the losses"),
        (([1.0], [0], "val", 1), {"predictions": [2**15]}, "predictions: are out of range"),
        (([1.0], [0], "val", 1), {"labels": [-2]}, "labels: are out of range"),
    ],
)
def test_updates_that_do_not_fit_are_refused(
    recorder: LossRecorder, arguments: tuple, classes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recorder.update(*arguments, **classes)
    with pytest.raises(InputError, match="epoch: nothing was recorded for 1"):
        recorder.close_epoch(1)


def test_an_unsafe_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run: 'a/b' is no safe file name"):
        LossRecorder(tmp_path, run="a/b")


def test_splits_may_be_closed_one_after_the_other(recorder: LossRecorder, tmp_path: Path) -> None:
    for split, loss in (("train", 1.0), ("val", 2.0), ("train", 3.0)):
        recorder.update([loss], [0], split, 1)
        recorder.close_epoch(1)
    assert {row["split"]: row["loss"] for row in metrics(tmp_path)} == {"train": 3.0, "val": 2.0}
    assert len(metrics(tmp_path)) == 2


# -- metrics --


def test_the_mean_loss_is_added_up_in_float64() -> None:
    loss = np.full(2**20, 0.1, np.float32)
    loss[0] = 2.0**20
    found = split_metrics("train", LossTable(loss, None, None))
    assert found["loss"] == pytest.approx(float(loss.astype(np.float64).mean()), rel=1e-13)


def test_unknown_classes_make_no_accuracy() -> None:
    loss, known = np.ones(4, np.float32), np.int16([1, 2, 3, 4])
    assert split_metrics("val", LossTable(loss, known, np.int16([1, 2, 3, 3])))["accuracy"] == 0.75
    unknown = np.int16([1, -1, 3, 4])
    for classes in ((unknown, unknown), (known, None), (None, known), (known, unknown)):
        assert split_metrics("val", LossTable(loss, *classes))["accuracy"] is None
