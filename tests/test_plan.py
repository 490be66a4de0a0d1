"""What a study will take: tasks counted as the stages have them, times from stub rates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import N_TRAIN, N_VAL, tiny_arrays, tiny_raw

from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.plan import (
    DRIVER_STARTS,
    RAY_STARTS,
    REPORT_STARTS,
    TASK_SECONDS,
    TASK_STARTS,
    TRAIN_STARTS,
    VERIFICATION,
    Machines,
    Plan,
    Sizes,
    makespan,
    planned,
    run_seconds,
    study_fields,
)
from lltopo.rates import FieldRates, Rates, RunRates, field_rates, run_rates, search_rate
from lltopo.storage import place
from lltopo.study import Study
from lltopo.study_files import resolved_study
from lltopo.surfaces import planned_surfaces

SIZES = Sizes({"train": 100, "val": 50}, 64, 10_000)
TWO_CORES = Machines(nodes=1, cpus=2, gpus=0)
START = 4.0


def study_of(tmp_path: Path, **sections: Any) -> Study:
    raw = tiny_raw(tmp_path) | {"runs": {"first": {}, "second": {"training": {"epochs": 5}}}}
    return resolved_study(raw | sections, "test")


def rates_of(study: Study) -> Rates:
    """A tenth of a second a trained sample, a hundredth an evaluated one."""
    runs = {name: RunRates(0.1, 0.01, 1_000_000, 2_000_000) for name in study.runs}
    fields = {"train": FieldRates(2.0, 3.0, 400, 200), "val": FieldRates(1.0, 1.0, 200, 100)}
    return Rates(runs, fields, 1e-9, START)


def plan_of(study: Study, machines: Machines = TWO_CORES) -> Plan:
    return planned(study, study_fields(study), SIZES, rates_of(study), machines)


def work_of(found: Plan) -> dict[str, Any]:
    return {work.name: work for work in found.work}


def test_tasks_are_those_of_the_stages(tmp_path: Path) -> None:
    study = study_of(
        tmp_path,
        analysis={"order": [1, 2], "verify": 4, "distance_matrix": True},
        surface={"runs": ["second"], "epochs": [0, 5], "seeds": [0, 1, 2], "points": 5},
        jump={"runs": ["first"], "seeds": [0, 1], "steps": [0.5], "epochs": 10},
    )
    tasks = {name: work.n_tasks for name, work in work_of(plan_of(study)).items()}
    n_planes = len(planned_surfaces(study, place(tmp_path / "out")))
    assert n_planes == 6
    assert tasks == {
        "graph blocks": 2,
        "training epochs": 3 + 5,
        "diagrams": 2 * (4 + 6),
        "distances": 2 * (4 + 6),
        "verification": 4,
        # of each split, tree and order one for all epochs but the last
        "distance matrix": 2 * 2 * 2 * (4 + 6 - 1),
        "surface rows": 5 * n_planes,
        # the optimum is one
        "jump trajectories": 3,
    }


def test_times_are_sizes_times_rates(tmp_path: Path) -> None:
    study = study_of(tmp_path, analysis={"verify": 1}, surface={"points": 3, "train_samples": 10})
    found = work_of(plan_of(study))
    first, second = (run_seconds(study, run, SIZES, rates_of(study)) for run in study.runs)
    assert first == pytest.approx(3 * 100 * 0.1 + 4 * 150 * 0.01)
    assert second == pytest.approx(5 * 100 * 0.1 + 6 * 150 * 0.01)
    assert found["training epochs"].seconds == pytest.approx(first + second)
    assert found["diagrams"].seconds == pytest.approx(10 * 2.0 + 10 * 1.0)
    assert found["distances"].seconds == pytest.approx(10 * 3.0 + 10 * 1.0)
    assert found["verification"].seconds == pytest.approx(VERIFICATION * 70 / 20)
    # two planes of nine points; ten training samples and all the others
    assert found["surface rows"].seconds == pytest.approx(2 * 9 * 60 * 0.01)


def test_bytes_are_those_of_all_that_is_written(tmp_path: Path) -> None:
    found, longer = (
        work_of(plan_of(study_of(tmp_path, runs={"only": {"training": {"epochs": n}}})))
        for n in (9, 19)
    )
    more = {name: longer[name].written - work.written for name, work in found.items()}
    assert more["graph blocks"] == 0
    assert more["diagrams"] == 10 * (200 + 100)
    # tables, what goes with them, and the checkpoint once more
    assert 10 * 1_000_600 < more["training epochs"] < 10 * 1_010_000


def test_runs_share_places_in_their_turn() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert makespan([1.0, 1.0, 1.0, 3.0], 2) == 4.0
    assert makespan([], 2) == 0.0


def test_time_is_of_places_and_starts(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    longest = run_seconds(study, "second", SIZES, rates_of(study))
    starts = DRIVER_STARTS + RAY_STARTS + TRAIN_STARTS + 2 * TASK_STARTS + REPORT_STARTS
    tasks = (30.0 + 40.0 + 2 * 20 * TASK_SECONDS) / 2
    assert plan_of(study).seconds == pytest.approx(starts * START + longest + tasks, rel=1e-3)
    # with cores to spare the diagrams are done beside the training
    many = plan_of(study, Machines(nodes=4, cpus=8, gpus=0)).seconds
    distances = (40.0 + 20 * TASK_SECONDS) / 20
    assert many == pytest.approx(starts * START + longest + distances, rel=1e-3)
    # one run after the other, each with its start
    one = plan_of(study_of(tmp_path, resources={"parallel_runs": 1})).seconds
    shorter = run_seconds(study, "first", SIZES, rates_of(study))
    # and a core beside them for the diagrams
    diagrams = (30.0 + 20 * TASK_SECONDS) / 2
    waits = TRAIN_STARTS * START + shorter - diagrams
    assert one == pytest.approx(plan_of(study).seconds + waits, rel=1e-3)


def test_gpus_are_places_for_runs_and_leave_the_cores_free(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with_gpus = plan_of(study, Machines(nodes=2, cpus=1, gpus=1)).seconds
    without = plan_of(study, Machines(nodes=2, cpus=1, gpus=0)).seconds
    assert without - with_gpus == pytest.approx((30.0 + 20 * TASK_SECONDS) / 2, rel=1e-3)


def test_a_run_without_a_place_is_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, resources={"cpus_per_worker": 3})
    with pytest.raises(InputError, match=r"no place for a run: expected 3 .* got 2\. Give more"):
        plan_of(study)


def test_memory_grows_with_the_data_and_hardly_with_the_epochs(tmp_path: Path) -> None:
    small, long = (
        plan_of(study_of(tmp_path, runs={f"r{i}": {"training": {"epochs": n}} for i in range(k)}))
        for k, n in ((2, 10), (20, 1000))
    )
    assert small.driver_memory < long.driver_memory < 1.4 * small.driver_memory
    assert work_of(small)["diagrams"].memory == work_of(long)["diagrams"].memory
    study = study_of(tmp_path)
    large = planned(
        study,
        study_fields(study),
        Sizes({"train": 10**6, "val": 50}, 64, 10**9),
        rates_of(study),
        TWO_CORES,
    )
    assert work_of(large)["diagrams"].memory > 250 * 10**6
    assert work_of(large)["training epochs"].memory > 2 * 10**9


# -- rates --


def test_a_run_is_timed_on_its_own_data(tmp_path: Path) -> None:
    study = resolved_study(tiny_raw(tmp_path), "test")
    assert study.data.source == "npz"
    rates = run_rates(study.runs["only"], load_data(study.data))
    assert 0 < rates.train_s < 1
    assert 0 < rates.evaluate_s < rates.train_s
    # weights and their momenta
    assert 2 * 4 * (64 * 8) < rates.checkpoint < 20_000


def test_a_field_is_timed_and_its_files_are_weighed(tmp_path: Path) -> None:
    study = resolved_study(tiny_raw(tmp_path), "test")
    small, large = (field_rates(n, 5, study.analysis) for n in (1000, 20_000))
    assert 3.5 * 1000 < small.losses < 10 * 1000
    assert large.losses > 12 * small.losses
    assert large.diagrams > 6 * small.diagrams
    assert small.diagrams_s > 0
    assert small.distances_s > 0


def test_a_search_is_timed_by_its_work() -> None:
    features = np.random.default_rng(0).normal(size=(1500, 64)).astype(np.float32)
    assert 1e-13 < search_rate(features, 10) < 1e-6


# -- the command --


def lltopo(*arguments: str) -> str:
    command = [sys.executable, "-c", "from lltopo.cli import main; main()", "plan", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_plan_tells_of_tasks_bytes_memory_and_time(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    before = sorted(tmp_path.rglob("*"))
    options = ("--nodes", "2", "--gpus", "1", "--cpus", "3", "--json")
    found = json.loads(lltopo(str(tmp_path / "study.yaml"), *options))
    assert found["machines"] == {"nodes": 2, "cpus": 3, "gpus": 1}
    tasks = {work["name"]: work["n_tasks"] for work in found["work"]}
    assert tasks == {"graph blocks": 2, "training epochs": 3, "diagrams": 8, "distances": 8}
    assert found["sizes"]["samples"] == {"train": N_TRAIN, "val": N_VAL}
    assert found["seconds"] > found["rates"]["process_s"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_of_given_losses_trains_nothing(tmp_path: Path) -> None:
    arrays = tiny_arrays()
    np.save(tmp_path / "x.npy", arrays["x_val"])
    np.save(tmp_path / "losses.npy", np.random.default_rng(0).gamma(1.0, size=(7, N_VAL)))
    losses = {"run": {"val": str(tmp_path / "losses.npy")}}
    data = {"source": "losses", "losses": losses, "features": {"val": str(tmp_path / "x.npy")}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"data": data, "graph": {"k": 4}}))
    printed = lltopo(str(tmp_path / "study.yaml"))
    assert "training" not in printed
    [diagrams] = [line for line in printed.splitlines() if "diagrams" in line]
    assert "7" in diagrams
    assert "time on 1 x (" in printed
