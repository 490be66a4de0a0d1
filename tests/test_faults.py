"""Killed workers and drivers cost only unfinished work, and change no bit of the outcome.

One undisturbed study serves all tests; each of them ends with the very same files.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from processes import (
    DEAD,
    Snapshot,
    finish,
    kill_driver,
    rewritten,
    run,
    snapshot,
    start,
    wait_until,
    workers,
)

from lltopo.analysis import write_field_diagrams
from lltopo.graph_files import graph_file, read_graph
from lltopo.storage import place
from lltopo.study import Analysis
from lltopo.tables import fields_in

EPOCHS = 12
STUDY = {
    "data": {"source": "digits"},
    "graph": {"k": 8},
    "model": {"name": "wideresnet", "depth": 16, "widen_factor": 1},
    "training": {"epochs": EPOCHS, "batch_size": 64, "milestones": [7], "eval_batch_size": 200},
    "runs": {"large": {"training": {"lr": 0.1}}, "small": {"training": {"lr": 0.01}}},
    "analysis": {"order": [1, 2], "contour": True, "distance_matrix": True, "verify": 3},
    # two for the runs, one to spare for the diagrams
    "resources": {"local_cpus": 3, "object_store_mb": 100},
}
RESULTS = ("losses", "diagrams")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.fixture(scope="module")
def undisturbed(study: Path) -> Path:
    out = study.parent / "undisturbed"
    run(["run", str(study), "--out", str(out)], study.parent / "undisturbed.log")
    return out


def assert_same_results(out: Path, undisturbed: Path) -> None:
    ours, theirs = snapshot(out, *RESULTS).content, snapshot(undisturbed, *RESULTS).content
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    names = [f"{name}.parquet" for name in ("series", "correlations", "contours", "distances")]
    # told by name: the difference of two files is nothing to read
    assert [n for n in names if (out / n).read_bytes() != (undisturbed / n).read_bytes()] == []
    assert list(out.rglob("*.partial")) == []
    assert not (out / ".train").exists()


def n_tables(out: Path, run_name: str) -> int:
    return len(list((out / "metrics" / f"run={run_name}").glob("epoch=*/part-0.parquet")))


def at_work(out: Path) -> bool:
    """After the first table of a run and well before its last."""
    return any(1 <= n_tables(out, name) < EPOCHS for name in STUDY["runs"])


def wait_for_another_epoch(out: Path, process: subprocess.Popen[bytes]) -> None:
    seen = {name: n_tables(out, name) for name in STUDY["runs"]}
    wait_until(lambda: any(n_tables(out, name) > seen[name] for name in seen), process)


def assert_only_unfinished_work_again(before: Snapshot, after: Snapshot) -> None:
    """At most one epoch of each run was trained again, no finished field computed again."""
    again = rewritten(before, after)
    for run_name in STUDY["runs"]:
        tables = [name for name in again if name.startswith(f"losses/run={run_name}/")]
        assert len({name.split("/")[3] for name in tables}) <= 1, tables
    assert finished_fields(before, again) == []


def finished_fields(before: Snapshot, names: list[str]) -> list[str]:
    """Those diagrams whose field had both its trees' before."""
    diagrams = [name for name in names if name.startswith("diagrams")]
    return [n for n in diagrams if {swap(n, "join"), swap(n, "split")} <= before.content.keys()]


def swap(name: str, tree: str) -> str:
    return re.sub(r"/tree=\w+/", f"/tree={tree}/", name)


def test_study_runs_side_by_side_with_its_analysis(undisturbed: Path) -> None:
    trained = [path.stat().st_mtime for path in (undisturbed / "losses").rglob("*.parquet")]
    diagrams = [path.stat().st_mtime for path in (undisturbed / "diagrams").rglob("*.parquet")]
    assert min(diagrams) < max(trained), "the analysis waited for the training"
    series = pq.read_table(undisturbed / "series.parquet").to_pylist()
    assert len(series) == 2 * 2 * 2 * (EPOCHS + 1) * 2
    assert {row["status"] for row in series} == {"ok"}
    assert {row["wasserstein"] for row in series if row["epoch"] == EPOCHS} == {0.0}
    assert "raylet" not in (undisturbed.parent / "undisturbed.log").read_text()
    assert (undisturbed / "report.html").stat().st_size > 10_000


