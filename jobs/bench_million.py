"""Is a study of a million samples comfortable on one machine?

The rows are real images, each shifted, flipped and cropped at random until there are a million
distinct ones, and projected to the leading principal directions of the originals. `lltopo graph`
then searches their exact nearest neighbours (k = 20), `lltopo train` trains a small perceptron
and records every sample's loss at epochs 0, 1 and 2, and `lltopo analyze` makes trees, diagrams
and distances of them. Measured are each command's seconds, processor's seconds and the peak memory
of all its processes together; some vertices' neighbours are compared with a plain search.

    python jobs/bench_million.py --images FOLDER --out FOLDER [--samples 1000000] [--json FILE]

FOLDER of --images holds CIFAR-10 in the Hugging Face layout; that of --out keeps the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml
from process_family import cpu_seconds, family, memory

import lltopo
from lltopo.data import load_data
from lltopo.study_data import ParquetData

K = 20
EPOCHS = 2
CHECKED = 200  # vertices whose neighbours are searched again
LIMIT_GIB = 12
BLOCK = 10_000


def principal_directions(images: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the flattened images, and the (values, n) directions of most variance."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    mean = flat.mean(axis=0)
    covariance = (flat - mean).T @ (flat - mean) / np.float32(len(flat))
    return mean, np.linalg.eigh(covariance)[1][:, : -n - 1 : -1]


def varied(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image shifted by up to 4 pixels, its edges drawn out, perhaps flipped, perhaps cropped.

    A crop of three quarters is drawn to the whole size, by the nearest pixel.
    """
    n, _, height, width = images.shape
    flipped = np.where(random.random(n)[:, None, None, None] < 0.5, images[..., ::-1], images)
    scale = np.where(random.random(n) < 0.5, 1.0, 0.75)

    def places(length: int) -> np.ndarray:
        shift = random.integers(-4, 5, n) + (1 - scale) * length / 2
        at = scale[:, None] * np.arange(length) + shift[:, None]
        return np.clip(np.rint(at), 0, length - 1).astype(np.int64)

    rows, columns = places(height), places(width)
    each = np.arange(n)[:, None, None]
    moved: np.ndarray = flipped.transpose(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]]
    return moved.transpose(0, 3, 1, 2)


def distinct_rows(images: np.ndarray, labels: np.ndarray, n: int, d: int) -> Any:
    """(n, d) float32 rows, no two of them the same, and (n,) labels."""
    mean, directions = principal_directions(images, d)
    random = np.random.default_rng(0)
    x, y = np.empty((0, d), np.float32), np.empty(0, np.int64)
    while len(x) < n:
        for start in range(0, len(images), BLOCK):
            block = varied(images[start : start + BLOCK], random)
            flat = block.reshape(len(block), -1).astype(np.float32)
            x = np.concatenate([x, (flat - mean) @ directions])
            y = np.concatenate([y, labels[start : start + BLOCK]])
        # the same image moved the same way twice is one sample
        first = np.sort(np.unique(x.view(f"V{4 * d}").ravel(), return_index=True)[1])
        x, y = x[first], y[first]
    return x[:n], y[:n]


def write_study(folder: Path, images: Path, n: int, d: int) -> Path:
    """The rows as a data set of two splits, and a study of them."""
    data = load_data(ParquetData(source="parquet", path=str(images)))
    n_val = max(n // 100, 2 * K)
    x, y = distinct_rows(data.train.x, data.train.y, n, d)
    x_val, y_val = distinct_rows(data.val.x, data.val.y, n_val, d)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_val=x_val, y_val=y_val)
    study = {
        "data": {"source": "npz", "path": str(folder / "data.npz")},
        "graph": {"k": K, "method": "exact"},
        "model": {"name": "mlp", "hidden": [64]},
        "training": {"epochs": EPOCHS, "batch_size": 1024, "lr": 0.05, "milestones": []},
        "runs": {"only": {}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def measured(stage: str, study: Path, out: Path) -> dict[str, float]:
    """Run one stage in processes of its own: wall and processor's seconds, peak GiB of them all."""
    command = [sys.executable, "-m", "lltopo", stage, str(study), "--out", str(out)]
    before = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak, cpu = 0, {}
    while process.poll() is None:
        members = family(process)
        peak = max(peak, sum(map(memory, members)))
        cpu |= {member.pid: seconds for member in members if (seconds := cpu_seconds(member))}
        time.sleep(1.0)
    assert process.returncode == 0, f"{stage}: exit status {process.returncode}"
    wall = time.perf_counter() - before
    return {"seconds": wall, "cpu_seconds": sum(cpu.values()), "peak_gib": peak / 2**30}


def wrong_neighbours(study: Path, out: Path) -> int:
    """How many of some vertices lack a nearest neighbour in the graph, by a plain search."""
    with np.load(study.parent / "data.npz", allow_pickle=False) as arrays:
        x = arrays["x_train"].astype(np.float64)
    with np.load(out / "graph/train.npz", allow_pickle=False) as arrays:
        indptr, indices = arrays["indptr"], arrays["indices"]
    wrong = 0
    for v in np.random.default_rng(1).choice(len(x), min(CHECKED, len(x)), replace=False):
        squared = np.square(x - x[v]).sum(axis=1)
        squared[v] = np.inf
        nearest = np.argpartition(squared, K)[:K]
        wrong += not np.isin(nearest, indices[indptr[v] : indptr[v + 1]]).all()
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=10**6)
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    study = arguments.out / "study.yaml"
    if not study.exists():
        write_study(arguments.out, arguments.images, arguments.samples, arguments.dimensions)
    out = arguments.out / "results"
    stages = {}
    for stage in ("graph", "train", "analyze"):
        stages[stage] = measured(stage, study, out)
        print(stage, json.dumps(stages[stage]), flush=True)
    rows = pq.read_table(out / "series.parquet").to_pylist()
    of_train = [row for row in rows if row["split"] == "train"]
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["epoch"] for row in of_train} == set(range(EPOCHS + 1))
    names = ("tree", "epoch", "n_pairs", "total_persistence", "wasserstein")
    with np.load(out / "graph/train.npz", allow_pickle=False) as arrays:
        n_edges = len(arrays["indices"]) // 2
    figures = {
        "samples": arguments.samples,
        "dimensions": arguments.dimensions,
        "edges": n_edges,
        "vertices_with_wrong_neighbours": wrong_neighbours(study, out),
        "vertices_checked": CHECKED,
        "stages": stages,
        "series": [{name: row[name] for name in names} for row in of_train],
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "versions": {module.__name__: module.__version__ for module in (lltopo, np)},
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    assert figures["vertices_with_wrong_neighbours"] == 0
    assert max(stage["peak_gib"] for stage in stages.values()) < LIMIT_GIB


if __name__ == "__main__":
    main()
