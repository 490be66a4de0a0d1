"""Are the kernels faster than what a user could take instead, with the same answers?

Every figure is measured with both sides in one process and one run, after a warm-up; answers are
compared before a time is printed; medians of several rounds, on one core unless said (a solver
stopped at the limit counts as the limit). Real fields, their exact k = 20 graph, real diagrams.

    pip install faiss-cpu topp
    python jobs/bench_kernels.py --losses train.npy --features x_train.npy

train.npy holds (epochs, samples) losses, x_train.npy (samples, d) features. ``--only distances``
runs one section of: neighbours, large, trees, distances, scaling. Expected time on 2 cores:
20 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gudhi
import numpy as np
import psutil
import scipy
from gudhi.clustering.tomato import Tomato
from gudhi.hera import wasserstein_distance as hera_distance
from numba import njit
from scipy.optimize import linear_sum_assignment

import lltopo
from lltopo.diagrams import (
    as_ascending,
    both_persistence_pairs,
    persistence_diagram,
    persistence_pairs,
)
from lltopo.distances import bottleneck_distance, dual_potentials, wasserstein_distance
from lltopo.graph import Graph, knn_graph
from lltopo.neighbours import nearest_neighbours

LIMIT = 60.0
ROUNDS = 5
ROUNDS_OF_TREES = 21


class Figure(NamedTuple):
    """One row of the table: a task, who did it, median seconds, and ours divided into theirs."""

    task: str
    who: str
    seconds: float
    ratio: float


def median_seconds(function: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any]:
    """The median of some rounds after a warm-up, and the answer."""
    answer = function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times), answer


def limited_seconds(function: Callable[[], float]) -> tuple[float, float | None]:
    """Seconds and answer of one call in a process of its own; (LIMIT, None) if it was stopped."""

    def work(pipe: Any) -> None:
        start = time.perf_counter()
        answer = function()
        pipe.send((time.perf_counter() - start, answer))

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there,))
    process.start()
    found: tuple[float, float | None] = (LIMIT, None)
    if here.poll(LIMIT):
        found = here.recv()
    process.kill()
    process.join()
    return found


def assignment_distance(a: np.ndarray, b: np.ndarray) -> float:
    """W_1 by scipy's linear_sum_assignment on the n x m matrix of gains."""
    xa, xb = a.sum(axis=1) / 2, b.sum(axis=1) / 2
    ya, yb = (a[:, 1] - a[:, 0]) / 2, (b[:, 1] - b[:, 0]) / 2
    cost = np.abs(xa[:, None] - xb) + np.abs(ya[:, None] - yb)
    gain = np.maximum(0.0, ya[:, None] + yb - cost)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    matched = gain[rows, columns] > 0
    rows, columns = rows[matched], columns[matched]
    alone = np.concatenate([np.delete(ya, rows), np.delete(yb, columns)])
    return float(np.concatenate([cost[rows, columns], alone]).sum())


