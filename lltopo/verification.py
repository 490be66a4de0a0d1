"""Results that carry their own check: some fields are computed again by other people's code.

GUDHI's lower-star filtration in a SimplexTree must give the very same births and deaths, and
POT's exact transport on the full (n + m) problem the same distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lltopo.analysis import Row, read_pairs
from lltopo.diagrams import as_ascending, diagram_of
from lltopo.graph import Graph
from lltopo.graph_files import MadeGraph
from lltopo.storage import Place
from lltopo.tables import TREES, Field, Tree, diagram_file, read_losses

_MOST_POINTS = 2000
_TOLERANCE = 1e-9


def chosen_fields(fields: Sequence[Field], n: int, seed: int = 0) -> list[Field]:
    """Draw ``n`` fields (or all) without repetition, always the same for the same ``seed``."""
    drawn = np.random.default_rng(seed).permutation(len(fields))[:n]
    return [fields[i] for i in sorted(drawn)]


def disagreements(
    losses: Place, out: Place, field: Field, made: MadeGraph, rows: Sequence[Row]
) -> list[str]:
    """Compute one field again, and say what differs from its diagrams and rows.

    Parameters
    ----------
    losses, out
        The folder of the loss tables, and that of the results.
    field
        A diverged one must have empty diagrams.
    made
        The graph of its split.
    rows
        Its rows of the series. Distances are checked where essential pairs are capped, the
        order is finite and the two diagrams have 2,000 points at most.

    Returns
    -------
    list of str
        A line for each disagreement.
    """
    found = []
    loss = read_losses(losses, field).loss.astype(np.float64)
    finite = bool(np.isfinite(loss).all())
    for tree in TREES:
        written = read_pairs(out, field, tree)
        ours = np.column_stack([written.birth, written.death])
        theirs = gudhi_diagram(made.graph, loss, tree) if finite else np.empty((0, 2))
        if not np.array_equal(_sorted(ours), theirs):
            found.append(f"{diagram_file(out, field, tree)}: differs from GUDHI's diagram")
    for row in rows:
        if row["status"] == "ok":
            found += _distance_disagreement(out, field, row)
    return found


def gudhi_diagram(graph: Graph, values: NDArray[np.float64], tree: Tree) -> NDArray[np.float64]:
    """Compute a field's diagram with GUDHI.

    Parameters
    ----------
    graph, values
        A field of finite values.
    tree
        ``split`` for sublevel sets; ``join`` for superlevel sets, by negation.

    Returns
    -------
    (m, 2) float64
        Sorted rows (birth, death): the pairs of persistence above zero, and each component's
        essential one ending at the component's extremum at the other end.
    """
    import gudhi

    field = values if tree == "split" else -values
    simplices = gudhi.SimplexTree()
    for vertex, value in enumerate(field):
        # insert_batch would ignore the filtration of vertices
        simplices.insert([vertex], filtration=float(value))
    sources = np.repeat(np.arange(graph.n_vertices), np.diff(graph.indptr))
    once = sources < graph.indices
    edges = np.stack([sources[once], graph.indices[once]])
    if edges.shape[1]:
        simplices.insert_batch(edges, np.maximum(field[edges[0]], field[edges[1]]))
    simplices.compute_persistence(persistence_dim_max=True)
    finite = simplices.persistence_intervals_in_dimension(0).reshape(-1, 2)
    essential = np.isinf(finite[:, 1])
    capped = np.array(_component_ranges(graph, field)).reshape(-1, 2)
    # births of essential pairs are the components' minima, whose maxima end them
    capped = capped[np.argsort(capped[:, 0], kind="stable")]
    if not np.array_equal(np.sort(finite[essential, 0]), capped[:, 0]):
        return np.empty((0, 2))
    pairs = np.concatenate([finite[~essential], capped])
    return _sorted(pairs if tree == "split" else -pairs)


def _component_ranges(
    graph: Graph, field: NDArray[np.float64]
) -> list[tuple[np.float64, np.float64]]:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    n = graph.n_vertices
    ones = np.ones(len(graph.indices), dtype=np.int8)
    n_components, label = connected_components(
        csr_matrix((ones, graph.indices, graph.indptr), shape=(n, n)), directed=False
    )
    low, high = np.full(n_components, np.inf), np.full(n_components, -np.inf)
    np.minimum.at(low, label, field)
    np.maximum.at(high, label, field)
    return list(zip(low, high, strict=True))


def _distance_disagreement(out: Place, field: Field, row: Mapping[str, object]) -> list[str]:
    tree: Tree = "join" if row["tree"] == "join" else "split"
    reference = field._replace(epoch=int(str(row["reference_epoch"])))
    # points at infinity are matched among themselves; POT sees the finite ones
    diagrams = [
        as_ascending(diagram_of(read_pairs(out, which, tree), "cap", tree))
        for which in (field, reference)
    ]
    order = float(str(row["order"]))
    if row["essential"] != "cap" or sum(map(len, diagrams)) > _MOST_POINTS or np.isinf(order):
        return []
    ours = float(str(row["wasserstein"])) ** order
    theirs, largest = transport_cost(diagrams[0], diagrams[1], order)
    # POT stops pivoting at a reduced cost of some 1e-13 of the largest
    if abs(theirs - ours) <= _TOLERANCE * max(theirs, ours) + 1e-12 * largest:
        return []
    where = f"{diagram_file(out, field, tree)}: W_{order:g}^{order:g} to epoch {reference.epoch}"
    return [f"{where}: {ours!r} here, {theirs!r} by POT"]


def transport_cost(
    a: NDArray[np.float64], b: NDArray[np.float64], order: float
) -> tuple[float, float]:
    """Solve W_p^p of two diagrams as one exact transport problem of n + m points.

    Parameters
    ----------
    a, b : (n, 2) and (m, 2) float64
        Finite points, birth <= death.
    order
        The p, finite.

    Returns
    -------
    float, float
        The optimal cost, and the largest single cost of any pair of points.
    """
    import ot

    if len(a) + len(b) == 0:
        return 0.0, 0.0
    cost = np.zeros((len(a) + len(b), len(b) + len(a)))
    cost[: len(a), : len(b)] = np.abs(a[:, None] - b[None]).max(axis=2)
    cost[: len(a), len(b) :] = (a[:, 1] - a[:, 0])[:, None] / 2
    cost[len(a) :, : len(b)] = (b[:, 1] - b[:, 0])[None] / 2
    ones = np.ones(len(cost))
    cost **= order
    return float(ot.emd2(ones, ones, cost, numItermax=10_000_000)), float(cost.max())


def _sorted(points: NDArray[np.float64]) -> NDArray[np.float64]:
    # + 0.0 makes -0.0 a plain 0.0, as negating a field leaves them
    return (points[np.lexsort((points[:, 1], points[:, 0]))]) + 0.0
