"""Jumps and retraining without Ray: the right start, the losses of the very weights kept beside
them, and the same bits after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jumping import ALONE, SETTINGS
from processes import DEAD
from tiny import tiny_raw
from torch.nn.utils import vector_to_parameters

from lltopo import jump
from lltopo.checkpoints import checkpoint_file, read_checkpoint
from lltopo.data import DataSet, load_data
from lltopo.errors import InputError
from lltopo.jump import made_by, optimum, retraining, sample_trajectories, weight_vector
from lltopo.jump_files import (
    Trajectory,
    points_file,
    recorded_points,
    run_trajectories,
    trajectory_folder,
    weights_file,
)
from lltopo.loop import State, initial_state, recorded_losses, resident, train_run
from lltopo.storage import Place, place, remove
from lltopo.study import Study, run_digest
from lltopo.study_files import resolved_study
from lltopo.surface import filter_normalised_direction
from lltopo.tables import metrics_file, read_table

# one without batch normalisation, one with it
MODELS = {"plain": {"name": "mlp", "hidden": [8]}, "normed": {"name": "convnet", "width": 2}}


class Made(NamedTuple):
    """A trained study and all its trajectories."""

    study: Study
    data: DataSet
    out: Place


def jump_study(folder: Path, **changed: object) -> Study:
    raw = tiny_raw(folder)
    raw["training"] |= {"epochs": 2, "augment": "crop_flip", "milestones": [2], "seed": 5}
    raw["runs"] = {name: {"model": model} for name, model in MODELS.items()}
    return resolved_study(raw | {"jump": SETTINGS | changed}, "tiny")


@pytest.fixture(scope="module", autouse=True)
def _torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("jump")
    study = jump_study(folder)
    found = Made(study, load_data(study.data), place(folder / "out"))
    for run in MODELS:
        train_run(study, run, found.data, found.out, ALONE)
        sample_trajectories(study, found.data, run_trajectories(study, run), found.out, ALONE)
    return found


@pytest.fixture
def trained(made: Made, tmp_path: Path) -> Made:
    """The same checkpoints elsewhere, without a trajectory."""
    out = place(tmp_path / "out")
    for run in MODELS:
        target = Path(checkpoint_file(out, run, None).path)
        target.parent.mkdir(parents=True)
        target.write_bytes(Path(checkpoint_file(made.out, run, None).path).read_bytes())
    return made._replace(out=out)


def vector(out: Place, trajectory: Trajectory, epoch: int) -> np.ndarray:
    return np.load(weights_file(out, trajectory, epoch).path, allow_pickle=False)


def rows(out: Place, trajectory: Trajectory) -> list[dict]:
    return read_table(points_file(out, trajectory)).to_pylist()


def files(out: Place, trajectory: Trajectory) -> dict[str, bytes]:
    folder = Path(trajectory_folder(out, trajectory).path)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained_state(made: Made, run: str) -> State:
    checkpoint = read_checkpoint(checkpoint_file(made.out, run, 2), run_digest(made.study, run))
    assert checkpoint is not None
    state = initial_state(made.study.runs[run], made.data, ALONE)
    state.model.load_state_dict(checkpoint.model)
    return state


def evaluated(made: Made, run: str, state: State) -> dict[str, float]:
    training = made.study.runs[run].training
    means = {}
    for split in ("train", "val"):
        table = recorded_losses(state, resident(made.data.split(split), ALONE), training, ALONE)
        means[f"{split}_loss"] = float(np.mean(table.loss, dtype=np.float64))
        means[f"{split}_accuracy"] = float(np.mean(table.label == table.prediction))
    return means


def sample(made: Made, *trajectories: Trajectory) -> None:
    sample_trajectories(made.study, made.data, trajectories, made.out, ALONE)


@pytest.mark.parametrize("run", MODELS)
def test_a_step_of_zero_is_the_optimum(made: Made, run: str) -> None:
    start = run_trajectories(made.study, run)[0]
    assert start == Trajectory(run, 0, 0.0, 0)
    state = trained_state(made, run)
    assert np.array_equal(vector(made.out, start, 0), weight_vector(state.model))
    [row] = rows(made.out, start)
    metrics = {m["split"]: m for m in read_table(metrics_file(made.out, run, 2)).to_pylist()}
    for split in ("train", "val"):
        assert row[f"{split}_loss"] == metrics[split]["loss"]
        assert row[f"{split}_accuracy"] == metrics[split]["accuracy"]


@pytest.mark.parametrize("run", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("step", [0.25, 1.0])
def test_a_jump_is_a_step_along_filter_normalised_noise(
    made: Made, run: str, seed: int, step: float
) -> None:
    state = trained_state(made, run)
    direction = filter_normalised_direction(state.model, seed)
    with torch.no_grad():
        for name, weight in state.model.named_parameters():
            weight.copy_(weight + step * direction[name])
    trajectory = Trajectory(run, seed, step, 3)
    found = vector(made.out, trajectory, 0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weight_vector(state.model), rtol=1e-6, atol=1e-8)
    # the statistics of batch normalisation are still the optimum's
    expected = evaluated(made, run, state)
    assert {k: rows(made.out, trajectory)[0][k] for k in expected} == pytest.approx(expected)


def test_each_points_losses_are_those_of_its_own_weights(made: Made) -> None:
    state = trained_state(made, "plain")
    for trajectory in run_trajectories(made.study, "plain"):
        found = rows(made.out, trajectory)
        assert [row["epoch"] for row in found] == list(range(trajectory.epochs + 1))
        # so that those of the point before or after would not do
        assert len({row["val_loss"] for row in found}) == len(found)
        for row in found:
            weights = torch.from_numpy(vector(made.out, trajectory, row["epoch"]))
            vector_to_parameters(weights, state.model.parameters())
            expected = evaluated(made, "plain", state)
            assert {name: row[name] for name in expected} == expected


def test_retraining_is_plain_and_at_a_constant_rate(made: Made) -> None:
    training = retraining(made.study, Trajectory("plain", 7, 0.25, 3))
    assert [training.learning_rate(epoch) for epoch in range(1, 4)] == [0.01] * 3
    assert (training.momentum, training.nesterov, training.weight_decay) == (0.9, False, 1e-4)
    assert (training.batch_size, training.epochs, training.seed) == (16, 3, 7)
    of_run = made.study.runs["plain"].training
    for kept in ("augment", "precision", "eval_batch_size", "threads", "deterministic"):
        assert getattr(training, kept) == getattr(of_run, kept)
    assert training.augment == "crop_flip"


def test_trajectories_of_different_seeds_and_steps_differ(made: Made) -> None:
    ends = [vector(made.out, t, 3) for t in run_trajectories(made.study, "plain")[1:]]
    assert len({end.tobytes() for end in ends}) == 4


@pytest.mark.parametrize("run", MODELS)
@pytest.mark.parametrize("moment", ["write_weights", "write_points", "write_bytes"])
def test_an_interrupted_trajectory_goes_on_to_the_same_bits(
    trained: Made, made: Made, monkeypatch: pytest.MonkeyPatch, run: str, moment: str
) -> None:
    trajectory = Trajectory(run, 1, 0.25, 3)
    calls = 0
    real = getattr(jump, moment)

    def failing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(jump, moment, failing)
        with pytest.raises(KeyboardInterrupt):
            sample(trained, trajectory)
    # a process that is killed cannot clear away what it has half written
    partial = (
        Path(trajectory_folder(trained.out, trajectory).path) / f".last.pt.{DEAD}.{0:032x}.partial"
    )
    partial.write_bytes(b"half")
    trained_epochs = []
    train_epoch = jump.train_epoch
    monkeypatch.setattr(
        jump, "train_epoch", lambda *a: (trained_epochs.append(a[3]), train_epoch(*a))
    )
    sample(trained, trajectory)
    # the epoch at work is lost, no other
    assert trained_epochs == [2, 3]
    assert files(trained.out, trajectory) == files(made.out, trajectory)


def test_what_is_there_is_left_as_it_is(made: Made) -> None:
    folder = Path(made.out.path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    sample(made, *run_trajectories(made.study, "plain"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_workers_deal_the_trajectories_out(trained: Made, made: Made) -> None:
    asked = run_trajectories(made.study, "plain")
    for rank in (1, 0):
        worker = ALONE._replace(rank=rank, size=2)
        sample_trajectories(trained.study, trained.data, asked, trained.out, worker)
        there = [t for t in asked if Path(points_file(trained.out, t).path).exists()]
        assert there == (asked[1::2] if rank == 1 else asked)
    for trajectory in asked:
        assert files(trained.out, trajectory) == files(made.out, trajectory)


def test_more_epochs_go_on_from_the_last(trained: Made, made: Made) -> None:
    short, whole = (Trajectory("plain", 0, 1.0, epochs) for epochs in (1, 3))
    sample(trained, short)
    assert len(rows(trained.out, short)) == 2
    sample(trained, whole)
    assert files(trained.out, whole) == files(made.out, whole)


@pytest.mark.parametrize("lost", ["epoch=00001.npy", "last.pt", "points.parquet"])
def test_a_lost_file_is_made_again(trained: Made, made: Made, lost: str) -> None:
    trajectory = Trajectory("plain", 0, 0.25, 3)
    sample(trained, trajectory)
    folder = Path(trajectory_folder(trained.out, trajectory).path)
    (folder / lost).unlink()
    if lost == "last.pt":
        (folder / "epoch=00003.npy").unlink()
    sample(trained, trajectory)
    assert files(trained.out, trajectory) == files(made.out, trajectory)


def test_other_settings_make_other_points(trained: Made, tmp_path: Path) -> None:
    trajectory = Trajectory("plain", 0, 0.25, 3)
    sample(trained, trajectory)
    before = files(trained.out, trajectory)
    other = trained._replace(study=jump_study(tmp_path, lr=0.02))
    # the data lie elsewhere: the same run of another study
    digest = run_digest(trained.study, "plain")
    assert run_digest(other.study, "plain") != digest
    other = other._replace(
        study=other.study.model_copy(update={"data": trained.study.data}),
    )
    sample(other, trajectory)
    after = files(trained.out, trajectory)
    assert after["epoch=00000.npy"] == before["epoch=00000.npy"]
    assert after["epoch=00001.npy"] != before["epoch=00001.npy"]


def test_which_trajectories_there_are_changes_none_of_them(made: Made, tmp_path: Path) -> None:
    trajectory = Trajectory("plain", 0, 0.25, 3)
    source = optimum(made.study, made.out, "plain")
    fewer = jump_study(tmp_path, seeds=[0], steps=[0.25], epochs=1, k=2)
    fewer = fewer.model_copy(update={"data": made.study.data})
    digest = made_by(optimum(fewer, made.out, "plain"), trajectory)
    assert digest == made_by(source, trajectory)
    assert recorded_points(made.out, trajectory, digest) == rows(made.out, trajectory)
    assert len(recorded_points(made.out, trajectory._replace(epochs=1), digest)) == 2
    for other in (trajectory._replace(seed=1), trajectory._replace(step=0.5)):
        assert made_by(source, other) != digest


def test_without_the_weights_there_is_no_jump(trained: Made) -> None:
    remove(trained.out / "checkpoints")
    with pytest.raises(InputError, match=r"epoch=00002\.pt: is missing: jumps need the weights"):
        optimum(trained.study, trained.out, "plain")
