"""The surface stage: which rows are computed, what a killed job leaves, and what is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from processes import kill_driver, start, wait_until
from tiny import tiny_raw

from lltopo import fanout, surface_comparison, surfaces
from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.fanout import Call, Need, Outcome
from lltopo.loop import Worker, train_run
from lltopo.opening import open_results
from lltopo.session import Session
from lltopo.storage import place
from lltopo.study_files import resolved_study
from lltopo.surface_files import PlaneKey, read_surface, surface_attributes
from lltopo.surface_topology import surface_diagrams
from lltopo.surfaces import make_surfaces, planned_surfaces

SURFACE = {"points": 5, "extent": 0.5, "seeds": [0, 4], "epochs": [1, 2]}
RUNS = {"large": {}, "small": {"training": {"lr": 0.01}}}


def raw_study(folder: Path, **surface: Any) -> dict[str, Any]:
    raw = tiny_raw(folder)
    raw["training"] |= {"epochs": 2}
    return raw | {"runs": RUNS, "surface": SURFACE | surface}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny data and two trained runs, their checkpoints kept."""
    folder = tmp_path_factory.mktemp("surfaces")
    study = resolved_study(raw_study(folder), "tiny")
    open_results(study, place(folder / "out"))
    data = load_data(study.data)
    threads = torch.get_num_threads()
    for name in study.runs:
        train_run(study, name, data, place(folder / "out"), Worker(0, 1, torch.device("cpu")))
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    return folder


