"""Ray Train around the loop: several workers in one run, and what a failing run leaves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from processes import run

from lltopo import fanout, stages, training
from lltopo.checkpoints import bare, checkpoint_file, read_checkpoint
from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.fanout import Need, fan_out, ray_session
from lltopo.loop import Worker, initial_state, recorded_losses, resident, set_up_torch
from lltopo.session import Session
from lltopo.storage import Place, place
from lltopo.study import run_digest
from lltopo.study_files import read_study, resolved_study
from lltopo.tables import Field, read_losses

STUDY = {
    # neither number is divisible by two workers or by the evaluation's batches
    "data": {"source": "digits", "train_samples": 601, "val_samples": 127},
    "graph": {"k": 5},
    "model": {"name": "convnet", "width": 4},
    "training": {"epochs": 2, "batch_size": 33, "lr": 0.05, "eval_batch_size": 50, "workers": 2},
    "resources": {"local_cpus": 4, "object_store_mb": 100},
}


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training") / "study.yaml"
    runs = {"two": {}, "diverging": {"training": {"lr": 1e30, "workers": 1}}}
    path.write_text(yaml.safe_dump({**STUDY, "runs": runs}))
    run(["run", str(path), "--out", str(path.parent / "out")], path.parent / "log")
    return path


def test_two_workers_record_what_one_would(study_file: Path) -> None:
    study, out = read_study(study_file), place(study_file.parent / "out")
    data = load_data(study.data)
    training = study.runs["two"].training
    worker = Worker(0, 1, torch.device("cpu"))
    threads = torch.get_num_threads()
    set_up_torch(training)
    try:
        state = initial_state(study.runs["two"], data, worker)
        checkpoint = read_checkpoint(checkpoint_file(out, "two", None), run_digest(study, "two"))
        assert checkpoint is not None
        assert checkpoint.epoch == 2
        bare(state.model).load_state_dict(checkpoint.model)
        for split, n in (("train", 601), ("val", 127)):
            table = read_losses(out / "losses", Field("two", split, 2))
            alone = recorded_losses(state, resident(data.split(split), worker), training, worker)
            assert len(table.loss) == n
            assert table.loss.tobytes() == alone.loss.tobytes()
            assert np.array_equal(table.prediction, alone.prediction)
            assert np.array_equal(table.label, data.split(split).y)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def test_two_workers_learn(study_file: Path) -> None:
    losses = place(study_file.parent / "out" / "losses")
    before, after = (read_losses(losses, Field("two", "train", epoch)).loss for epoch in (0, 2))
    assert after.mean() < 0.7 * before.mean()


def test_diverged_run_is_reported_and_the_other_analyzed(study_file: Path) -> None:
    import pyarrow.parquet as pq

    out = study_file.parent / "out"
    rows = pq.read_table(out / "series.parquet").to_pylist()
    status = {(row["run"], row["epoch"]): row["status"] for row in rows}
    assert status["diverging", 0] == "ok"
    assert status["diverging", 2] == "diverged"
    diverged = [row for row in rows if row["status"] == "diverged"]
    assert all(row["n_nonfinite"] > 0 and row["total_persistence"] is None for row in diverged)
    assert all("not finite" in row["reason"] for row in diverged)
    references = {row["reference_epoch"] for row in rows if row["status"] == "ok"}
    assert references == {0, 2}
    assert {status["two", epoch] for epoch in range(3)} == {"ok"}
    assert "diverged" in (out / "report.html").read_text()


def test_rerun_with_a_diverged_run_changes_no_file(study_file: Path) -> None:
    out = study_file.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(["run", str(study_file), "--out", str(out)], study_file.parent / "log")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_folder_that_a_node_does_not_see_is_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = resolved_study({**STUDY, "runs": {"one": {}}}, "test")
    config = {"study": study.model_dump(mode="json"), "run": "one", "out": place(tmp_path)}
    for function in (training._train_worker, training._jump_worker):
        with pytest.raises(InputError, match=f"{tmp_path}: is not seen from the node"):
            function(config)


def test_tables_that_are_nowhere_to_be_seen_are_told_of(tmp_path: Path) -> None:
    study = resolved_study({**STUDY, "runs": {"one": {}, "two": {}}}, "test")
    session = Session(study, place(tmp_path), lambda *_: None)
    trained: Future[None] = Future()
    trained.set_result(None)
    failed: Future[None] = Future()
    failed.set_exception(RuntimeError("no"))
    futures = {"one": trained, "two": failed}
    problems = stages._training_problems(session, futures, {"one": {0, 2}})
    told = "run one: was trained, but 1 of its epochs, 1 the first of them, are not whole in "
    assert problems[0].startswith(f"{told}{tmp_path}")
    assert problems[1] == "run two: training failed: RuntimeError: no"
    assert stages._training_problems(session, {"one": trained}, {"one": {0, 1, 2}}) == []


def test_where_all_runs_fail_it_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = ["run one: training failed: RuntimeError: no such layer"]
    monkeypatch.setattr(stages, "_with_ray", lambda *_: problems.copy())
    monkeypatch.setattr(stages, "study_session", lambda _: nullcontext())
    study = resolved_study({**STUDY, "runs": {"one": {}}}, "test")
    session = Session(study, place(tmp_path), lambda *_: None)
    first, second = stages.run_stages(session, ("graph", "train", "analyze", "report"))
    assert first == problems[0]
    assert "series.parquet: is missing" in second
    problems.clear()
    with pytest.raises(InputError, match=r"series\.parquet: is missing"):
        stages.run_stages(session, ("graph", "train", "analyze", "report"))


def test_of_failed_workers_the_cause_is_told() -> None:
    lost = RuntimeError("Connection closed by peer")
    own = RuntimeError("no such layer")
    wrong = InputError("x.npz: is missing.")
    assert training._told_failure([lost, own, wrong]) is wrong
    assert str(training._told_failure([lost, own])) == "no such layer"
    assert str(training._told_failure([lost])) == "Connection closed by peer"


def test_model_that_does_not_fit_ends_with_status_2(tmp_path: Path) -> None:
    study = {**STUDY, "data": {"source": "npz", "path": str(tmp_path / "flat.npz")}}
    x, y = np.zeros((40, 6), np.float32), np.arange(40) % 2
    np.savez(tmp_path / "flat.npz", x_train=x, y_train=y, x_val=x, y_val=y)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**study, "runs": {"one": {"training": {"workers": 1}}}}))
    log = tmp_path / "log"
    printed = run(["train", str(path), "--out", str(tmp_path / "out")], log, status=2)
    assert "model: convnet does not fit" in printed
    assert "Traceback" not in printed


# -- the trainers, in a process apart --


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    # where the workers find the class below
    with ray_session(2, 100, {"PYTHONPATH": str(Path(__file__).parent)}):
        yield


class Meeting(training._Trainers):
    """Each trainer waits until a second one has begun."""

    def fit(self, needs: dict[str, float], loop: training.Loop, state: Place) -> None:
        if loop.name == "wrong":
            raise InputError(f"wrong: {os.environ['RAY_TRAIN_OF_A_TEST']} is refused.")
        begun = Path(state.path)
        (begun / f"{loop.name}.{os.getpid()}").touch()
        while len(list(begun.iterdir())) < 2:
            time.sleep(0.01)


@contextmanager
def meeting(
    monkeypatch: pytest.MonkeyPatch, state: Path, n_cpus: int, *names: str
) -> Iterator[Mapping[str, Future[None]]]:
    monkeypatch.setattr(training, "_Trainers", Meeting)
    monkeypatch.setattr(fanout, "_nodes", lambda: [{"CPU": n_cpus}])
    runs = {name: {"training": {"workers": 1}} for name in names}
    study = resolved_study({**STUDY, "runs": runs}, "test")
    with training.training_runs(study, place(state), [*runs], place(state)) as futures:
        yield futures


@pytest.mark.usefixtures("ray_here")
def test_runs_train_side_by_side_and_what_one_failed_of_comes_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Train's own settings are those of the driver
    monkeypatch.setenv("RAY_TRAIN_OF_A_TEST", "this")
    with meeting(monkeypatch, tmp_path, 2, "a", "wrong", "b") as futures:
        error = futures["wrong"].exception(60)
        assert [futures[name].result(60) for name in "ab"] == [None, None]
    assert type(error) is InputError
    assert str(error) == "wrong: this is refused."


@pytest.mark.usefixtures("ray_here")
def test_what_is_left_in_the_middle_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(KeyboardInterrupt), meeting(monkeypatch, tmp_path, 1, "a", "b") as futures:
        process = at_work(tmp_path, futures)
        assert not wait(futures.values(), 1).done, "there was no room for both"
        raise KeyboardInterrupt
    process.wait(10)
    # the interpreter would wait for such a thread
    assert [t for t in threading.enumerate() if not t.daemon] == [threading.main_thread()]


@pytest.mark.usefixtures("ray_here")
def test_trainers_that_are_killed_are_told_of_in_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with meeting(monkeypatch, tmp_path, 1, "a") as futures:
        at_work(tmp_path, futures).kill()
        wait(futures.values(), 60)
    study = resolved_study({**STUDY, "runs": {"a": {}}}, "test")
    session = Session(study, place(tmp_path), lambda *_: None)
    [problem] = stages._training_problems(session, futures, {})
    assert problem.startswith("run a: training failed: ActorDiedError: ")
    assert "\n" not in problem


def at_work(state: Path, futures: Mapping[str, Future[None]]) -> psutil.Process:
    """The process in which the first trainer is at work."""
    while not list(state.iterdir()):
        assert not any(future.done() for future in futures.values())
        time.sleep(0.01)
    [begun] = state.iterdir()
    return psutil.Process(int(begun.suffix[1:]))


# -- what a worker takes of the cluster --


def taken(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float, nodes: int = 1, **resources: Any
) -> int:
    """How many of four runs are trained at once in a cluster of nodes of this size."""
    monkeypatch.setattr(fanout, "_nodes", lambda: [{"CPU": cpus, "GPU": gpus}] * nodes)
    runs = {name: {"training": {"workers": 1}} for name in "abcd"}
    study = resolved_study({**STUDY, "runs": runs, "resources": resources}, "test")
    return training.parallel_runs(study, list(runs))


def test_worker_takes_a_gpu_or_a_cpu_and_never_both(monkeypatch: pytest.MonkeyPatch) -> None:
    # GPU nodes may offer no CPU, so that nothing but training is placed on them
    assert taken(monkeypatch, cpus=0, gpus=2) == 2
    assert taken(monkeypatch, cpus=0, gpus=2, gpus_per_worker=0.5) == 4
    assert taken(monkeypatch, cpus=3, gpus=0) == 3
    assert taken(monkeypatch, cpus=3, gpus=2, device="cpu") == 3
    assert taken(monkeypatch, cpus=8, gpus=0, cpus_per_worker=4) == 2
    told = "expected 1 workers with {} CPU of one node each, got {} CPU in all"
    with pytest.raises(InputError, match=told.format(1, 0)):
        taken(monkeypatch, cpus=0, gpus=0)
    # a worker cannot be on two nodes
    assert taken(monkeypatch, cpus=3, gpus=0, nodes=2, cpus_per_worker=2) == 2
    assert taken(monkeypatch, cpus=0, gpus=1, gpus_per_worker=0.4) == 2
    assert taken(monkeypatch, cpus=0, gpus=2, nodes=2, gpus_per_worker=0.4) == 4
    # nor on two GPUs
    assert taken(monkeypatch, cpus=0, gpus=2, gpus_per_worker=0.7) == 2
    with pytest.raises(InputError, match=told.format(24, 32)):
        taken(monkeypatch, cpus=16, gpus=0, nodes=2, cpus_per_worker=24)


def test_cluster_that_starts_its_nodes_at_need_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, cpus=0, gpus=0, device="gpu") == 1
    assert taken(monkeypatch, cpus=0, gpus=1, device="gpu", parallel_runs=3) == 3
    assert taken(monkeypatch, cpus=0, gpus=0, device="cpu", parallel_runs=9) == 4


def test_call_that_takes_a_gpu_takes_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_nodes", lambda: [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 3.0}])
    asked: list[dict[str, Any]] = []

    class Task:
        def options(self, **options: Any) -> None:
            asked.append(options)

    monkeypatch.setattr(fanout.ray, "remote", lambda _: Task())
    for need, slots in ((Need(2.0), 2), (Need(2.0, 0.5), 6)):
        assert list(fan_out(print, iter([]), need)) == []
        assert fanout._slots(need) == slots
    assert [(options["num_cpus"], options["num_gpus"]) for options in asked] == [(2, 0), (0, 0.5)]


def test_what_workers_wait_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {**STUDY, "runs": {"only": {}}, "resources": {"device": "gpu", "gpus_per_worker": 0.5}}
    study = resolved_study(raw, "test")
    monkeypatch.setattr(fanout, "_nodes", lambda: [{"CPU": 4}])
    told = "waiting for 2 x 0.5 GPU of one node: the cluster has 0 GPU as yet"
    assert training.waited_for(study, 2) == told
    monkeypatch.setattr(fanout, "_nodes", lambda: [{"CPU": 4}, {"GPU": 1}])
    assert training.waited_for(study, 2) is None
