"""How does the analysis scale: with workers, with epochs, with samples?

(a) Throughput of 1 and 2 workers, through the very `fan_out` of ``lltopo analyze``, against as
many bare processes that call the same task in a loop; in turns, for a machine's speed changes, each
round against the bare processes before and after it. (b) 100, 1,000 and 10,000 epochs of 10,000
samples: time a task and the driver's memory. (c) From 50,000 to 1,000,000 samples an epoch: time
and memory of a task against size, on k-nearest-neighbour graphs of points in a cube (k = 20),
whose fields are smooth with noise. (Linux alone tells of a task's memory.)

    TMPDIR=/dev/shm python jobs/bench_scaling.py --out FOLDER [--quick]

writes ``scaling.md``, ``scaling.json`` and ``scaling.png`` there. Thousands of small files are
written below TMPDIR: in memory, for a disk has its moods.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import psutil
import ray
from scipy.spatial import cKDTree

import lltopo
from lltopo.analysis import write_field_diagrams
from lltopo.fanout import Call, fan_out, ray_session, shared
from lltopo.graph import neighbour_graph
from lltopo.graph_files import MadeGraph
from lltopo.storage import Place, place
from lltopo.study import Analysis
from lltopo.tables import Field, LossTable, write_losses

K = 20
ROUNDS = 7
N_TABLES = 20  # distinct loss tables; epochs take turns to be analyzed of them


class Sizes(NamedTuple):
    """How much of everything is measured."""

    throughput: tuple[tuple[int, int], ...]
    epochs: tuple[int, ...]
    epoch_samples: int
    samples: tuple[int, ...]


FULL = Sizes(
    ((10_000, 8_000), (50_000, 3_000)),
    (100, 1_000, 10_000),
    10_000,
    (50_000, 100_000, 200_000, 500_000, 10**6),
)
QUICK = Sizes(((1_000, 20),), (10, 40), 500, (1_000, 4_000))


class Timed(NamedTuple):
    """One task's own seconds, and its processor's seconds."""

    wall_s: float
    cpu_s: float


def made_graph(n: int) -> MadeGraph:
    """The k-nearest-neighbour graph of n points in a cube; exact, by a k-d tree."""
    points = np.random.default_rng(n).random((n, 3)).astype(np.float32)
    indices = cKDTree(points).query(points, K + 1, workers=1)[1][:, 1:].astype(np.int32)
    return MadeGraph(neighbour_graph(indices), {}, f"cube of {n}")


def write_tables(folder: Place, n: int, n_tables: int = N_TABLES) -> None:
    """Loss tables of a field that falls smoothly in the cube, with noise of its own size."""
    random = np.random.default_rng(n)
    points = random.random((n, 3))
    smooth = np.sin(7 * points).sum(axis=1)
    for epoch in range(n_tables):
        loss = np.exp(smooth + random.normal(size=n) - epoch / 10).astype(np.float32)
        write_losses(folder, Field("run", "train", epoch), LossTable(loss, None, None))


def timed_task(losses: Place, out: Place, epoch: int, made: MadeGraph) -> Timed:
    """The task of the analysis, on one of the tables that there are."""
    before, cpu = time.perf_counter(), time.process_time()
    field = Field("run", "train", epoch % N_TABLES)
    write_field_diagrams(losses, out / f"{epoch}", field, made, Analysis())
    wall, cpu = time.perf_counter() - before, time.process_time() - cpu
    return Timed(wall, cpu)


def grown_mib(losses: Place, out: Place, epoch: int, made: MadeGraph) -> float:
    """By how much memory grows while the task is at work."""
    before = resident_mib()
    timed_task(losses, out, epoch, made)
    return peak_mib() - before


def fanned(losses: Place, out: Place, n_epochs: int, made: Any) -> list[Timed]:
    """The tasks of so many epochs, through Ray; each outcome as it came."""
    calls = [Call(epoch, (losses, out, epoch, made)) for epoch in range(n_epochs)]
    found = []
    for outcome in fan_out(timed_task, iter([calls])):
        assert outcome.error is None, outcome.error
        found.append(outcome.value)
    return found


def bare(losses: Place, out: Place, epochs: range, made: MadeGraph, gates: Any) -> None:
    """What a bare process does: the same tasks in a loop, once all are ready."""
    ready, go, done = gates
    timed_task(losses, out / "warm", 0, made)
    ready.release()
    go.wait()
    for epoch in epochs:
        timed_task(losses, out, epoch, made)
    done.release()


def bare_throughput(losses: Place, out: Place, n: int, workers: int, made: MadeGraph) -> float:
    """Epochs a second of bare processes, each with its part of the epochs."""
    context = multiprocessing.get_context("spawn")
    ready, go, done = gates = context.Semaphore(0), context.Event(), context.Semaphore(0)
    parts = [range(n)[i::workers] for i in range(workers)]
    processes = [
        context.Process(target=bare, args=(losses, out, part, made, gates)) for part in parts
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    before = time.perf_counter()
    go.set()
    for _ in processes:
        done.acquire()
    seconds = time.perf_counter() - before
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return n / seconds


def ray_throughput(losses: Place, out: Place, n: int, workers: int, made: MadeGraph) -> float:
    """Epochs a second of Ray's workers."""
    with ray_session(workers, 300, {"PYTHONPATH": str(Path(__file__).parent)}):
        graph = shared(made)
        fanned(losses, out / "warm", 8 * workers, graph)
        before = time.perf_counter()
        fanned(losses, out, n, graph)
        return n / (time.perf_counter() - before)