def bench_neighbours(features: np.ndarray) -> list[Figure]:
    """Exact k-NN on all cores, against faiss, scikit-learn and the matrix products alone."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    n, d = features.shape
    rows = features.astype(np.float32)
    # of two blocks: of one with itself numpy computes but a half
    block, other = rows[:5000], rows[5000:10000]
    per_product, _ = median_seconds(lambda: block @ other.T, 3)
    # n (n + 1) / 2 products are needed
    floor = per_product / 5000**2 * n * (n + 1) / 2
    start = time.perf_counter()
    ours = nearest_neighbours(features, 20, "exact")
    seconds = time.perf_counter() - start
    drawn = np.random.default_rng(0).choice(n, 500, replace=False)
    for v, truth in zip(drawn, reference_neighbours(features, drawn), strict=True):
        assert set(truth) == set(ours.indices[v].tolist())
    start = time.perf_counter()
    index = faiss.IndexFlatL2(d)
    index.add(rows)
    index.search(rows, 21)
    theirs = time.perf_counter() - start
    start = time.perf_counter()
    NearestNeighbors(n_neighbors=20, algorithm="brute", n_jobs=-1).fit(rows).kneighbors()
    sklearn = time.perf_counter() - start
    task = f"exact k-NN, {n:,} x {d:,}, all cores"
    return [
        Figure(task, "lltopo", seconds, 1.0),
        Figure(task, "the needed products alone (numpy)", floor, floor / seconds),
        Figure(task, "faiss IndexFlatL2", theirs, theirs / seconds),
        Figure(task, "scikit-learn brute", sklearn, sklearn / seconds),
    ]


def reference_neighbours(features: np.ndarray, drawn: np.ndarray) -> list[list[int]]:
    """The 20 nearest others of some rows, ties by index, in float64 (exact for pixels)."""
    wide = features[drawn].astype(np.float64)
    squared = np.empty((len(drawn), len(features)))
    for start in range(0, len(features), 5000):
        block = features[start : start + 5000].astype(np.float64)
        norms = (block**2).sum(axis=1) + (wide**2).sum(axis=1)[:, None]
        squared[:, start : start + 5000] = norms - 2 * wide @ block.T
    squared[np.arange(len(drawn)), drawn] = np.inf
    return [np.argsort(row, kind="stable")[:20].tolist() for row in squared]


def simplex_tree_diagram(graph: Graph, values: np.ndarray) -> np.ndarray:
    """The split diagram by GUDHI's SimplexTree, (m, 2) sorted, without the essential pairs."""
    sources = np.repeat(np.arange(graph.n_vertices), np.diff(graph.indptr))
    once = sources < graph.indices
    edges = np.stack([sources[once], graph.indices[once]])
    simplices = gudhi.SimplexTree()
    for vertex, value in enumerate(values.tolist()):
        simplices.insert([vertex], filtration=value)
    simplices.insert_batch(edges, values[edges].max(axis=0).astype(np.float64))
    simplices.compute_persistence(persistence_dim_max=True)
    found = simplices.persistence_intervals_in_dimension(0)
    found = found[np.isfinite(found[:, 1])]
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def bench_trees(graph: Graph, fields: np.ndarray) -> list[Figure]:
    """Both trees with both diagrams against Tomato's one and SimplexTree's two."""
    neighbours = [row.tolist() for row in np.split(graph.indices, graph.indptr[1:-1])]
    figures = []
    for name, field in (("first", fields[0]), ("middle", fields[5]), ("last", fields[-1])):
        dgm = persistence_diagram(graph, field, "split", "drop")
        dgm = dgm[np.lexsort((dgm[:, 1], dgm[:, 0]))]
        start = time.perf_counter()
        theirs = simplex_tree_diagram(graph, field.astype(np.float64))
        simplex = 2 * (time.perf_counter() - start)
        assert np.array_equal(dgm, theirs)

        def tomato(weights: np.ndarray = field) -> np.ndarray:
            model = Tomato(graph_type="manual", density_type="manual")
            model.fit(neighbours, weights=weights)
            return model.diagram_

        rounds = []
        for _ in range(ROUNDS_OF_TREES):
            # side by side: whoever else uses the memory takes from both
            seconds, _ = median_seconds(lambda field=field: both_persistence_pairs(graph, field))
            slow, found = median_seconds(tomato, 1)
            rounds.append((seconds, slow))
        seconds, slow = (statistics.median(times) for times in zip(*rounds, strict=True))
        join = persistence_diagram(graph, field, "join", "drop")
        assert np.array_equal(np.sort(join[:, 0]), np.sort(found[:, 0]))
        task = f"both trees and diagrams, {graph.n_vertices:,} vertices, {name} epoch"
        figures += [
            Figure(task, "lltopo (both)", seconds, 1.0),
            Figure(task, "GUDHI Tomato (one)", slow, slow / seconds),
            Figure(task, "GUDHI SimplexTree (both)", simplex, simplex / seconds),
        ]
    return figures


def random_graph(n: int) -> Graph:
    """Ten random edges a vertex, about 20 neighbours each."""
    ends = np.random.default_rng(0).integers(n, size=(10 * n, 2))
    return Graph.from_edges(n, ends)