def test_rerun_of_a_finished_study_changes_no_file(study: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    started = time.monotonic()
    run(["run", str(study), "--out", str(undisturbed)], study.parent / "rerun.log")
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    assert time.monotonic() - started < 60


@pytest.mark.cluster
@pytest.mark.timeout(600)  # four starts of Ray, and perhaps the undisturbed study, too
def test_interrupted_killed_and_wounded_study_ends_the_same(study: Path, undisturbed: Path) -> None:
    out, log = study.parent / "disturbed", study.parent / "disturbed.log"
    command = ["run", str(study), "--out", str(out)]

    process = start(command, log)
    wait_until(lambda: at_work(out), process)
    process.send_signal(signal.SIGINT)
    finish(process, log, status=130)
    assert "go on with" in log.read_text()
    interrupted = snapshot(out, *RESULTS)

    process = start(command, log)
    wait_for_another_epoch(out, process)
    time.sleep(random.uniform(0.0, 0.3))
    assert at_work(out)
    kill_driver(process)
    killed = snapshot(out, *RESULTS)
    assert_only_unfinished_work_again(interrupted, killed)

    process = start(command, log)
    wait_for_another_epoch(out, process)
    time.sleep(random.uniform(0.0, 0.3))
    assert at_work(out)
    victims = workers(process, "RayTrainWorker")
    wounded = snapshot(out, *RESULTS)
    random.choice(victims).kill()
    finish(process, log)
    assert_only_unfinished_work_again(killed, wounded)
    assert_only_unfinished_work_again(wounded, snapshot(out, *RESULTS))
    assert_same_results(out, undisturbed)


def test_damaged_files_are_made_again(study: Path, undisturbed: Path) -> None:
    out = study.parent / "damaged"
    shutil.copytree(undisturbed, out)
    diagram = out / "diagrams/run=small/split=train/tree=join/epoch=00003/part-0.parquet"
    diagram.write_bytes(diagram.read_bytes()[:100])
    (out / "graph/val.npz").write_bytes(b"PK\x03\x04 cut short")
    os.truncate(out / "series.parquet", 200)
    (out / f"losses/run=small/.part-0.parquet.{DEAD}.{0:032x}.partial").write_bytes(b"half")
    run(["run", str(study), "--out", str(out)], study.parent / "damaged.log")
    assert_same_results(out, undisturbed)
    assert (out / "graph/val.npz").read_bytes() == (undisturbed / "graph/val.npz").read_bytes()


def test_altered_diagram_fails_verification(study: Path, undisturbed: Path) -> None:
    out, log = study.parent / "altered", study.parent / "altered.log"
    shutil.copytree(undisturbed, out)
    path = out / "diagrams/run=small/split=train/tree=split/epoch=00004/part-0.parquet"
    table = pq.read_table(path, partitioning=None)
    death = table["death"].to_numpy().copy()
    death[1] = np.nextafter(death[1], np.inf)
    column = table.schema.field("death")
    pq.write_table(table.set_column(1, column, [death]), path)
    (out / "series.parquet").unlink()
    arguments = ["run", str(study), "--out", str(out), "--set", "analysis.verify=1000"]
    printed = run(arguments, log, status=1)
    assert "verification" in printed
    assert "tree=split/epoch=00004" in printed
    assert not (out / "series.parquet").exists()


def test_killed_analysis_worker(tmp_path: Path) -> None:
    random_ = np.random.default_rng(0)
    n, epochs = 3000, 24
    np.save(tmp_path / "features.npy", random_.normal(size=(n, 4)).astype(np.float32))
    np.save(tmp_path / "losses.npy", random_.gamma(1.0, size=(epochs, n)).astype(np.float32))
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ["analyze", "--losses", f"val={tmp_path}/losses.npy", "--features"]
    arguments += [f"val={tmp_path}/features.npy", "--set", "analysis.contour=true"]
    process = start([*arguments, "--out", str(out)], log)
    victims = []

    def caught() -> bool:
        n_diagrams = len(list((out / "diagrams").rglob("part-0.parquet")))
        if n_diagrams:
            victims[:] = workers(process, "write_field_diagrams")
        assert n_diagrams < 2 * epochs, "all diagrams were done before a worker was caught"
        return bool(victims)

    wait_until(caught, process)
    before = snapshot(out, "diagrams")
    victims[0].kill()
    finish(process, log)
    after = snapshot(out, "diagrams")
    assert finished_fields(before, rewritten(before, after)) == []
    undisturbed, analysis = place(tmp_path / "undisturbed"), Analysis(contour=True)
    made = read_graph(graph_file(place(out), "val"))
    for field in fields_in(place(out / "losses")):
        write_field_diagrams(place(out / "losses"), undisturbed, field, made, analysis)
    assert after.content == snapshot(tmp_path / "undisturbed", "diagrams").content
    assert len(after.content) == 2 * epochs
    assert len(pq.read_table(out / "series.parquet")) == 2 * epochs
