"""The jump stage: tables of planted weights and losses, what is made again and what is not, and
under Ray Train, with a worker killed, the very files of the plain function."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jumping import ALONE, SETTINGS, Circle, planted_circle
from processes import finish, run, start, wait_until, workers
from tiny import tiny_raw

from lltopo import jumps, training
from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.fanout import Outcome
from lltopo.jump import sample_trajectories
from lltopo.jump_files import (
    Trajectory,
    n_recorded,
    run_trajectories,
    trajectory_folder,
    weight_blocks,
    weights_file,
    write_points,
    write_weights,
)
from lltopo.jumps import check_jump, make_jumps, run_topology
from lltopo.loop import train_run
from lltopo.opening import open_results
from lltopo.schemas import JUMP, JUMP_DIAGRAMS, JUMP_SUMMARY
from lltopo.session import Session
from lltopo.storage import Place, place
from lltopo.study import Study
from lltopo.study_files import read_study, resolved_study
from lltopo.tables import read_table

EPOCHS, JUMPS, K = 15, 4, 4
TABLES = ("jump", "jump_diagrams", "jump_summary")


# -- what is computed of trajectories --


def point(epoch: int, loss: float) -> dict:
    losses = {"train_loss": loss / 2, "train_accuracy": 0.5, "val_loss": loss, "val_accuracy": 0.25}
    return {"epoch": epoch, **losses, "weights": f"{epoch}"}


def planted_trajectories(out: Place, lost: tuple[int, ...] = ()) -> tuple[Circle, list[Trajectory]]:
    """Trajectories whose points of epochs 1, 2, ... are those of a circle, one after the other.

    Epoch 0 and the optimum lie there too, with losses like no other; the losses of the points of
    some numbers are not finite.
    """
    circle = planted_circle(EPOCHS * JUMPS)
    optimum = Trajectory("a", 0, 0.0, 0)
    trajectories = [Trajectory("a", s, step, EPOCHS) for s in (0, 1) for step in (0.5, 1.0)]
    write_weights(weights_file(out, optimum, 0), circle.vectors[11])
    write_points(out, optimum, [point(0, 100.0)], "made")
    for i, trajectory in enumerate(trajectories):
        rows = [point(0, 200.0 + i)]
        write_weights(weights_file(out, trajectory, 0), circle.vectors[5])
        for epoch in range(1, EPOCHS + 1):
            at = i * EPOCHS + epoch - 1
            write_weights(weights_file(out, trajectory, epoch), circle.vectors[at])
            rows.append(point(epoch, math.inf if at in lost else float(circle.loss[at])))
        write_points(out, trajectory, rows, "made")
    return circle, [optimum, *trajectories]


def test_each_row_is_the_place_and_the_loss_of_its_own_weights(tmp_path: Path) -> None:
    circle, trajectories = planted_trajectories(place(tmp_path))
    found = run_topology(place(tmp_path), trajectories, K)
    assert len(found.points) == 1 + JUMPS * (EPOCHS + 1)
    embedded = [row for row in found.points if row["epoch"] >= 1]
    keys = [(row["seed"], row["step"], row["epoch"]) for row in embedded]
    assert keys == [(t.seed, t.step, e) for t in trajectories[1:] for e in range(1, EPOCHS + 1)]
    assert [row["val_loss"] for row in embedded] == circle.loss.tolist()
    # next to each other on the circle, next to each other in the plane
    plane = np.array([(row["x"], row["y"]) for row in embedded])
    for i, at in enumerate(circle.place):
        away = np.linalg.norm(plane - plane[i], axis=1)
        nearest = circle.place[np.argsort(away)[1:3]]
        assert {*((nearest - at) % len(plane))} == {1, len(plane) - 1}
    # the jumps are told but not embedded; the optimum is where its weights are
    assert all(row["x"] is row["y"] is None for row in found.points[1:] if row["epoch"] == 0)
    optimum = found.points[0]
    assert (optimum["step"], optimum["epoch"], optimum["val_loss"]) == (0.0, 0, 100.0)
    away = np.linalg.norm(plane - [optimum["x"], optimum["y"]], axis=1)
    assert away.argmin() == 11


def test_persistence_is_that_of_the_planted_losses(tmp_path: Path) -> None:
    circle, trajectories = planted_trajectories(place(tmp_path))
    found = run_topology(place(tmp_path), trajectories, K)
    minima = circle.along()[circle.wells()]
    assert len(minima) == 3
    for split, scale in (("train", 0.5), ("val", 1.0)):
        of_split = [row for row in found.diagrams if row["split"] == split]
        components = [row for row in of_split if row["dimension"] == 0]
        assert sorted(row["birth"] for row in components) == sorted(scale * minima)
        assert [row["essential"] for row in components].count(True) == 1
        [loop] = [row for row in of_split if row["dimension"] == 1]
        assert loop["essential"]
        for dimension in (0, 1):
            rows = [row for row in of_split if row["dimension"] == dimension]
            [summary] = [
                row
                for row in found.summary
                if (row["split"], row["dimension"]) == (split, dimension)
            ]
            lives = np.array([row["death"] - row["birth"] for row in rows])
            shares = lives / lives.sum()
            assert summary["n_points"] == EPOCHS * JUMPS
            assert (summary["n_pairs"], summary["n_essential"]) == (len(rows), 1)
            assert summary["total_persistence"] == pytest.approx(lives.sum())
            assert summary["max_persistence"] == pytest.approx(lives.max())
            entropy = float(-(shares * np.log(shares)).sum())
            assert summary["persistent_entropy"] == pytest.approx(entropy, abs=1e-12)


def test_points_without_a_finite_loss_are_left_out_and_kept_in_the_table(tmp_path: Path) -> None:
    _, trajectories = planted_trajectories(place(tmp_path), lost=(3, 44))
    found = run_topology(place(tmp_path), trajectories, K)
    without = [row for row in found.points if row["epoch"] >= 1 and row["x"] is None]
    assert [row["val_loss"] for row in without] == [math.inf] * 2
    assert {row["n_points"] for row in found.summary} == {EPOCHS * JUMPS - 2}
    _, trajectories = planted_trajectories(place(tmp_path), lost=tuple(range(3, EPOCHS * JUMPS)))
    with pytest.raises(InputError, match="too few points have a finite loss: expected 4 or more"):
        run_topology(place(tmp_path), trajectories, K)


def test_weights_are_read_by_blocks(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 23)).astype(np.float32)
    sources = [place(tmp_path / f"{i}.npy") for i in range(5)]
    for source, vector in zip(sources, vectors, strict=True):
        vector.flags.writeable = False
        write_weights(source, vector)
        assert np.array_equal(np.load(source.path, allow_pickle=False), vector)
    blocks = list(weight_blocks(sources, 4 * 5 * 10))
    assert [block.shape for block in blocks] == [(5, 10), (5, 10), (5, 3)]
    assert np.array_equal(np.concatenate(blocks, axis=1), vectors)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "a whole vector of float32"),
        (lambda path: path.write_bytes(b"nothing of ours"), r"a \.npy file"),
        (lambda path: np.save(path, np.zeros(22, np.float32)), "expected 23 values"),
        (lambda path: np.save(path, np.zeros(23)), "got float64"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, damage, told: str) -> None:
    sources = [place(tmp_path / f"{i}.npy") for i in range(3)]
    for source in sources:
        write_weights(source, np.ones(23, np.float32))
    damage(tmp_path / "2.npy")
    with pytest.raises(InputError, match=rf"2\.npy: .*{told}"):
        list(weight_blocks(sources))


# -- the stage, in this process --


def stage_study(folder: Path, **changed: object) -> Study:
    raw = tiny_raw(folder)
    raw["training"] |= {"epochs": 2}
    raw["runs"] = {"a": {}, "b": {"training": {"lr": 0.2}}, "apart": {}}
    return resolved_study(raw | {"jump": SETTINGS | {"runs": ["a", "b"]} | changed}, "tiny")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stage asks of Ray, done in this process."""
    found: list[str] = []

    @contextmanager
    def sampled(study, out, trajectories, state):
        found.append(f"sample {trajectories[0].run} {len(trajectories)}")
        future: Future[None] = Future()
        try:
            sample_trajectories(study, load_data(study.data), trajectories, out, ALONE)
            future.set_result(None)
        except RuntimeError as error:
            future.set_exception(error)
        yield future

    def fanned_out(function, batches):
        for call in (call for batch in batches for call in batch):
            found.append(f"embed {call.key}")
            try:
                yield Outcome(call.key, function(*call.arguments), None)
            except InputError as error:
                yield Outcome(call.key, None, str(error))

    monkeypatch.setattr(jumps, "study_session", lambda study: nullcontext())
    monkeypatch.setattr(jumps, "fan_out", fanned_out)
    monkeypatch.setattr(training, "sampled_trajectories", sampled)
    monkeypatch.setattr(training, "waited_for", lambda study, n_workers: None)
    return found


