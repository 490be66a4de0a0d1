"""The thesis's 7.4 as a number: how far groups of runs lie apart, over what chance alone makes."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lltopo import schemas, surface_comparison, tables
from lltopo.distances import wasserstein_distance
from lltopo.fanout import Outcome
from lltopo.session import Session
from lltopo.storage import place
from lltopo.study_files import resolved_study
from lltopo.surface_comparison import Pairs, contrast, last_planes, write_comparison
from lltopo.surface_files import PlaneKey, Surface, surface_file, write_surface
from lltopo.surface_topology import surface_diagrams

AXIS = np.linspace(-1, 1, 5)
RUNS = {
    "large-0": {},
    "large-1": {"training": {"seed": 1}},
    "small-0": {"training": {"lr": 0.01}},
    "small-1": {"training": {"lr": 0.01, "seed": 1}},
}


def a_study(runs: dict[str, Any] = RUNS, seeds: tuple[int, ...] = (0, 1)) -> Any:
    raw = {
        "data": {"source": "digits"},
        "model": {"name": "mlp"},
        "training": {"epochs": 3, "lr": 0.1},
        "surface": {"seeds": list(seeds)},
        "runs": runs,
    }
    return resolved_study(raw, "planted")


def grid(run: str, seed: int, split: str) -> np.ndarray:
    rng = np.random.default_rng([*map(ord, run + split), seed])
    return rng.random((5, 5)) + (3.0 if run.startswith("small") else 0.0)


def surface_of(loss: dict[str, np.ndarray]) -> Surface:
    return Surface(AXIS, AXIS, loss, {split: np.zeros((5, 5)) for split in loss})


def planted(folder: Path, study: Any) -> tuple[Session, list[PlaneKey]]:
    """A folder with surfaces of random heights and with random diagrams of samples."""
    out = place(folder)
    keys = [PlaneKey(run, 3, seed) for run in study.runs for seed in study.surface.seeds]
    for key in keys:
        loss = {split: grid(key.run, key.seed, split) for split in ("train", "val")}
        write_surface(surface_file(out, key), surface_of(loss), {})
    for run, split, tree in itertools.product(study.runs, ("train", "val"), tables.TREES):
        birth, death = sample_diagram(run, split, tree).T
        content = [birth, death, *[np.zeros(len(birth), np.int32)] * 2, np.zeros(len(birth), bool)]
        target = tables.diagram_file(out, tables.Field(run, split, 3), tree)
        table = pa.table(content, schema=schemas.DIAGRAM)
        tables.write_columns(target, table, {"status": "ok", "losses": run, "graph": split})
    return Session(study, out, lambda *_: None), keys


def sample_diagram(run: str, split: str, tree: str) -> np.ndarray:
    points = np.sort(np.random.default_rng([*map(ord, run + split)]).random((6, 2)), axis=1)
    return points if tree == "split" else points[:, ::-1]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The distances that tasks are asked for, computed here and now."""
    keys: list[Any] = []

    def fan_out(function: Any, batches: Any) -> Any:
        for call in (call for batch in batches for call in batch):
            keys.append(call.key)
            try:
                yield Outcome(call.key, function(*call.arguments), None)
            except Exception as error:
                yield Outcome(call.key, None, str(error))

    monkeypatch.setattr(surface_comparison, "fan_out", fan_out)
    monkeypatch.setattr(surface_comparison, "study_session", lambda study: nullcontext())
    return keys


def rows_of(session: Session, keys: list[PlaneKey]) -> list[dict[str, Any]]:
    with ExitStack() as ray:
        assert write_comparison(session, keys, ray) == []
    return pq.read_table(f"{session.out.path}/comparison.parquet").to_pylist()


def test_ratios_are_mean_distances_over_mean_spreads(tmp_path: Path) -> None:
    rows = rows_of(*planted(tmp_path, a_study()))
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert (row["group_a"], row["group_b"]) == ("large-0, large-1", "small-0, small-1")
        split, tree = row["split"], row["tree"]
        if row["domain"] == "surfaces":
            dgms = {
                (run, seed): getattr(surface_diagrams(grid(run, seed, split)), tree)
                for run in RUNS
                for seed in (0, 1)
            }
            between = [
                wasserstein_distance(dgms[a, seed], dgms[b, seed])
                for a in ("large-0", "large-1")
                for b in ("small-0", "small-1")
                for seed in (0, 1)
            ]
            within = [wasserstein_distance(dgms[run, 0], dgms[run, 1]) for run in RUNS]
        else:
            samples = {run: sample_diagram(run, split, tree) for run in RUNS}
            between = [
                wasserstein_distance(samples[a], samples[b])
                for a in ("large-0", "large-1")
                for b in ("small-0", "small-1")
            ]
            within = [
                wasserstein_distance(samples[f"{name}-0"], samples[f"{name}-1"])
                for name in ("large", "small")
            ]
        assert (row["n_between"], row["n_within"]) == (len(between), len(within))
        assert row["distance"] == pytest.approx(np.mean(between))
        assert row["spread"] == pytest.approx(np.mean(within))
        assert row["ratio"] == pytest.approx(np.mean(between) / np.mean(within))
        assert row["reason"] is None


