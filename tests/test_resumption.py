"""Interruptions leave no trace: a run goes on to the same bits, and what is done is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alone import ALONE, tables, train, with_training
from tiny import N_TRAIN, tiny_study
from torch import Tensor

from lltopo import loop
from lltopo.checkpoints import checkpoint_file
from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.loop import State, Worker, initial_state, resident, train_epoch
from lltopo.recorder import LossRecorder
from lltopo.storage import files_below, place
from lltopo.study import Study

pytestmark = pytest.mark.usefixtures("torch_settings")


@pytest.fixture
def trained_epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained, as they begin."""
    epochs: list[int] = []

    def counted(state: State, split: Any, training: Any, epoch: int, worker: Worker) -> None:
        epochs.append(epoch)
        train_epoch(state, split, training, epoch, worker)

    monkeypatch.setattr(loop, "train_epoch", counted)
    return epochs


class Killed(Exception):
    """Stands for the end of the process."""


def kill_once(monkeypatch: pytest.MonkeyPatch, epoch: int, moment: str) -> None:
    """Let a run end while it closes an epoch."""
    close_epoch = LossRecorder.close_epoch

    def closing(self: LossRecorder, closed: int, **settings: Any) -> None:
        if closed == epoch and moment == "before its tables":
            raise Killed
        close_epoch(self, closed, **settings)
        if closed == epoch:
            raise Killed

    monkeypatch.setattr(LossRecorder, "close_epoch", closing)


# -- same bits --


@pytest.mark.parametrize("epoch", [0, 1, 3])
@pytest.mark.parametrize("moment", ["before its tables", "before its checkpoint"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    stateful: Study, tmp_path: Path, trained_epochs: list[int], epoch: int, moment: str
) -> None:
    undisturbed, interrupted = place(tmp_path / "a"), place(tmp_path / "b")
    train(stateful, undisturbed)
    trained_epochs.clear()
    with pytest.MonkeyPatch.context() as patch:
        kill_once(patch, epoch, moment)
        with pytest.raises(Killed):
            train(stateful, interrupted)
    assert len(tables(interrupted)) == 2 * epoch + 2 * (moment == "before its checkpoint")
    train(stateful, interrupted)
    assert tables(interrupted) == tables(undisturbed)
    assert len(tables(undisturbed)) == 2 * 5
    # at most the one epoch is trained again
    again = [epoch] if epoch else []
    assert trained_epochs == [*range(1, epoch), *again, *again, *range(epoch + 1, 5)]
    ends = [
        torch.load(checkpoint_file(out, "only", None).path) for out in (undisturbed, interrupted)
    ]
    assert ends[0]["epoch"] == ends[1]["epoch"] == 4
    for name, weights in ends[0]["model"].items():
        assert torch.equal(weights, ends[1]["model"][name])


def test_more_epochs_later_are_the_same_as_at_once(
    stateful: Study, tmp_path: Path, trained_epochs: list[int]
) -> None:
    train(stateful, place(tmp_path / "a"))
    train(with_training(stateful, epochs=2), place(tmp_path / "b"))
    trained_epochs.clear()
    train(stateful, place(tmp_path / "b"))
    assert trained_epochs == [3, 4]
    assert tables(place(tmp_path / "a")) == tables(place(tmp_path / "b"))


def test_the_order_of_the_data_differs_from_epoch_to_epoch_and_seed_to_seed(
    tmp_path: Path,
) -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        study = tiny_study(tmp_path, seed=seed, batch_size=25)
        data = load_data(study.data)
        state = initial_state(study.runs["only"], data, ALONE)
        split = resident(data.train, ALONE)
        rows = {bytes(x): i for i, x in enumerate(data.train.x)}
        found = []
        for epoch in (1, 2):
            seen: list[Tensor] = []
            hook = state.model.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
            train_epoch(state, split, study.runs["only"].training, epoch, ALONE)
            hook.remove()
            assert [len(x) for x in seen] == [25, 25, 10]
            pixels = torch.cat(seen) * state.std + state.mean
            found.append(tuple(rows[bytes(x.round().byte().numpy())] for x in pixels))
        return found

    first = orders(seed=0)
    assert first == orders(seed=0)
    different = {*first, *orders(seed=1)}
    assert len(different) == 4
    assert all(sorted(order) == list(range(N_TRAIN)) for order in different)


def test_seeds_and_rates_make_other_losses(tmp_path: Path) -> None:
    found = set()
    for i, changes in enumerate(({}, {"seed": 1}, {"lr": 0.01}, {"weight_decay": 0.1})):
        train(tiny_study(tmp_path, epochs=1, **changes), place(tmp_path / str(i)))
        found.add(
            tables(place(tmp_path / str(i)))["run=only/split=train/epoch=00001/part-0.parquet"]
        )
    assert len(found) == 4


# -- what is done is skipped, what is damaged made again --


def test_a_finished_run_changes_no_file(tmp_path: Path, trained_epochs: list[int]) -> None:
    study, out = tiny_study(tmp_path), place(tmp_path / "out")
    train(study, out)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(times) == 4 * (2 + 1) + 1
    train(study, out)
    assert trained_epochs == [1, 2, 3]
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "keep", "again"),
    [
        ("losses/run=only/split=train/epoch=00002/part-0.parquet", [], [1, 2, 3]),
        ("losses/run=only/split=val/epoch=00000/part-0.parquet", [1], [1, 2, 3]),
        ("losses/run=only/split=val/epoch=00002/part-0.parquet", [0, 1], [2, 3]),
        ("losses/run=only/split=val/epoch=00003/part-0.parquet", [1, 2], [3]),
        ("metrics/run=only/epoch=00003/part-0.parquet", [2], [3]),
    ],
)
@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_a_lost_table_is_made_again(
    tmp_path: Path,
    trained_epochs: list[int],
    name: str,
    keep: list[int],
    again: list[int],
    how: str,
) -> None:
    study, out = tiny_study(tmp_path, keep_checkpoints=keep), place(tmp_path / "out")
    train(study, out)
    before = tables(out)
    trained_epochs.clear()
    path = tmp_path / "out" / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    train(study, out)
    assert tables(out) == before
    assert trained_epochs == again


@pytest.mark.parametrize("n_bytes", [0, 1, 100, 2000, -1])
def test_a_damaged_checkpoint_is_no_checkpoint(
    tmp_path: Path, trained_epochs: list[int], n_bytes: int
) -> None:
    study, out = tiny_study(tmp_path, keep_checkpoints=[2]), place(tmp_path / "out")
    train(study, out)
    before = tables(out)
    trained_epochs.clear()
    last = Path(checkpoint_file(out, "only", None).path)
    whole = last.read_bytes()
    last.write_bytes(whole[:n_bytes])
    train(study, out)
    assert tables(out) == before
    # from the one that was to be kept
    assert trained_epochs == [3]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    out = place(tmp_path / "out")
    train(tiny_study(tmp_path), out)
    with pytest.raises(InputError, match=r"last\.pt: belongs to another study"):
        train(tiny_study(tmp_path, lr=0.5), out)


def test_only_the_last_checkpoint_and_those_named_are_kept(tmp_path: Path) -> None:
    out = place(tmp_path / "out")
    train(tiny_study(tmp_path, keep_checkpoints=[0, 2]), out)
    names = ["run=only/epoch=00000.pt", "run=only/epoch=00002.pt", "run=only/last.pt"]
    assert files_below(out / "checkpoints") == names