def geometric_graph(n: int) -> Graph:
    """A square grid, each vertex joined to the 24 of the 5 x 5 around it."""
    side = round(n**0.5)
    index = np.arange(side * side).reshape(side, side)
    edges = []
    for down in range(3):
        for right in range(-2, 3):
            if (down, right) > (0, 0):
                left, stop = max(0, -right), side - max(0, right)
                here = index[: side - down, left:stop]
                edges.append(np.stack([here, here + down * side + right], axis=-1).reshape(-1, 2))
    return Graph.from_edges(side * side, np.concatenate(edges))


@njit
def bare_pass(indptr, indices, order, rank):  # type: ignore[no-untyped-def]
    """Gather every neighbour's rank in sweep order: the memory traffic that no sweep avoids."""
    total = 0
    for v in order:
        for j in range(indptr[v], indptr[v + 1]):
            total += rank[indices[j]]
    return total


def bench_large(n: int, make: Callable[[int], Graph]) -> list[Figure]:
    """One tree's diagram of a large graph against a bare pass, and its memory an edge."""
    graph = make(n)
    values = np.random.default_rng(1).normal(size=graph.n_vertices).astype(np.float32)
    if make is geometric_graph:
        side = round(n**0.5)
        x, y = np.meshgrid(*[np.linspace(0, 40, side, dtype=np.float32)] * 2)
        values = 0.05 * values + (np.sin(x) * np.cos(y)).ravel().astype(np.float32)
    order = np.argsort(values, kind="stable").astype(np.int32)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=np.int32)
    bare, _ = median_seconds(lambda: bare_pass(graph.indptr, graph.indices, order, rank), 3)
    small = random_graph(100)
    persistence_pairs(small, values[:100], "split")
    with peak_rise() as rise:
        persistence_pairs(graph, values, "split")
    seconds, _ = median_seconds(lambda: persistence_pairs(graph, values, "split"), 3)
    task = f"one tree and diagram, {graph.n_vertices:,} vertices, {make.__name__}"
    task += f" ({rise.bytes / len(graph.indices):.1f} bytes a directed edge)"
    return [Figure(task, "lltopo", seconds, 1.0), Figure(task, "a bare pass", bare, bare / seconds)]


class PeakRise:
    """How far the resident memory rose above its level at the start, sampled."""

    bytes = 0