def test_one_seed_has_no_spread_and_says_so(tmp_path: Path) -> None:
    runs = {name: RUNS[name] for name in ("large-0", "small-0")}
    for row in rows_of(*planted(tmp_path, a_study(runs, seeds=(0,)))):
        assert row["distance"] > 0
        assert row["n_within"] == 0
        assert row["spread"] is None
        assert row["ratio"] is None
        words = {"samples": "one training seed", "surfaces": "one seed of directions"}
        assert row["reason"].startswith(words[row["domain"]])


def test_runs_of_one_group_are_compared_with_none(tmp_path: Path) -> None:
    runs = {name: RUNS[name] for name in ("large-0", "large-1")}
    assert rows_of(*planted(tmp_path, a_study(runs))) == []


def test_each_two_of_three_groups_are_compared(tmp_path: Path, asked: list[Any]) -> None:
    runs = RUNS | {"other": {"training": {"momentum": 0.5}}}
    rows = rows_of(*planted(tmp_path, a_study(runs)))
    couples = list(dict.fromkeys((row["group_a"], row["group_b"]) for row in rows))
    large, small = "large-0, large-1", "small-0, small-1"
    assert couples == [(large, small), (large, "other"), (small, "other")]
    # each pair of runs once a split and tree: a distance within a group serves both couples
    assert len(asked) == 4 * 10


def test_lost_diagrams_are_reasons_not_numbers(tmp_path: Path) -> None:
    session, keys = planted(tmp_path, a_study())
    lost = surface_of({split: grid("x", 0, split) for split in ("train", "val")})
    lost.loss["val"][0, :2] = np.inf
    write_surface(surface_file(session.out, keys[1]), lost, {})
    diagram = tables.diagram_file(session.out, tables.Field("small-1", "train", 3), "join")
    Path(diagram.path).unlink()
    for row in rows_of(session, keys):
        where = (row["domain"], row["split"])
        if where == ("surfaces", "val"):
            words = "run large-0, seed 1: 2 of 25 losses on a plane are not finite"
            assert (row["ratio"], row["reason"]) == (None, words)
        elif (*where, row["tree"]) == ("samples", "train", "join"):
            assert row["ratio"] is None
            assert row["reason"].startswith("run small-1, epoch 3: the samples have no diagram")
        else:
            assert row["ratio"] > 0


def test_a_diverged_run_says_why(tmp_path: Path) -> None:
    session, keys = planted(tmp_path, a_study())
    for tree in tables.TREES:
        target = tables.diagram_file(session.out, tables.Field("small-1", "val", 3), tree)
        table = tables.read_table(target, schemas.DIAGRAM).slice(0, 0)
        tables.write_columns(target, table, {"status": "diverged", "reason": "all is lost"})
    reasons = {
        (row["split"], row["reason"])
        for row in rows_of(session, keys)
        if row["domain"] == "samples"
    }
    assert reasons == {("train", None), ("val", "run small-1: all is lost")}


def test_a_damaged_diagram_is_told_and_tried_again(tmp_path: Path, asked: list[Any]) -> None:
    session, keys = planted(tmp_path, a_study())
    target = Path(tables.diagram_file(session.out, tables.Field("small-1", "val", 3), "join").path)
    whole = target.read_bytes()
    table = pq.read_table(target).drop_columns(["birth"])
    pq.write_table(table.replace_schema_metadata({"status": "ok"}), target)
    with ExitStack() as ray:
        problems = write_comparison(session, keys, ray)
    assert problems
    assert all(problem.startswith("comparison of ") for problem in problems)
    target.write_bytes(whole)
    assert all(row["ratio"] for row in rows_of(session, keys))


def test_the_same_diagrams_are_compared_once(tmp_path: Path, asked: list[Any]) -> None:
    session, keys = planted(tmp_path, a_study())
    rows_of(session, keys)
    target = tmp_path / "comparison.parquet"
    before = target.stat().st_mtime_ns
    asked.clear()
    rows_of(session, keys)
    assert asked == []
    assert target.stat().st_mtime_ns == before
    other = surface_of({split: grid("y", 0, split) for split in ("train", "val")})
    write_surface(surface_file(session.out, keys[0]), other, {})
    rows_of(session, keys)
    assert target.stat().st_mtime_ns != before


def test_the_last_epoch_of_each_run_is_compared() -> None:
    keys = [PlaneKey(run, epoch, seed) for run in "ba" for epoch in (1, 12, 3) for seed in (0, 1)]
    keys.append(PlaneKey("c", 2, 0))
    assert last_planes(keys) == [
        *(PlaneKey(run, 12, seed) for run in "ba" for seed in (0, 1)),
        PlaneKey("c", 2, 0),
    ]


def test_a_spread_of_zero_gives_no_ratio() -> None:
    a, b, c = ("a", 0), ("b", 0), ("b", 1)
    row = contrast("surfaces", Pairs([(a, b)], [(b, c)]), {(a, b): 2.0, (b, c): 0.0})
    assert (row["distance"], row["spread"], row["ratio"]) == (2.0, 0.0, None)
    assert row["reason"] == "the spread is zero: its seeds change nothing"
    row = contrast("samples", Pairs([(a, b)], [(b, c)]), {(a, b): 2.0, (b, c): 0.5})
    assert (row["ratio"], row["reason"]) == (4.0, None)
