"""How long does the analysis of the whole source thesis take?

2 runs x 200 epochs x training and validation set x both trees: 1,600 trees on graphs of 50,000
and 10,000 vertices and 1,600 exact distances, from Parquet loss tables and ready graphs to
``series.parquet``, through the very stage that ``lltopo analyze`` runs.

The losses are real ones of 12 epochs, interpolated to 200 (geometrically between two epochs, each
sample at its own pace), so that fields and diagrams are of real size; the second run is the first
with the epochs' order of the early half drawn out. Ray's start-up is printed apart: until its
workers, in the same session, have analyzed a study of 100 samples. The kernels are timed where
they run, in processor's seconds; all the rest of what the processors could have done is outside.

    python jobs/bench_thesis.py --losses FOLDER --features train=x.npy --features val=y.npy

FOLDER holds train.npy and val.npy, (epochs, samples) float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow
import ray
from process_family import family, memory

import lltopo
from lltopo import analysis, reduction, stages
from lltopo.diagrams import both_persistence_pairs
from lltopo.distances import wasserstein_distance
from lltopo.fanout import ray_session
from lltopo.session import Session
from lltopo.stages import run_stages
from lltopo.storage import place
from lltopo.study_files import resolved_study
from lltopo.tables import Field, LossTable, write_losses

RUNS = ("first", "second")
EPOCHS = 200
KERNELS = (both_persistence_pairs, wasserstein_distance)
SECONDS = dict.fromkeys((kernel.__name__ for kernel in KERNELS), 0.0)  # of this process


def grown(real: np.ndarray, run: int) -> np.ndarray:
    """(EPOCHS, samples) losses between the real epochs, at each sample's own pace."""
    n_real, n_samples = real.shape
    pace = np.random.default_rng(run).uniform(0.8, 1.25, n_samples) * (1.0 if run == 0 else 1.5)
    logs = np.log(np.maximum(real.astype(np.float64), 2.0**-43))
    tables = np.empty((EPOCHS, n_samples), dtype=np.float32)
    for epoch in range(EPOCHS):
        at = (n_real - 1) * (epoch / (EPOCHS - 1)) ** pace
        low = np.minimum(at.astype(np.int64), n_real - 2)
        samples = np.arange(n_samples)
        part = at - low
        tables[epoch] = np.exp((1 - part) * logs[low, samples] + part * logs[low + 1, samples])
    return tables


def on_clock(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, its processor's seconds added to those of its name in this process."""

    def clocked(*arguments: Any) -> Any:
        before = time.process_time()
        found = kernel(*arguments)
        SECONDS[kernel.__name__] += time.process_time() - before
        return found

    return clocked


def noted(task: Callable[..., Any], *arguments: Any) -> Any:
    """What the task gives, its kernels on the clock, whose state is then left in a file."""
    for kernel in KERNELS:
        setattr(analysis, kernel.__name__, on_clock(kernel))
    try:
        return task(*arguments)
    finally:
        for kernel in KERNELS:
            setattr(analysis, kernel.__name__, kernel)
        note = Path(os.environ["LLTOPO_BENCH_NOTES"]) / f"{os.getpid()}.json"
        note.write_text(json.dumps(SECONDS))


def noted_diagrams(*arguments: Any) -> Any:
    """In place of the task `write_field_diagrams`."""
    return noted(analysis.write_field_diagrams, *arguments)


def noted_rows(*arguments: Any) -> Any:
    """In place of the task `field_rows`."""
    return noted(analysis.field_rows, *arguments)


def kernel_seconds(notes: Path) -> dict[str, float]:
    """The kernels' seconds of all workers until now."""
    found = [json.loads(note.read_text()) for note in notes.glob("*.json")]
    return {kernel.__name__: sum(of[kernel.__name__] for of in found) for kernel in KERNELS}


def start_workers(scratch: Path) -> None:
    """Have Ray's workers analyze a small study: they are then up, with all that they import."""
    folder, features = scratch / "small", np.random.default_rng(0).normal(size=(100, 3))
    np.save(scratch / "small.npy", features.astype(np.float32))
    for epoch in range(1, 9):
        loss = np.random.default_rng(epoch).random(100).astype(np.float32)
        write_losses(place(folder), Field("run", "val", epoch), LossTable(loss, None, None))
    files = {"val": str(scratch / "small.npy")}
    data = {"source": "losses", "losses": str(folder), "features": files}
    study = resolved_study({"data": data}, "bench_thesis")
    out = place(scratch / "small-out")
    run_stages(Session(study, out, lambda *_: None), ("graph", "analyze"))


def peak_memory(stop: threading.Event, peak: list[int]) -> None:
    """Sample the proportional memory of this process and all that it started."""
    own = psutil.Process()
    while not stop.wait(1.0):
        peak[0] = max(peak[0], sum(map(memory, family(own))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--features", action="append", required=True, metavar="SPLIT=FILE.npy")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    splits = dict(text.split("=", 1) for text in arguments.features)
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "losses", Path(scratch) / "out"
        for split in splits:
            real = np.load(arguments.losses / f"{split}.npy")
            for number, run in enumerate(RUNS):
                for epoch, loss in enumerate(grown(real, number), start=1):
                    table = LossTable(loss, None, None)
                    write_losses(place(folder), Field(run, split, epoch), table)
        data = {"source": "losses", "losses": str(folder), "features": splits}
        study = resolved_study({"data": data}, "bench_thesis")
        session = Session(study, place(out), lambda job, done, of, note: None)
        run_stages(session, ("graph",))
        notes = Path(scratch) / "notes"
        notes.mkdir()
        in_workers = {"PYTHONPATH": str(Path(__file__).parent), "LLTOPO_BENCH_NOTES": str(notes)}
        itself = importlib.import_module("bench_thesis")  # by the name that workers know it by
        stages.write_field_diagrams = itself.noted_diagrams
        reduction.field_rows = itself.noted_rows
        stop, peak = threading.Event(), [0]
        watcher = threading.Thread(target=peak_memory, args=(stop, peak))
        start = time.perf_counter()
        with ray_session(None, 512, in_workers):
            start_workers(Path(scratch))
            before = kernel_seconds(notes)
            started = time.perf_counter()
            watcher.start()
            problems = run_stages(session, ("analyze",))
            ended = time.perf_counter()
            stop.set()
            watcher.join()
        assert not problems, problems
        kernels = {name: s - before[name] for name, s in kernel_seconds(notes).items()}
        cores = os.cpu_count() or 1
        wall = ended - started
        figures = {
            "analysis_s": wall,
            "ray_start_s": started - start,
            "kernels_s": kernels,
            "share_outside_kernels": 1 - sum(kernels.values()) / cores / wall,
            "peak_memory_gib": peak[0] / 2**30,
            "driver_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "cores": cores,
            "processor": platform.processor() or platform.machine(),
            "versions": {m.__name__: m.__version__ for m in (lltopo, ray, np, pyarrow)},
        }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
