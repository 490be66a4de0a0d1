"""What a study will take: tasks, bytes, memory and time, from measured rates.

The tasks are those that the stages will have. What one takes is a product of its size and a rate
(`rates.py`); what the tasks of a kind take together is divided by the places that the cluster has
for them. Starting processes, which is most of a small study's time, is counted in starts of one
process that loads torch and Ray.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lltopo.candidates import search_work
from lltopo.errors import InputError
from lltopo.jump_files import run_trajectories
from lltopo.neighbour_blocks import TASK_WORK, row_blocks
from lltopo.rates import Rates
from lltopo.study import Study, Surface, jump_epochs, kept_epochs, surface_epochs

# in starts of a process, on two idle cores: how long after its beginning
DRIVER_STARTS = 1.5  # the command line knows its study, and in the end Ray stops,
RAY_STARTS = 2.5  # a Ray of one's own takes tasks,
TRAIN_STARTS = 3.5  # Ray Train is at its first batch,
TASK_STARTS = 1.0  # the first tasks of a kind have their workers,
REPORT_STARTS = 2.5  # and the figures are drawn
# GUDHI and POT take so many times as long as our kernels (jobs/bench_kernels.py)
VERIFICATION = 300.0
TASK_SECONDS = 0.003  # that Ray adds to a task

MIB = 2**20
# of a process with what it has loaded, and of one with torch and Ray Train
TASK_MEMORY = 250 * MIB
WORKER_MEMORY = 700 * MIB
DRIVER_MEMORY = 500 * MIB
FIELD_MEMORY = 4096  # of the driver, for what it knows of a field
VERTEX_MEMORY = 100  # of a task, for the trees of a field
METRICS_BYTES = 2500  # of an epoch's small table
FOOTER_BYTES = 1500  # of any other small one
ROW_BYTES = 50  # of the series or the matrix of distances
POINT_BYTES = 48  # of a surface: coordinates, losses, accuracies


class Sizes(NamedTuple):
    """How large a study's data are.

    Attributes
    ----------
    samples : mapping
        How many there are of each split.
    n_features : int
        Of a sample, for the graph.
    data : int
        Bytes of both splits in memory.
    """

    samples: Mapping[str, int]
    n_features: int
    data: int


class Machines(NamedTuple):
    """So many nodes, each with so many cores and GPUs."""

    nodes: int
    cpus: int
    gpus: int


class Work(NamedTuple):
    """All tasks of one kind.

    Attributes
    ----------
    name : str
    n_tasks : int
    seconds : float
        Of all of them, one after the other in one place.
    written : int
        Bytes that they write, those that are written over included.
    memory : int
        Bytes that one of them holds.
    """

    name: str
    n_tasks: int
    seconds: float
    written: int
    memory: int


class Plan(NamedTuple):
    """What a study takes on some machines: its work, bytes of the driver, seconds to the end."""

    work: list[Work]
    driver_memory: int
    seconds: float


def planned(
    study: Study, fields: Mapping[str, int], sizes: Sizes, rates: Rates, machines: Machines
) -> Plan:
    """Work out what a study will take, from nothing to its report.

    Parameters
    ----------
    study
    fields
        How many fields there are of each split.
    sizes, rates
        Of the data; of this machine, to which the others are taken to be alike.
    machines
        Where it is to run. A GPU counts as one place for a run, at the rate that was measured
        here, whatever that was measured on.

    Raises
    ------
    InputError
        Where there is no place for a run.
    """
    work = [
        _graph_work(study, sizes, rates, machines),
        *_training_work(study, sizes, rates),
        *_analysis_work(study, fields, sizes, rates),
        *_baseline_work(study, sizes, rates),
    ]
    graphs = sum(_graph_bytes(study, n) for n in sizes.samples.values())
    # the search holds the features raw and centred
    search = 2 * 4 * sizes.n_features * max(sizes.samples.values())
    driver = DRIVER_MEMORY + sizes.data + graphs + search + FIELD_MEMORY * sum(fields.values())
    return Plan(work, driver, _wall_seconds(study, work, sizes, rates, machines))


def study_fields(study: Study) -> dict[str, int]:
    """Count the fields of each split that a study which trains will have."""
    n = sum(run.training.epochs + 1 for run in study.runs.values())
    return {"train": n, "val": n}


def run_seconds(study: Study, run: str, sizes: Sizes, rates: Rates) -> float:
    """Return how long a run takes on its workers: each epoch, and the losses after it."""
    training, rate = study.runs[run].training, rates.runs[run]
    once = rate.evaluate_s * sum(sizes.samples.values())
    trained = training.epochs * rate.train_s * sizes.samples["train"]
    return (trained + (training.epochs + 1) * once) / training.workers


def makespan(seconds: Iterable[float], n_places: int) -> float:
    """Return when the last of some jobs ends, each begun in its turn where a place is free."""
    ends = [0.0] * n_places
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def _graph_work(study: Study, sizes: Sizes, rates: Rates, machines: Machines) -> Work:
    samples = sizes.samples.values()
    units = sum(search_work(n, n, sizes.n_features) for n in samples)
    blocks = [row_blocks(n, sizes.n_features, TASK_WORK) for n in samples]
    n_tasks = sum(map(len, blocks)) if machines.nodes > 1 else len(blocks)
    written = sum(_graph_bytes(study, n) for n in samples)
    memory = TASK_MEMORY + 2 * 4 * sizes.n_features * max(samples)
    # a block uses each product once, a whole search twice
    seconds = units * rates.search_s * (2 if machines.nodes > 1 else 1)
    return Work("graph blocks", n_tasks, seconds, written, memory)


def _training_work(study: Study, sizes: Sizes, rates: Rates) -> list[Work]:
    if not study.runs:
        return []
    tables = METRICS_BYTES + sum(rates.fields[split].losses for split in sizes.samples)
    n_epochs = written = 0
    seconds = 0.0
    for name, run in study.runs.items():
        n_recorded = run.training.epochs + 1
        n_epochs += run.training.epochs
        seconds += run_seconds(study, name, sizes, rates) * run.training.workers
        n_checkpoints = n_recorded + len(kept_epochs(study, name))
        written += n_recorded * tables + n_checkpoints * rates.runs[name].checkpoint
    return [Work("training epochs", n_epochs, seconds, written, _worker_memory(sizes, rates))]


def _analysis_work(
    study: Study, fields: Mapping[str, int], sizes: Sizes, rates: Rates
) -> list[Work]:
    analysis, n_fields = study.analysis, sum(fields.values())
    largest = max(sizes.samples.values())
    memory = TASK_MEMORY + VERTEX_MEMORY * largest + _graph_bytes(study, largest)
    diagrams_s = sum(n * rates.fields[split].diagrams_s for split, n in fields.items())
    distances_s = sum(n * rates.fields[split].distances_s for split, n in fields.items())
    written = sum(n * rates.fields[split].diagrams for split, n in fields.items())
    n_rows = 2 * len(analysis.order)
    work = [
        Work("diagrams", n_fields, diagrams_s, written, memory),
        Work("distances", n_fields, distances_s, ROW_BYTES * n_rows * n_fields, TASK_MEMORY),
    ]
    if analysis.verify:
        n_verified = min(analysis.verify, n_fields)
        seconds = VERIFICATION * (diagrams_s + distances_s) * n_verified / n_fields
        work.append(Work("verification", n_verified, seconds, 0, memory))
    if analysis.distance_matrix:
        # a task for each epoch but the last, of each split, tree and order
        n_tasks = n_rows * sum(n - 1 for n in fields.values())
        pairs = {split: n * (n - 1) // 2 for split, n in fields.items()}
        seconds = sum(n * rates.fields[split].distances_s for split, n in pairs.items())
        written = ROW_BYTES * n_rows * sum(pairs.values())
        work.append(Work("distance matrix", n_tasks, seconds, written, TASK_MEMORY))
    return work


def _baseline_work(study: Study, sizes: Sizes, rates: Rates) -> list[Work]:
    memory = _worker_memory(sizes, rates)
    work = []
    if study.surface is not None:
        work.append(_surface_work(study, study.surface, sizes, rates)._replace(memory=memory))
    if study.jump is not None:
        work.append(_jump_work(study, sizes, rates)._replace(memory=memory))
    return work


def _surface_work(study: Study, surface: Surface, sizes: Sizes, rates: Rates) -> Work:
    limits = {"train": surface.train_samples, "val": surface.val_samples}
    evaluated = sum(min(n, limits[split] or n) for split, n in sizes.samples.items())
    planes = {run: len(surface_epochs(study, run)) * len(surface.seeds) for run in study.runs}
    each = surface.points**2 * evaluated
    seconds = sum(n * each * rates.runs[run].evaluate_s for run, n in planes.items())
    n_rows = surface.points * sum(planes.values())
    # a row's file, and its share of the surface
    written = n_rows * (FOOTER_BYTES + 2 * POINT_BYTES * surface.points)
    return Work("surface rows", n_rows, seconds, written, 0)


def _jump_work(study: Study, sizes: Sizes, rates: Rates) -> Work:
    n_trajectories = written = 0
    seconds = 0.0
    for run in (run for run in study.runs if jump_epochs(study, run)):
        rate = rates.runs[run]
        for trajectory in run_trajectories(study, run):
            n_points = trajectory.epochs + 1
            n_trajectories += 1
            seconds += trajectory.epochs * rate.train_s * sizes.samples["train"]
            seconds += n_points * rate.evaluate_s * sum(sizes.samples.values())
            # with its momentum, a checkpoint is twice the weights
            written += n_points * (rate.checkpoint // 2 + rate.checkpoint + METRICS_BYTES)
    return Work("jump trajectories", n_trajectories, seconds, written, 0)


def _wall_seconds(
    study: Study, work: Sequence[Work], sizes: Sizes, rates: Rates, machines: Machines
) -> float:
    """Seconds until the report is there, everything having begun with nothing."""
    by_name = {each.name: each for each in work}
    cpus = machines.nodes * machines.cpus
    places = dict.fromkeys(by_name, cpus)
    for name in ("surface rows", "jump trajectories"):
        places[name] = machines.nodes * (machines.gpus or machines.cpus)
    training, beside = _training_seconds(study, sizes, rates, machines)
    starts = DRIVER_STARTS + RAY_STARTS + REPORT_STARTS
    seconds = training
    for name, each in by_name.items():
        if not each.n_tasks or name == "training epochs":
            continue
        left = each.seconds + TASK_SECONDS * each.n_tasks
        if name == "graph blocks":
            seconds += each.seconds / machines.nodes
            continue
        if name == "diagrams":
            left = max(0.0, left - beside * training)
        seconds += left / min(places[name], each.n_tasks)
        starts += TRAIN_STARTS if name == "jump trajectories" else TASK_STARTS
    return seconds + starts * rates.process_s


def _training_seconds(
    study: Study, sizes: Sizes, rates: Rates, machines: Machines
) -> tuple[float, float]:
    """How long training takes, its start included, and how many cores are free beside it."""
    cpus = float(machines.nodes * machines.cpus)
    if not study.runs:
        return 0.0, cpus
    need = study.resources
    n_workers = max(run.training.workers for run in study.runs.values())
    on_gpus = machines.gpus > 0 and need.device != "cpu"
    there = float(machines.nodes * machines.gpus) if on_gpus else cpus
    each = n_workers * (need.gpus_per_worker if on_gpus else need.cpus_per_worker)
    places = min(math.floor(there / each), need.parallel_runs or len(study.runs), len(study.runs))
    if places < 1:
        raise InputError(
            f"--cpus, --gpus: there is no place for a run: expected {each:g} of them at least, got "
            f"{there:g}. Give more, or lower training.workers."
        )
    start = TRAIN_STARTS * rates.process_s
    seconds = makespan([start + run_seconds(study, r, sizes, rates) for r in study.runs], places)
    return seconds, cpus if on_gpus else cpus - places * each


def _graph_bytes(study: Study, n_samples: int) -> int:
    """Of a graph's arrays, if no edge is found from both its ends."""
    return 8 * n_samples + 2 * 4 * study.graph.k * n_samples


def _worker_memory(sizes: Sizes, rates: Rates) -> int:
    """Of one that trains: the data twice, a model with gradients and optimizer, a batch."""
    model = max((2 * rate.checkpoint for rate in rates.runs.values()), default=0)
    batch = max((rate.activations for rate in rates.runs.values()), default=0)
    return WORKER_MEMORY + 2 * sizes.data + model + batch