@contextlib.contextmanager
def peak_rise() -> Iterator[PeakRise]:
    """Sample this process's resident memory until the block ends."""
    rise, process, over = PeakRise(), psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.002):
            rise.bytes = max(rise.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield rise
    finally:
        over.set()
        watcher.join()


def bench_distances(graph: Graph, fields: np.ndarray) -> list[Figure]:
    """W_1, W_2 and bottleneck of the first, sixth and next to last epoch to the last."""
    import topp

    figures = []
    for tree in ("split", "join"):
        last = as_ascending(persistence_diagram(graph, fields[-1], tree))
        for epoch in (1, 6, len(fields) - 1):
            dgm = as_ascending(persistence_diagram(graph, fields[epoch - 1], tree))
            pair = f"{tree}, epoch {epoch} to {len(fields)} ({len(dgm)} and {len(last)} points)"
            exact, value = median_seconds(lambda a=dgm, b=last: wasserstein_distance(a, b))
            gap = dual_potentials(dgm, last).gap
            assert gap == 0.0, f"not certified: {gap}"
            others: dict[str, tuple[float, float | None]] = {
                "GUDHI Hera, 1% error": median_seconds(
                    lambda a=dgm, b=last: hera_distance(a, b, order=1), 3
                ),
                "scipy linear_sum_assignment": limited_seconds(
                    lambda a=dgm, b=last: assignment_distance(a, b)
                ),
                "POT": limited_seconds(lambda a=dgm, b=last: pot_distance(a, b)),
                "topp": limited_seconds(lambda a=dgm, b=last: topp.wasserstein_distance(a, b)),
            }
            figures.append(Figure(f"W_1, {pair}", "lltopo", exact, 1.0))
            for who, (seconds, theirs) in others.items():
                tolerance = 0.011 if "Hera" in who else 1e-9 if who == "POT" else 1e-12
                assert theirs is None or abs(theirs - value) <= tolerance * value, (who, theirs)
                figures.append(Figure(f"W_1, {pair}", who, seconds, seconds / exact))
            second, value = median_seconds(lambda a=dgm, b=last: wasserstein_distance(a, b, 2.0), 3)
            slow, theirs = median_seconds(lambda a=dgm, b=last: hera_distance(a, b, order=2), 3)
            assert abs(theirs - value) <= 0.011 * value
            figures.append(Figure(f"W_2, {pair}", "lltopo", second, 1.0))
            figures.append(Figure(f"W_2, {pair}", "GUDHI Hera, 1% error", slow, slow / second))
            quick, value = median_seconds(lambda a=dgm, b=last: bottleneck_distance(a, b))
            slow, theirs = median_seconds(lambda a=dgm, b=last: gudhi.bottleneck_distance(a, b), 3)
            assert abs(theirs - value) <= 1e-14 * value
            figures.append(Figure(f"bottleneck, {pair}", "lltopo", quick, 1.0))
            figures.append(Figure(f"bottleneck, {pair}", "GUDHI", slow, slow / quick))
    return figures


def pot_distance(a: np.ndarray, b: np.ndarray) -> float:
    """W_1 by POT's exact transport on n + 1 against m + 1 points, the last one the diagonal."""
    import ot

    cost = np.zeros((len(a) + 1, len(b) + 1))
    cost[:-1, :-1] = np.abs(a[:, None] - b[None]).max(axis=2)
    cost[:-1, -1] = (a[:, 1] - a[:, 0]) / 2
    cost[-1, :-1] = (b[:, 1] - b[:, 0]) / 2
    mass_a, mass_b = np.append(np.ones(len(a)), len(b)), np.append(np.ones(len(b)), len(a))
    return float(ot.emd2(mass_a, mass_b, cost, numItermax=100_000_000))


def bench_scaling(graph: Graph, fields: np.ndarray) -> list[Figure]:
    """W_1 against the number of points: drawn from all epochs' points, and jittered."""
    random = np.random.default_rng(0)
    pool = np.concatenate([persistence_diagram(graph, field, "split") for field in fields])
    figures = []
    for n in (1_000, 3_000, 10_000, 30_000):
        a, b = (pool[random.integers(len(pool), size=n)] for _ in range(2))
        a, b = (points * random.uniform(0.99, 1.01, (n, 1)) for points in (a, b))
        seconds, _ = median_seconds(lambda a=a, b=b: wasserstein_distance(a, b), 3)
        figures.append(Figure(f"W_1, {n:,} points a side", "lltopo", seconds, 1.0))
    return figures


def markdown(figures: Sequence[Figure]) -> str:
    """The figures as a table."""
    lines = ["| task | who | median | theirs / ours |", "| --- | --- | ---: | ---: |"]
    for f in figures:
        lines.append(f"| {f.task} | {f.who} | {1000 * f.seconds:,.1f} ms | {f.ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--graph", type=Path, help="a train.npz of a study of these features")
    parser.add_argument("--only", choices=["neighbours", "large", "trees", "distances", "scaling"])
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    fields = np.load(arguments.losses)
    features = np.load(arguments.features)
    figures: list[Figure] = []
    if arguments.only in (None, "neighbours"):
        figures += bench_neighbours(features)
    if arguments.only in (None, "large"):
        for n in (50_000, 500_000, 5_000_000):
            for make in (random_graph, geometric_graph):
                figures += bench_large(n, make)
    if arguments.only not in ("neighbours", "large"):
        if arguments.graph:
            with np.load(arguments.graph) as file:
                graph = Graph(file["indptr"], file["indices"])
        else:
            graph = knn_graph(features, 20, "exact")
        sections = {"trees": bench_trees, "distances": bench_distances, "scaling": bench_scaling}
        for name, section in sections.items():
            if arguments.only in (None, name):
                figures += section(graph, fields)
    versions = {m.__name__: m.__version__ for m in (lltopo, gudhi, np, scipy)}
    print(markdown(figures))
    print(platform.processor() or platform.machine(), versions)
    if arguments.json:
        rows = [figure._asdict() for figure in figures]
        arguments.json.write_text(json.dumps({"figures": rows, "versions": versions}, indent=2))


if __name__ == "__main__":
    main()