def throughput(scratch: Place, sizes: Sizes) -> list[dict[str, Any]]:
    """(a): both sides in turn, for each number of workers."""
    rows = []
    for (n, n_epochs), workers in itertools.product(sizes.throughput, (1, 2)):
        made, losses = made_graph(n), scratch / f"throughput{n}"
        write_tables(losses, n)
        out = scratch / f"out{n}-{workers}"
        on_bare = [bare_throughput(losses, out / "bare", n_epochs, workers, made)]
        on_ray = []
        for _ in range(ROUNDS):
            on_ray.append(ray_throughput(losses, out / "ray", n_epochs, workers, made))
            on_bare.append(bare_throughput(losses, out / "bare", n_epochs, workers, made))
        around = [(before + after) / 2 for before, after in itertools.pairwise(on_bare)]
        rows.append(
            {
                "samples": n,
                "workers": workers,
                "bare_epochs_per_s": statistics.median(on_bare),
                "ray_epochs_per_s": statistics.median(on_ray),
                "ratio": statistics.median(r / b for r, b in zip(on_ray, around, strict=True)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def by_epochs(scratch: Place, sizes: Sizes) -> list[dict[str, Any]]:
    """(b): the same task ever more often."""
    made, losses = made_graph(sizes.epoch_samples), scratch / "epochs"
    write_tables(losses, sizes.epoch_samples)
    rows = []
    with ray_session(2, 300, {}):
        graph = shared(made)
        fanned(losses, scratch / "warm", 8, graph)
        for n_epochs in sizes.epochs:
            before, cpu = time.perf_counter(), time.process_time()
            found = fanned(losses, scratch / f"epochs{n_epochs}", n_epochs, graph)
            wall, cpu = time.perf_counter() - before, time.process_time() - cpu
            rows.append(
                {
                    "epochs": n_epochs,
                    "task_cpu_s": statistics.median(timed.cpu_s for timed in found),
                    "epochs_per_s": n_epochs / wall,
                    "driver_cpu_ms_an_epoch": 1000 * cpu / n_epochs,
                    "driver_mib": psutil.Process().memory_info().rss / 2**20,
                }
            )
    return rows


def by_samples(scratch: Place, sizes: Sizes) -> list[dict[str, Any]]:
    """(c): one task at a time in a process of its own, ever larger."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for n in sizes.samples:
        losses = scratch / f"samples{n}"
        write_tables(losses, n, 3)
        made = made_graph(n)
        with context.Pool(1, initializer=warm, initargs=(scratch,)) as pool:
            grown = pool.apply(grown_mib, (losses, scratch / "large", 0, made))
            found = [
                pool.apply(timed_task, (losses, scratch / "large", epoch, made))
                for epoch in range(3)
            ]
        rows.append(
            {
                "samples": n,
                "edges": made.graph.n_edges,
                "task_cpu_s": statistics.median(timed.cpu_s for timed in found),
                "task_mib": grown,
            }
        )
    return rows


def resident_mib() -> float:
    """The memory of this process; `peak_mib` tells of the time from now on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return psutil.Process().memory_info().rss / 2**20


def peak_mib() -> float:
    """The most that the memory of this process has been."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def warm(scratch: Place) -> None:
    """Compile and load all that a task needs."""
    write_tables(scratch / f"warm{os.getpid()}", 200, 1)
    timed_task(scratch / f"warm{os.getpid()}", scratch / "warm", 0, made_graph(200))


def markdown(tables: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Each table, a line at a time."""
    for name, rows in tables.items():
        yield f"\n**{name}**\n"
        yield "| " + " | ".join(rows[0]) + " |"
        yield "| " + " | ".join("--:" for _ in rows[0]) + " |"
        for row in rows:
            numbers = (f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for v in row.values())
            yield "| " + " | ".join(numbers) + " |"


def draw(tables: dict[str, list[dict[str, Any]]], target: Path) -> None:
    """Time and memory against samples and epochs, on logarithmic axes."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        ("samples", "task_cpu_s", "processor seconds a task"),
        ("samples", "task_mib", "MiB a task"),
        ("epochs", "task_cpu_s", "processor seconds a task"),
        ("epochs", "driver_mib", "MiB of the driver"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.4), layout="constrained")
    for ax, (x, y, label) in zip(axes, panels, strict=True):
        ax.loglog([row[x] for row in tables[x]], [row[y] for row in tables[x]], "o-")
        ax.set(xlabel=x, ylabel=label)
        ax.grid(True, which="both", alpha=0.3)
        if x == "epochs":
            middle = statistics.median(row[y] for row in tables[x])
            ax.set_ylim(middle / 10, middle * 10)
    figure.savefig(target, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with tempfile.TemporaryDirectory() as folder:
        scratch = place(folder)
        tables = {
            "workers": throughput(scratch, sizes),
            "epochs": by_epochs(scratch, sizes),
            "samples": by_samples(scratch, sizes),
        }
    versions = {module.__name__: module.__version__ for module in (lltopo, ray, np)}
    about = {"cores": os.cpu_count(), "processor": platform.machine(), "versions": versions}
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = list(markdown(tables))
    print("\n".join(lines))
    (arguments.out / "scaling.md").write_text("\n".join(lines).lstrip() + "\n")
    (arguments.out / "scaling.json").write_text(json.dumps({**tables, **about}, indent=2) + "\n")
    draw(tables, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