class Fanned:
    """What stands in for Ray: calls carried out here and now, and noted down."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[tuple[PlaneKey, int]] = []
        self.distances: list[Any] = []
        self.needs: list[Need] = []
        self._stop_after = stop_after

    def fan_out(
        self, function: Callable[..., Any], batches: Iterator[list[Call]], *need: Need
    ) -> Iterator[Outcome]:
        self.needs += need
        for call in (call for batch in batches for call in batch):
            if len(self.rows) == self._stop_after:
                raise KeyboardInterrupt
            if function is surfaces.write_row:
                self.rows.append(call.key)
            else:
                self.distances.append(call.key)
            try:
                yield Outcome(call.key, function(*call.arguments), None)
            except ValueError as error:
                yield Outcome(call.key, None, f"{type(error).__name__}: {error}")


@pytest.fixture
def fanned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fanned]]:
    """Replaces Ray by a `Fanned`; leaves torch as it was."""
    threads = torch.get_num_threads()

    def replaced(stop_after: int | None = None, gpus: float = 0.0) -> Fanned:
        stand_in = Fanned(stop_after)
        for module in (surfaces, surface_comparison):
            monkeypatch.setattr(module, "fan_out", stand_in.fan_out)
            monkeypatch.setattr(module, "study_session", lambda study: nullcontext())
        monkeypatch.setattr(surfaces, "shared", lambda value: value)
        monkeypatch.setattr(fanout, "_nodes", lambda: [{"CPU": 2.0, "GPU": gpus}])
        return stand_in

    yield replaced
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def copied(trained: Path, folder: Path, *, name: str = "out", **surface: Any) -> Session:
    """A copy of the trained runs, as a session with some of its surface section changed."""
    shutil.copytree(trained / "out", folder / name)
    study = resolved_study(raw_study(trained, **surface), "tiny")
    return Session(study, place(folder / name), lambda *_: None)


def made(session: Session) -> list[str]:
    with ExitStack() as ray:
        return make_surfaces(session, ray)


def files(session: Session, pattern: str) -> dict[str, bytes]:
    out = Path(session.out.path)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob(pattern))}


def table(session: Session, name: str) -> list[dict[str, Any]]:
    return pq.read_table(f"{session.out.path}/{name}.parquet").to_pylist()


def test_every_surface_is_made_and_its_middle_is_the_recorded_loss(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path)
    fanned()
    assert made(session) == []
    found = files(session, "*.h5")
    assert list(found) == [
        f"surfaces/run={run}/epoch={epoch:05d}/seed={seed}/surface.h5"
        for run in RUNS
        for epoch in (1, 2)
        for seed in (0, 4)
    ]
    assert files(session, "row=*") == {}
    for plan in planned_surfaces(session.study, session.out):
        surface, key = read_surface(plan.target), plan.key
        metrics = pq.ParquetFile(
            f"{session.out.path}/metrics/run={key.run}/epoch={key.epoch:05d}/part-0.parquet"
        ).read()
        for row in metrics.to_pylist():
            assert surface.loss[row["split"]][2, 2] == row["loss"]
            assert surface.accuracy[row["split"]][2, 2] == pytest.approx(row["accuracy"], rel=1e-12)
        attributes = surface_attributes(plan.target) or {}
        assert {name: attributes[name] for name in key._fields} == key._asdict()
        assert (attributes["n_train"], attributes["n_val"]) == (60, 25)
        assert len(str(attributes["checkpoint"])) == len(str(attributes["settings"])) == 64
        assert surface.x.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]


def test_a_finished_stage_computes_and_writes_nothing(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path)
    fanned()
    made(session)
    out = Path(session.out.path)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    fanned(stop_after=0)
    assert made(session) == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_killed_job_goes_on_with_the_unfinished_rows_alone(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    whole = copied(trained, tmp_path, name="whole")
    undisturbed = fanned()
    made(whole)
    session = copied(trained, tmp_path)
    killed = fanned(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        made(session)
    assert len(files(session, "row=*.parquet")) == 7
    resumed = fanned()
    assert made(session) == []
    assert killed.rows + resumed.rows == undisturbed.rows
    assert len(undisturbed.rows) == len(set(undisturbed.rows)) == 2 * 2 * 2 * 5
    assert files(session, "*.h5") == files(whole, "*.h5")
    for name in ("surfaces", "comparison"):
        assert files(session, f"{name}.parquet") == files(whole, f"{name}.parquet")


def test_rows_that_are_all_there_are_gathered_without_a_task(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    fanned(stop_after=10)
    for plan in planned_surfaces(session.study, session.out):
        data = surfaces._evaluated_data(session.study)
        for row in range(5):
            surfaces.write_row(plan, row, session.study.runs[plan.key.run], data)
    stand_in = fanned()
    assert made(session) == []
    assert stand_in.rows == []
    assert len(files(session, "*.h5")) == 2


def test_damaged_and_foreign_rows_are_computed_again(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    fanned(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        made(session)
    rows = sorted((tmp_path / "out/surfaces/run=large/epoch=00002/seed=0/rows").iterdir())
    assert len(rows) == 5
    rows[1].write_bytes(rows[1].read_bytes()[:-20])
    other = copied(trained, tmp_path, name="other", seeds=[0], epochs=[2], extent=1.0)
    fanned(stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        made(other)
    shutil.copy(tmp_path / "other" / rows[0].relative_to(tmp_path / "out"), rows[0])
    stand_in = fanned()
    made(session)
    assert [row for key, row in stand_in.rows if key.run == "large"] == [0, 1]


@pytest.mark.parametrize("surface", [{"extent": 1.0}, {"points": 3}, {"val_samples": 10}])
def test_other_settings_make_another_surface(
    trained: Path, tmp_path: Path, fanned: Any, surface: dict[str, Any]
) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    fanned()
    made(session)
    before = files(session, "*.h5")
    study = resolved_study(raw_study(trained, **{"seeds": [0], "epochs": [2]} | surface), "tiny")
    made(session._replace(study=study))
    after = files(session, "*.h5")
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_another_seed_leaves_the_surfaces_that_are_there(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    fanned()
    made(session)
    study = resolved_study(raw_study(trained, seeds=[0, 9], epochs=[2]), "tiny")
    stand_in = fanned()
    made(session._replace(study=study))
    assert {key.seed for key, _ in stand_in.rows} == {9}
    assert {row["seed"] for row in table(session, "surfaces")} == {0, 9}


def test_only_the_first_samples_are_evaluated(trained: Path, tmp_path: Path, fanned: Any) -> None:
    limits = {"train_samples": 20, "val_samples": 7}
    session = copied(trained, tmp_path, seeds=[0], epochs=[2], **limits)
    fanned()
    made(session)
    for plan in planned_surfaces(session.study, session.out):
        for split, n in (("train", 20), ("val", 7)):
            losses = pq.ParquetFile(
                f"{session.out.path}/losses/run={plan.key.run}/split={split}/epoch=00002/"
                "part-0.parquet"
            ).read()["loss"]
            # the same bits where whole batches of 20 stay whole
            expected = losses.to_numpy()[:n].mean(dtype=np.float64)
            middle = read_surface(plan.target).loss[split][2, 2]
            assert middle == pytest.approx(float(expected), rel=1e-6)


def test_a_lacking_checkpoint_is_one_clear_line(trained: Path, tmp_path: Path, fanned: Any) -> None:
    session = copied(trained, tmp_path)
    (tmp_path / "out/checkpoints/run=large/epoch=00001.pt").unlink()
    fanned()
    [line] = made(session)
    assert line.startswith("surface of run large, epoch 1: there is no whole checkpoint")
    assert "surface.epochs or training.keep_checkpoints" in line
    keys = {(row["run"], row["epoch"]) for row in table(session, "surfaces")}
    assert keys == {("large", 2), ("small", 1), ("small", 2)}


def test_the_last_checkpoint_serves_for_the_last_epoch(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    for path in (tmp_path / "out/checkpoints").rglob("epoch=*.pt"):
        path.unlink()
    fanned()
    assert made(session) == []
    assert len(files(session, "*.h5")) == 2


def test_a_surface_outlives_its_checkpoint(trained: Path, tmp_path: Path, fanned: Any) -> None:
    session = copied(trained, tmp_path)
    fanned()
    made(session)
    before = files(session, "*.*")
    shutil.rmtree(tmp_path / "out/checkpoints")
    fanned(stop_after=0)
    assert made(session) == []
    assert files(session, "*.*") == {n: b for n, b in before.items() if "checkpoints" not in n}


def test_a_checkpoint_of_other_settings_is_refused(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    session = copied(trained, tmp_path)
    raw = raw_study(trained)
    raw["training"] = raw["training"] | {"lr": 0.5}
    fanned()
    with pytest.raises(InputError, match="belongs to another study"):
        made(session._replace(study=resolved_study(raw, "tiny")))


def test_a_row_that_fails_costs_no_other(
    trained: Path, tmp_path: Path, fanned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    stand_in = fanned()
    real = surfaces.write_row

    def write_row(plan: Any, row: int, *rest: Any) -> None:
        if (plan.key.run, row) == ("large", 3):
            raise ValueError("no memory")
        real(plan, row, *rest)

    monkeypatch.setattr(surfaces, "write_row", write_row)
    assert made(session) == [
        "surface of run large, epoch 2, seed 0, row 3: ValueError: no memory",
    ]
    assert len(stand_in.rows) == 10
    assert len(files(session, "row=*")) == 4
    assert [row["run"] for row in table(session, "surfaces")] == ["small", "small"]
    monkeypatch.setattr(surfaces, "write_row", real)
    again = fanned()
    assert made(session) == []
    assert again.rows == [(PlaneKey("large", 2, 0), 3)]


def test_tasks_ask_for_a_gpu_where_there_is_one(trained: Path, tmp_path: Path, fanned: Any) -> None:
    for gpus, expected in ((0.0, Need(1.0, 0.0)), (4.0, Need(1.0, 1.0))):
        session = copied(trained, tmp_path, name=f"{gpus}", seeds=[0], epochs=[2])
        stand_in = fanned(gpus=gpus)
        made(session)
        assert stand_in.needs[0] == expected


def test_progress_counts_the_rows(trained: Path, tmp_path: Path, fanned: Any) -> None:
    session = copied(trained, tmp_path, seeds=[0], epochs=[2])
    fanned(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        made(session)
    told: list[tuple[str, int, int]] = []
    fanned()
    made(session._replace(notify=lambda job, done, of, note: told.append((job, done, of))))
    rows = [(done, of) for job, done, of in told if job == "surfaces"]
    assert rows == [(done, 10) for done in range(3, 11)]


def test_the_table_sums_up_each_plane(trained: Path, tmp_path: Path, fanned: Any) -> None:
    session = copied(trained, tmp_path)
    fanned()
    made(session)
    rows = table(session, "surfaces")
    assert len(rows) == 2 * 2 * 2 * 2
    for plan in planned_surfaces(session.study, session.out):
        for split, grid in read_surface(plan.target).loss.items():
            [row] = [r for r in rows if r | plan.key._asdict() | {"split": split} == r]
            assert (row["n_points"], row["n_nonfinite"]) == (25, 0)
            assert row["centre"] == grid[2, 2]
            names = ("min", "q25", "median", "q75", "max")
            expected = np.percentile(grid, [0, 25, 50, 75, 100]).tolist()
            assert [row[name] for name in names] == expected
            for tree, dgm in surface_diagrams(grid)._asdict().items():
                total = np.abs(dgm[:, 1] - dgm[:, 0]).sum()
                assert row[f"total_persistence_{tree}"] == pytest.approx(total)
            assert row["cosine"] == (surface_attributes(plan.target) or {})["cosine"]


def test_a_study_without_a_surface_has_none(trained: Path, tmp_path: Path) -> None:
    raw = raw_study(trained)
    del raw["surface"]
    session = Session(resolved_study(raw, "tiny"), place(tmp_path), lambda *_: None)
    assert made(session) == []
    assert planned_surfaces(session.study, session.out) == []


def test_the_middle_of_the_grid_is_the_network_itself(tmp_path: Path) -> None:
    for points in range(3, 120, 2):
        raw = raw_study(tmp_path, points=points, extent=0.7)
        for plan in planned_surfaces(resolved_study(raw, "tiny"), place(tmp_path))[:1]:
            assert plan.axis[points // 2] == 0.0
            assert (plan.axis[0], plan.axis[-1]) == (-0.7, 0.7)
            np.testing.assert_allclose(np.diff(plan.axis), 1.4 / (points - 1))


@pytest.mark.cluster
def test_a_killed_driver_costs_only_unfinished_rows(
    trained: Path, tmp_path: Path, fanned: Any
) -> None:
    limits = {"seeds": [0], "epochs": [2], "points": 31}
    whole = copied(trained, tmp_path, name="whole", **limits)
    fanned()
    made(whole)
    raw = raw_study(trained, **limits)
    raw["resources"] = {"local_cpus": 2, "object_store_mb": 80}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    shutil.copytree(trained / "out", tmp_path / "out")
    arguments = ["surface", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    log = tmp_path / "log"
    process = start(arguments, log)
    out = tmp_path / "out"
    wait_until(lambda: bool(list(out.rglob("row=*.parquet"))), process)
    kill_driver(process)
    assert not list(out.rglob("*.h5"))
    left = {path: path.stat().st_mtime_ns for path in out.rglob("row=*.parquet")}
    assert 0 < len(left) < 62
    process = start(arguments, log)
    # whether a row was written again can be seen only until it is gathered
    seen: dict[Path, int] = {}

    def finished() -> bool:
        for path in left:
            try:
                seen[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        return process.poll() is not None or bool(list(out.rglob("*.h5")))

    wait_until(finished, process)
    assert process.wait(timeout=240) == 0, log.read_text()
    assert seen == left
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.h5"))}
    assert found == files(whole, "*.h5")