def made_jumps(study: Study, out: Path) -> list[str]:
    with ExitStack() as ray:
        return make_jumps(Session(study, place(out), lambda *_: None), ray)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = stage_study(tmp_path)
    for name in ("a", "b"):
        train_run(study, name, load_data(study.data), place(tmp_path / "out"), ALONE)
    return study


def written(out: Path) -> dict[str, int]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files}


def test_the_stage_makes_three_tables_and_skips_what_is_done(
    study: Study, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "out"
    assert made_jumps(study, out) == []
    assert asked == ["sample a 5", "sample b 5", "embed a", "embed b"]
    schemas = dict(zip(TABLES, (JUMP, JUMP_DIAGRAMS, JUMP_SUMMARY), strict=True))
    tables = {n: read_table(place(out / f"{n}.parquet"), schemas[n]).to_pylist() for n in TABLES}
    keys = {(row["run"], row["seed"], row["step"], row["epoch"]) for row in tables["jump"]}
    assert len(keys) == len(tables["jump"]) == 2 * (1 + 4 * 4)
    assert {row["run"] for row in tables["jump"]} == {"a", "b"}
    assert len(tables["jump_summary"]) == 2 * 2 * 2
    assert sum(row["n_pairs"] for row in tables["jump_summary"]) == len(tables["jump_diagrams"])
    before = written(out)
    asked.clear()
    assert made_jumps(study, out) == []
    assert asked == []
    assert written(out) == before


def test_other_settings_make_again_only_what_they_make(
    study: Study, tmp_path: Path, asked: list[str]
) -> None:
    out = tmp_path / "out"
    made_jumps(study, out)
    asked.clear()
    made_jumps(stage_study(tmp_path, k=3), out)
    assert asked == ["embed a", "embed b"]
    asked.clear()
    made_jumps(stage_study(tmp_path, seeds=[0, 1, 2]), out)
    assert asked == ["sample a 2", "sample b 2", "embed a", "embed b"]
    asked.clear()
    weights_file(place(out), Trajectory("b", 1, 1.0, 3), 2)
    Path(weights_file(place(out), Trajectory("b", 1, 1.0, 3), 2).path).unlink()
    before = {name: (out / f"{name}.parquet").read_bytes() for name in TABLES}
    made_jumps(stage_study(tmp_path, seeds=[0, 1, 2]), out)
    # the same bits again: nothing to embed anew
    assert asked == ["sample b 1"]
    assert {name: (out / f"{name}.parquet").read_bytes() for name in TABLES} == before
    asked.clear()
    made_jumps(stage_study(tmp_path, weight_decay=0.0), out)
    assert asked == ["sample a 5", "sample b 5", "embed a", "embed b"]


def test_a_run_that_fails_does_not_keep_the_others(
    study: Study, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = sample_trajectories

    def failing(study, data, trajectories, *rest):
        if trajectories[0].run == "a":
            raise RuntimeError("no luck")
        real(study, data, trajectories, *rest)

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "sample_trajectories", failing)
        assert made_jumps(study, out) == ["run a: jump failed: RuntimeError: no luck"]
    assert asked == ["sample a 5", "sample b 5", "embed b"]
    asked.clear()
    assert made_jumps(study, out) == []
    assert asked == ["sample a 5", "embed a", "embed b"]
    asked.clear()
    (out / "checkpoints/run=b/last.pt").unlink()
    (out / "checkpoints/run=b/epoch=00002.pt").unlink()
    [problem] = made_jumps(study, out)
    assert problem.startswith("run b: jump: ")
    assert "jumps need the weights of epoch 2" in problem


def test_a_run_that_diverges_is_told(study: Study, tmp_path: Path, asked: list[str]) -> None:
    wild = stage_study(tmp_path, lr=1e30)
    problems = made_jumps(wild, tmp_path / "out")
    told = "jump: trajectories: too few points have a finite loss: expected 4 or more, got 0"
    assert [problem.partition(". ")[0] for problem in problems] == [
        f"run a: {told}",
        f"run b: {told}",
    ]
    assert asked[-2:] == ["embed a", "embed b"]
    rows = read_table(place(tmp_path / "out/jump.parquet"), JUMP)
    assert len(rows) == 0


def test_too_few_points_are_refused(tmp_path: Path) -> None:
    check_jump(stage_study(tmp_path, seeds=[0], steps=[1.0], epochs=4))
    with pytest.raises(InputError, match="too few points: expected 4 or more, got 3"):
        check_jump(stage_study(tmp_path, seeds=[0], steps=[1.0], epochs=3))


# -- and under Ray --


@pytest.mark.cluster
def test_a_killed_worker_costs_only_the_epoch_at_work(tmp_path: Path) -> None:
    raw = tiny_raw(tmp_path)
    raw["training"] |= {"epochs": 1}
    raw["jump"] = SETTINGS | {"epochs": 80}
    # more trajectories at once than there is room for
    raw["resources"] = {"device": "cpu", "parallel_runs": 4}
    raw["resources"] |= {"local_cpus": 2, "object_store_mb": 100}
    path, log, out = tmp_path / "study.yaml", tmp_path / "log", tmp_path / "out"
    path.write_text(yaml.safe_dump(raw))
    # the same weights twice, and what is to come of them without Ray
    study, plain = read_study(path), place(tmp_path / "plain")
    data = load_data(study.data)
    for target in (place(out), plain):
        open_results(study, target)
        train_run(study, "only", data, target, ALONE)
    asked = run_trajectories(study, "only")
    sample_trajectories(study, data, asked, plain, ALONE)
    process = start(["jump", str(path), "--out", str(out)], log)
    second = Path(trajectory_folder(place(out), asked[2]).path)
    wait_until(lambda: (second / "epoch=00003.npy").exists(), process)
    done = {name: time for name, time in written(out / "jump").items() if "step=0.0" in name}
    [victim, *_] = workers(process, "RayTrainWorker")
    victim.send_signal(signal.SIGKILL)
    finish(process, log)
    assert {name: written(out / "jump")[name] for name in done} == done
    for trajectory in asked:
        ours, theirs = (Path(trajectory_folder(o, trajectory).path) for o in (place(out), plain))
        names = {file.name for file in theirs.iterdir()}
        assert {file.name for file in ours.iterdir()} == names
        assert [n for n in names if (ours / n).read_bytes() != (theirs / n).read_bytes()] == []
    assert n_recorded(place(out), "only") == 1 + 4 * 81
    summary = read_table(place(out / "jump_summary.parquet"), JUMP_SUMMARY).to_pylist()
    assert {row["n_points"] for row in summary} == {4 * 80}
    before = written(out)
    run(["jump", str(path), "--out", str(out)], log)
    assert written(out) == before
