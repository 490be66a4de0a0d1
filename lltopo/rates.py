"""What this machine does a second: a few batches, trees and distances, timed on the spot.

The very functions that the study's tasks will call are timed, on its own data and models; the
fields are random ones on a random graph of the split's size, whose values are all independent:
rougher than a network's losses, and so no cheaper.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lltopo.analysis import field_rows, reference_diagrams, write_field_diagrams
from lltopo.candidates import TILE, search_work
from lltopo.checkpoints import Checkpoint, checkpoint_bytes
from lltopo.data import DataSet, Samples
from lltopo.graph import Graph
from lltopo.graph_files import MadeGraph
from lltopo.loop import Worker, initial_state, recorded_losses, resident, set_up_torch, train_epoch
from lltopo.neighbours import nearest_neighbours
from lltopo.storage import file_size, place
from lltopo.study import Analysis, Run, Study
from lltopo.tables import TREES, Field, LossTable, diagram_file, losses_file, write_losses
from lltopo.threads import N_THREADS

MOST_VERTICES = 100_000
"""Of a graph that is timed; larger ones are taken to cost as much a vertex."""

_SECONDS = 1.0
_FEWEST_SAMPLES = 8
_PAIRS_A_THREAD = 4  # of blocks of rows, so that all cores are at work
_TYPICAL_LABELS = 10
_WORKER_IMPORTS = "import ray.train.torch, lltopo.loop, lltopo.analysis"


class RunRates(NamedTuple):
    """What one run's network costs: seconds a sample, and the bytes of a checkpoint.

    ``activations`` are the bytes that the process grew by while it trained a batch.
    """

    train_s: float
    evaluate_s: float
    checkpoint: int
    activations: int


class FieldRates(NamedTuple):
    """What one field of a split costs.

    Attributes
    ----------
    diagrams_s : float
        Seconds of both trees and their diagrams, with the reading and writing of files.
    distances_s : float
        Seconds of the rows of the series: a distance for each tree and order.
    losses, diagrams : int
        Bytes of the loss table, and of both diagrams.
    """

    diagrams_s: float
    distances_s: float
    losses: int
    diagrams: int


class Rates(NamedTuple):
    """All that a plan multiplies with.

    Attributes
    ----------
    runs, fields : mapping
        Of each run, of each split.
    search_s : float
        Seconds of one unit of `lltopo.candidates.search_work`, all cores at work.
    process_s : float
        Seconds that a process takes to start and load what a worker loads.
    """

    runs: Mapping[str, RunRates]
    fields: Mapping[str, FieldRates]
    search_s: float
    process_s: float


def run_rates(run: Run, data: DataSet) -> RunRates:
    """Time some batches of a run's network, forward and backward, and of its evaluation."""
    training = run.training.model_copy(update={"compile": False})
    plain = run.model_copy(update={"training": training})
    set_up_torch(training)
    worker = Worker(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    state = initial_state(plain, data, worker)
    before = _peak_memory()

    def trained(n: int) -> None:
        train_epoch(state, resident(_first(data.train, n), worker), training, 1, worker)

    def evaluated(n: int) -> None:
        recorded_losses(state, resident(_first(data.train, n), worker), training, worker)

    n_samples = len(data.train.y)
    train_s, evaluate_s = (_seconds_each(work, n_samples) for work in (trained, evaluated))
    states = state.model.state_dict(), state.optimizer.state_dict()
    checkpoint = len(checkpoint_bytes(Checkpoint(*states, 1, "")))
    return RunRates(train_s, evaluate_s, checkpoint, _peak_memory() - before)


def field_rates(n_vertices: int, k: int, analysis: Analysis) -> FieldRates:
    """Time the diagrams and distances of a random field on a random graph of some size.

    Of more than `MOST_VERTICES` the figures are those of so many, in proportion.
    """
    n = min(n_vertices, MOST_VERTICES)
    rng = np.random.default_rng(0)
    edges = np.column_stack([np.repeat(np.arange(n), k), rng.integers(0, n, n * k)])
    made = MadeGraph(Graph.from_edges(n, edges), {}, "")
    with tempfile.TemporaryDirectory() as folder:
        out = place(folder)
        fields = [Field("run", "train", epoch) for epoch in range(2)]
        for field in fields:
            write_losses(out / "losses", field, _random_losses(n, rng))

        def made_diagrams() -> None:
            for field in fields:
                write_field_diagrams(out / "losses", out, field, made, analysis)

        def measured() -> None:
            field_rows(out, fields[0], reference, analysis)

        made_diagrams()  # compiles, as the first `measured` does
        reference = reference_diagrams(out, fields[1], analysis)
        measured()
        diagrams_s = _seconds(made_diagrams) / len(fields)
        distances_s = _seconds(measured)
        losses = file_size(losses_file(out / "losses", fields[0]))
        diagrams = sum(file_size(diagram_file(out, fields[0], tree)) for tree in TREES)
    scale = n_vertices / n
    return FieldRates(
        diagrams_s * scale, distances_s * scale, int(losses * scale), int(diagrams * scale)
    )


def search_rate(features: NDArray[Any], k: int) -> float:
    """Time the exact neighbour search on some rows: seconds of a unit of its work."""
    # b blocks are b (b + 1) / 2 pairs
    rows = features[: TILE * math.ceil(math.sqrt(2 * _PAIRS_A_THREAD * N_THREADS))]
    nearest_neighbours(rows[: k + 2], k, "exact")  # compiles
    seconds = _seconds(lambda: nearest_neighbours(rows, k, "exact"))
    return seconds / search_work(len(rows), len(rows), rows.size // len(rows))


def process_seconds() -> float:
    """Time the start of a process that loads what a worker of Ray loads."""
    command = [sys.executable, "-c", _WORKER_IMPORTS]
    return _seconds(lambda: subprocess.run(command, check=True))


def measured_rates(
    study: Study, data: DataSet | None, samples: Mapping[str, int], features: NDArray[Any]
) -> Rates:
    """Time all that the study's tasks are made of.

    Parameters
    ----------
    study, data
        The study and its samples; None where the losses are given.
    samples
        How many there are of each split.
    features : (n, d) array
        Of the graph, of one split.

    Returns
    -------
    Rates
        Runs whose networks cost the same are timed once.
    """
    known: dict[str, RunRates] = {}
    runs: dict[str, RunRates] = {}
    for name, run in study.runs.items():
        free = {"lr", "momentum", "weight_decay", "milestones", "gamma", "seed", "epochs"}
        cost = run.model_dump_json(exclude={"training": free})
        if data is not None and cost not in known:
            known[cost] = run_rates(run, data)
        runs[name] = known[cost]
    fields = {
        split: field_rates(n, min(study.graph.k, n - 1), study.analysis)
        for split, n in samples.items()
    }
    search_s = search_rate(features, min(study.graph.k, len(features) - 1))
    return Rates(runs, fields, search_s, process_seconds())


def _seconds_each(work: Callable[[int], None], n_samples: int) -> float:
    """Seconds a sample of some work on the first so many, of as many as take about a second."""
    n = min(_FEWEST_SAMPLES, n_samples)
    work(n)  # loads and chooses algorithms
    while True:
        seconds = _seconds(partial(work, n))
        if seconds >= _SECONDS / 2 or n == n_samples:
            return seconds / n
        n = min(n_samples, max(2 * n, int(n * _SECONDS / max(seconds, 1e-3))))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _first(samples: Samples, n: int) -> Samples:
    return Samples(samples.x[:n], samples.y[:n])


def _random_losses(n: int, rng: np.random.Generator) -> LossTable:
    loss = rng.gamma(0.3, size=n).astype(np.float32)
    label, prediction = rng.integers(0, _TYPICAL_LABELS, (2, n)).astype(np.int16)
    return LossTable(loss, label, prediction)


def _peak_memory() -> int:
    """The most bytes that this process has held, where the system tells."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)
