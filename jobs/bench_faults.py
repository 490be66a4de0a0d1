"""Does a lost node leave its mark on a study, and what does it cost?

Three Ray nodes on one machine: a head that runs nothing, and two that do the work. The study of
``tests/test_faults.py`` is run undisturbed; then, as often as asked for, a node is killed at a
random moment while it trains, and later another while it analyzes (each is replaced, as a cluster
launcher would). All results must then be the undisturbed ones, byte for byte. Counted are the
kills survived, the files made again, and the time lost against undisturbed runs before and after,
the replacements' start among it.

    python jobs/bench_faults.py [--kills 10] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
import yaml
from ray.cluster_utils import Cluster

import lltopo

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from processes import finish, rewritten, snapshot, start, wait_until
from test_faults import EPOCHS, RESULTS, STUDY, assert_same_results, at_work

TRAINING = ("RayTrainWorker",)
ANALYSIS = ("write_field_diagrams", "field_rows", "distances_to_later")
N_WORKER_NODES = 2
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Trial(NamedTuple):
    """One study whose nodes were killed."""

    kills: list[str]
    loss_tables_again: int
    diagrams_again: int
    seconds: float


def three_nodes() -> Cluster:
    """A head without processors, and two nodes with two each."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": HEALTH})
    for _ in range(N_WORKER_NODES):
        add_node(cluster)
    return cluster


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)


def works_on(node: Any, titles: tuple[str, ...]) -> bool:
    """Whether a worker of the node is at work on one of these."""
    [raylet] = node.all_processes["raylet"]
    try:
        children = psutil.Process(raylet.process.pid).children(recursive=True)
        lines = [" ".join(child.cmdline()) for child in children]
    except psutil.Error:
        return False  # one has just ended
    return any(f"ray::{title}" in line for title in titles for line in lines)


def kill_one(cluster: Cluster, titles: tuple[str, ...], dice: random.Random) -> Callable[[], bool]:
    """A condition that, where a node is at work on these, kills one such and holds."""

    def killed() -> bool:
        doomed = [node for node in cluster.worker_nodes if works_on(node, titles)]
        if doomed:
            cluster.remove_node(dice.choice(doomed), allow_graceful=False)
        return bool(doomed)

    return killed


def seconds_of(study: Path, out: Path) -> float:
    """How long the study takes undisturbed."""
    before, log = time.perf_counter(), out.with_suffix(".log")
    finish(start(["run", str(study), "--out", str(out)], log), log)
    return time.perf_counter() - before


def n_diagrams(out: Path) -> int:
    """How many diagrams there are."""
    return len(list((out / "diagrams").rglob("part-0.parquet")))


def trial(cluster: Cluster, study: Path, out: Path, dice: random.Random) -> Trial:
    """Run the study and kill a node that trains, then one that analyzes."""
    log = out.with_suffix(".log")
    before = time.perf_counter()
    process = start(["run", str(study), "--out", str(out)], log)
    wait_until(lambda: at_work(out), process)
    time.sleep(dice.uniform(0.0, 1.0))
    at_first = snapshot(out, *RESULTS)
    wait_until(kill_one(cluster, TRAINING, dice), process)
    add_node(cluster)
    # anywhere between here and the last field
    now, last = n_diagrams(out), 2 * 2 * len(STUDY["runs"]) * (EPOCHS + 1)
    moment = dice.uniform(now, max(now, last - 8))
    wait_until(lambda: n_diagrams(out) >= moment, process)
    at_second = snapshot(out, *RESULTS)
    wait_until(kill_one(cluster, ANALYSIS, dice), process)
    add_node(cluster)
    finish(process, log)
    seconds = time.perf_counter() - before
    ended = snapshot(out, *RESULTS)
    again = {name for then in (at_first, at_second) for name in rewritten(then, ended)}
    n_losses = sum(name.startswith("losses") for name in again)
    return Trial(["training", "analysis"], n_losses, len(again) - n_losses, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as scratch:
        study = Path(scratch) / "study.yaml"
        study.write_text(yaml.safe_dump(STUDY))
        cluster = three_nodes()
        try:
            os.environ["RAY_ADDRESS"] = cluster.address
            undisturbed = Path(scratch) / "undisturbed"
            seconds_of(study, undisturbed)  # compiles, and fills the caches of files
            undisturbed_s = [seconds_of(study, Path(scratch) / "before")]
            for i in range(arguments.kills):
                out = Path(scratch) / f"trial{i}"
                trials.append(trial(cluster, study, out, dice))
                assert_same_results(out, undisturbed)
                print(f"{i + 1}: {trials[-1]}", flush=True)
            undisturbed_s.append(seconds_of(study, Path(scratch) / "after"))
        finally:
            cluster.shutdown()
    figures = {
        "kills_survived": sum(len(found.kills) for found in trials),
        "different_files": 0,
        "loss_tables_made_again": sum(found.loss_tables_again for found in trials),
        "diagrams_made_again": sum(found.diagrams_again for found in trials),
        "undisturbed_s": undisturbed_s,
        "seconds": [found.seconds for found in trials],
        "seconds_lost_a_kill": [
            (found.seconds - statistics.mean(undisturbed_s)) / len(found.kills) for found in trials
        ],
        "seed": arguments.seed,
        "cores": os.cpu_count(),
        "versions": {module.__name__: module.__version__ for module in (lltopo, ray)},
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
