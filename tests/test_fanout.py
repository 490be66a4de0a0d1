"""Tasks on a real Ray: tried three times, in turns, bounded in flight, one copy of what is shared.

The functions stand in for the analysis; what becomes of a study whose tasks fail is asked of the
very stages that run it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import typer

from lltopo import cli, session, stages
from lltopo.analysis import write_field_diagrams
from lltopo.fanout import Call, Outcome, fan_out, ray_session, shared
from lltopo.graph_files import MadeGraph
from lltopo.storage import Place, place
from lltopo.study import Analysis
from lltopo.study_files import resolved_study
from lltopo.tables import Field

MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def two_workers() -> Iterator[None]:
    # where the workers find the functions below
    with ray_session(2, 200, {"PYTHONPATH": str(Path(__file__).parent)}):
        yield


def noted(notes: Path, name: str) -> int:
    """Note a try of a call; how many there have been."""
    with (notes / name).open("a") as file:
        file.write("x")
    return (notes / name).stat().st_size


def clumsy(notes: Path, name: str, n_failures: int, how: str) -> str:
    if noted(notes, name) <= n_failures:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"raises": RuntimeError, "runs out of memory": MemoryError}[how](f"no, {name}")
    return name


def outcomes(calls: Sequence[Call]) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcome in fan_out(clumsy, iter([calls]))}


@pytest.mark.parametrize("how", ["raises", "runs out of memory", "dies"])
def test_call_is_tried_three_times_and_ends_alone(tmp_path: Path, how: str) -> None:
    failures = {"never": 0, "twice": 2, "always": 99}
    found = outcomes([Call(name, (tmp_path, name, n, how)) for name, n in failures.items()])
    assert {name: (tmp_path / name).stat().st_size for name in failures} == {
        "never": 1,
        "twice": 3,
        "always": 3,
    }
    assert found["never"] == Outcome("never", "never", None)
    assert found["twice"] == Outcome("twice", "twice", None)
    assert found["always"].value is None
    reason = {
        "raises": "RuntimeError: no, always",
        "runs out of memory": "MemoryError: no, always",
        "dies": "WorkerCrashedError: The worker died unexpectedly",
    }[how]
    assert str(found["always"].error).startswith(reason)


def test_calls_are_drawn_as_places_become_free_and_batches_take_turns() -> None:
    drawn: list[tuple[str, int]] = []
    ended: list[tuple[str, int]] = []

    class Batch(list[Call]):
        def __iter__(self) -> Iterator[Call]:
            for call in super().__iter__():
                drawn.append(call.key)
                yield call

    sizes = {"long": 24, "short": 4, "third": 8}
    batches = (
        Batch(Call((run, epoch), (epoch,)) for epoch in range(n)) for run, n in sizes.items()
    )
    for outcome in fan_out(slowly, batches):
        ended.append(outcome.key)
        # two workers, and as many again in flight
        assert len(drawn) - len(ended) <= 4
    assert sorted(ended) == sorted((run, epoch) for run, n in sizes.items() for epoch in range(n))
    place_of = {key: i for i, key in enumerate(ended)}
    # turn by turn: while three runs wait, each gets a third
    assert place_of["short", 3] < 4 * 3 + 5
    assert place_of["third", 7] < 4 * 3 + 4 * 2 + 5
    assert place_of["long", 23] >= len(ended) - 4


def slowly(epoch: int) -> int:
    time.sleep(0.51)  # too long to be put together with others
    return epoch


def test_short_calls_share_tasks_and_fail_alone(tmp_path: Path) -> None:
    n, failing = 400, {100: "raises", 250: "dies"}
    calls = [
        Call(i, (tmp_path, str(i), 99 if i in failing else 0, failing.get(i, ""))) for i in range(n)
    ]
    found = {o.key: o for o in fan_out(clumsy_in_task, iter([calls]))}
    assert found.keys() == set(range(n))
    assert {i for i in range(n) if found[i].error is not None} == set(failing)
    assert found[100].error == "RuntimeError: no, 100"
    assert str(found[250].error).startswith("WorkerCrashedError")
    tries = np.array([(tmp_path / str(i)).stat().st_size for i in range(n)])
    assert tries[100] == tries[250] == 3
    # those that an error was beside are left alone; those that were lost are done again, once
    again = np.flatnonzero(tries > 1)
    assert tries[again[~np.isin(again, list(failing))]].max(initial=1) <= 2
    assert np.abs(again[again != 100] - 250).max() <= n / 4
    # the first ones alone, until it is known how long they take, then many at once
    assert len({o.value for o in found.values()} - {None}) < n // 4 + len(again)


def clumsy_in_task(notes: Path, name: str, n_failures: int, how: str) -> str:
    clumsy(notes, name, n_failures, how)
    return str(ray.get_runtime_context().get_task_id())


def test_tasks_grow_to_a_second_and_shrink_towards_the_end() -> None:
    n, seconds = 400, 0.02
    found = [o.value for o in fan_out(napping, iter([[Call(i, (seconds,)) for i in range(n)]]))]
    sizes = Counter(found)
    in_order = [sizes[task] for task in dict.fromkeys(found)]
    assert in_order[0] == 1
    assert 30 <= max(in_order) <= 1 / seconds
    # two workers with two tasks each: none is left a whole second's when little else is left
    assert all(size <= 8 for size in in_order[-3:])
    assert sum(in_order) == n


def test_a_quick_batch_does_not_lengthen_the_tasks_of_a_slow_one() -> None:
    batches = [[Call((run, i), (seconds,)) for i in range(40)] for run, seconds in NAPS.items()]
    tasks = {o.key: o.value for o in fan_out(napping, iter(batches))}
    slow = Counter(task for (run, _), task in tasks.items() if run == "slow")
    quick = Counter(task for (run, _), task in tasks.items() if run == "quick")
    assert max(slow.values()) <= 4
    assert max(quick.values()) > 4


NAPS = {"slow": 0.3, "quick": 0.001}


def napping(seconds: float) -> str:
    time.sleep(seconds)
    return str(ray.get_runtime_context().get_task_id())


def seen(array: np.ndarray, n: int) -> tuple[int, bool, int]:
    """Which process this is, whether its array is of the store, and what it holds itself."""
    assert len(array) == n
    total = float(array[:: 4096 // 8].sum())
    assert total == 0.0
    private = psutil.Process().memory_full_info().uss
    time.sleep(1.0)  # long enough for the other worker to take a call
    return os.getpid(), not array.flags.writeable and not array.flags.owndata, private


def test_what_is_shared_is_one_copy_a_node() -> None:
    n = 100 * MIB // 8
    before = store_used()
    array = shared(np.zeros(n))
    found = [o.value for o in fan_out(seen, iter([[Call(i, (array, n)) for i in range(8)]]))]
    assert 100 * MIB <= store_used() - before < 110 * MIB
    assert len({pid for pid, _, _ in found}) == 2
    assert all(in_store for _, in_store, _ in found)
    # each has read every page of it, and none has a page of its own
    little = [o.value for o in fan_out(held, iter([[Call(i, ()) for i in range(8)]]))]
    assert max(private for *_, private in found) < max(little) + 20 * MIB


def held() -> int:
    return int(psutil.Process().memory_full_info().uss)


def store_used() -> float:
    total = ray.cluster_resources()["object_store_memory"]
    return float(total - ray.available_resources().get("object_store_memory", 0.0))


# -- a study --


def failing_diagrams(
    losses: Place, out: Place, field: Field, made: MadeGraph, analysis: Analysis
) -> object:
    """The true function, but for two fields."""
    if field == Field("first", "val", 2):
        raise ValueError(f"epoch {field.epoch} is cursed")
    if field == Field("second", "val", 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return write_field_diagrams(losses, out, field, made, analysis)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, object]:
    random = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", random.normal(size=(60, 3)).astype(np.float32))
    files = {}
    for run in ("first", "second"):
        np.save(tmp_path / f"{run}.npy", random.gamma(1.0, size=(4, 60)).astype(np.float32))
        files[run] = {"val": str(tmp_path / f"{run}.npy")}
    features = {"val": str(tmp_path / "features.npy")}
    return {
        "data": {"source": "losses", "losses": files, "features": features},
        "graph": {"k": 5},
    }


def test_epoch_that_fails_three_times_is_told_of_and_the_rest_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raw: dict[str, object],
) -> None:
    monkeypatch.setattr(stages, "write_field_diagrams", failing_diagrams)
    study, out = resolved_study(raw, "test"), tmp_path / "out"
    with pytest.raises(typer.Exit) as ended:
        cli._carry_out(study, place(out), ("analyze", "report"))
    assert ended.value.exit_code == 1
    printed = capsys.readouterr().out
    assert "failed: first, val, epoch 2: ValueError: epoch 2 is cursed" in printed
    assert "failed: second, val, epoch 3: WorkerCrashedError" in printed
    rows = pq.read_table(out / "series.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 4
    failed = {(row["run"], row["epoch"]): row["reason"] for row in rows if row["status"] != "ok"}
    assert failed.keys() == {("first", 2), ("second", 3)}
    assert failed["first", 2] == "ValueError: epoch 2 is cursed"
    assert {row["status"] for row in rows} == {"ok", "failed"}
    page = (out / "report.html").read_text()
    assert "epoch 2 is cursed" in page
    assert "WorkerCrashedError" in page
    # once nothing stands in its way, the same command does what was left, and no more
    kept = {p: p.stat().st_mtime_ns for p in (out / "diagrams").rglob("*.parquet")}
    monkeypatch.setattr(stages, "write_field_diagrams", write_field_diagrams)
    problems = stages.run_stages(
        session.Session(study, place(out), lambda *_: None), ("analyze", "report")
    )
    assert problems == []
    rows = pq.read_table(out / "series.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((out / "diagrams").rglob("*.parquet"))) == len(kept) + 4
