"""Topology of the loss over retrained weights: PHATE, a graph of its potentials, H0 and H1.

Horoi, Huang, Rieck, Lajoie, Wolf and Krishnaswamy, "Exploring the Geometry and Topology of Neural
Network Loss Landscapes" (IDA 2022), on PHATE (Moon et al., Nature Biotechnology 37, 2019): the
weight vectors of all trajectories become the vertices of a k-nearest-neighbour graph of their
diffusion potentials, and the loss a field on it, whose sublevel sets are filtered.

The published code attaches to each point the loss of the one before it, for its list of losses
starts with the optimum, which is no vertex; and of each row of potentials it picks the largest
entries, the farthest points. Here every loss belongs to its own weights, and neighbours are near:
nearest by the Euclidean distance of the rows, which is PHATE's own potential distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.diagrams import persistence_pairs
from lltopo.errors import InputError
from lltopo.graph import Graph, knn_graph

FEWEST_POINTS = 4  # PHATE divides by zero for fewer

_COMPONENTS = 100  # principal ones that PHATE keeps by default
_KNN, _DECAY, _THRESHOLD = 5, 40, 1e-4  # of PHATE's kernel, its defaults
_SEED = 0

Matrix = NDArray[np.float64]


class Embedding(NamedTuple):
    """What PHATE makes of n points.

    Attributes
    ----------
    points : (n, 2) float64
        Positions in the plane.
    potential : (n, n) float64
        A row a point: minus the logarithm of where diffusion takes it.
    """

    points: Matrix
    potential: Matrix


class Classes(NamedTuple):
    """The homology classes of one dimension of a sublevel filtration, persistence above zero.

    Attributes
    ----------
    birth, death : (m,) float64
        Values of the field, ``birth < death``.
    essential : (m,) bool
        Classes that never die. Their death is the last value of the sweep: that of their
        component of the graph in dimension 0, that of the whole field in dimension 1.
    """

    birth: NDArray[np.float64]
    death: NDArray[np.float64]
    essential: NDArray[np.bool_]

    @property
    def diagram(self) -> Matrix:
        """Birth and death, (m, 2)."""
        return np.column_stack([self.birth, self.death])


def check_phate() -> None:
    """Raise an InputError unless PHATE is installed."""
    if find_spec("phate") is None:
        raise InputError(
            "jump: PHATE is missing: expected the package phate. "
            "Install it with pip install 'lltopo[jump]'."
        )


def principal_scores(blocks: Iterable[NDArray[np.floating[Any]]], n_points: int) -> Matrix:
    """Project weight vectors on their first 100 principal components, without holding them.

    PHATE does the same before it takes cosine distances of more than 100 points (its default
    ``n_pca``), so that angles are seen from the points' mean, not from the origin. Here the
    components come from the points' Gram matrix, added up in float64 block by block.

    Parameters
    ----------
    blocks
        Columns of the matrix of vectors, (n_points + m, b) each. The last m vectors are projected
        too, but have no part in mean and components.
    n_points : int

    Returns
    -------
    (n_points + m, c) float64
        Scores, c <= min(100, n_points - 1). The cost is that of n_points^2 times the length of
        the vectors multiply-adds.
    """
    gram: Any = 0.0
    for block in blocks:
        centred = np.array(block, np.float64)
        centred -= centred[:n_points].mean(axis=0)
        gram = gram + centred @ centred[:n_points].T
        del centred  # before there is the next
    values, vectors = np.linalg.eigh(gram[:n_points])
    significant = values > n_points * np.finfo(np.float64).eps * max(values[-1], 0.0)
    kept = np.flatnonzero(significant)[::-1][:_COMPONENTS]
    scores: Matrix = gram @ vectors[:, kept] / np.sqrt(values[kept])
    return scores


def cosine_distances(vectors: Matrix) -> Matrix:
    """One minus the cosines between vectors, (n, n); a vector of length 0 is at 1 from all."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    distances: Matrix = np.maximum(1.0 - unit @ unit.T, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def phate_embedding(distances: Matrix) -> Embedding:
    """Embed points in the plane by their distances.

    With PHATE's defaults, but cosine distances between the potentials and SMACOF, the solver of
    all figures of PHATE's paper, which draws nothing at random; fewer neighbours where there are
    few points.

    Parameters
    ----------
    distances : (n, n) float64
        Of n >= 4 points, some of them above zero.

    Returns
    -------
    Embedding

    Raises
    ------
    InputError
        If PHATE is not installed.
    """
    check_phate()
    import warnings

    from phate import PHATE

    operator = PHATE(
        n_components=2,
        knn=min(_KNN, len(distances) - 2),
        decay=_DECAY,
        n_landmark=None,
        knn_dist="precomputed_distance",
        mds_dist="cosine",
        mds_solver="smacof",
        n_jobs=1,
        random_state=_SEED,
        verbose=0,
    )
    with warnings.catch_warnings():
        # trajectories that lie far from each other: our graph's essential classes count them
        warnings.filterwarnings("ignore", "Graph is disconnected", RuntimeWarning)
        points = operator.fit_transform(distances)
    return Embedding(np.asarray(points), np.asarray(operator.diff_potential))


def extended_points(distances: Matrix, points: Matrix) -> Matrix:
    """Place further points among embedded ones: the mean of those near, weighted by PHATE's kernel.

    As graphtools, PHATE's graph library, extends an embedding to new data.

    Parameters
    ----------
    distances : (m, n) float64
        From the further points to the embedded ones.
    points : (n, 2) float64
        Where these lie.

    Returns
    -------
    (m, 2) float64
    """
    nearest = min(_KNN, len(points)) - 1
    bandwidth = np.partition(distances, nearest, axis=1)[:, nearest, None]
    tiny = np.finfo(np.float64).tiny
    kernel = np.exp(-((distances / np.maximum(bandwidth, tiny)) ** _DECAY))
    kernel[kernel < _THRESHOLD] = 0.0
    placed: Matrix = kernel @ points / kernel.sum(axis=1, keepdims=True)
    return placed


def potential_graph(potential: ArrayLike, k: int) -> Graph:
    """Connect each point with the k points whose potentials are nearest, ties by index.

    Parameters
    ----------
    potential : (n, n) array
        Rows of `Embedding`.
    k : int
        Where there are no more points than that, all others.
    """
    rows = np.asarray(potential, np.float64)
    return knn_graph(rows, min(k, len(rows) - 1), "exact")


def sublevel_components(graph: Graph, losses: ArrayLike) -> Classes:
    """H0 of the sublevel filtration of a field: the pairs of its split tree (minima)."""
    pairs = persistence_pairs(graph, losses, "split")
    lives = pairs.birth != pairs.death
    return Classes(pairs.birth[lives], pairs.death[lives], pairs.essential[lives])


def sublevel_loops(graph: Graph, losses: ArrayLike) -> Classes:
    """H1 of the sublevel filtration of a field on the graph's flag complex, by GUDHI.

    An edge comes with the larger loss of its ends, and with it every triangle all of whose edges
    are there: a loop dies once triangles fill it. (The published code has no triangles: there a
    loop never dies.)

    Parameters
    ----------
    graph : Graph
    losses : (n_vertices,) array
        Finite.

    Returns
    -------
    Classes
        Coefficients are those of GUDHI's default, integers modulo 11.
    """
    from gudhi import SimplexTree

    field = np.asarray(losses, np.float64)
    complex_ = SimplexTree()
    vertices = np.arange(graph.n_vertices, dtype=np.int32)
    complex_.insert_batch(vertices[None], field)
    sources = np.repeat(vertices, np.diff(graph.indptr))
    once = sources < graph.indices
    edges = np.stack([sources[once], graph.indices[once]])
    complex_.insert_batch(edges, field[edges].max(axis=0))
    complex_.expansion(2)
    complex_.compute_persistence()
    intervals = complex_.persistence_intervals_in_dimension(1).reshape(-1, 2)
    # GUDHI does not say in which order it lists them
    birth, death = intervals[np.lexsort(intervals.T[::-1])].T
    essential = np.isinf(death)
    death = np.where(essential, field.max(initial=-math.inf), death)
    lives = birth < death
    return Classes(birth[lives], death[lives], essential[lives])


def persistent_entropy(dgm: ArrayLike) -> float:
    """Shannon entropy of how a diagram's total persistence is shared out among its points.

    ``-sum p log p`` with p = persistence over total persistence, natural logarithm: 0 for one
    point (and none), log m for m equal ones. Chintakunta, Gentimis, Gonzalez-Diaz, Jimenez and
    Krim, "An entropy-based persistence barcode" (Pattern Recognition 48, 2015).

    Parameters
    ----------
    dgm : (m, 2) array
        Points of finite persistence; an essential one counts with the death that it is given, so
        cap it or leave it out.

    Raises
    ------
    InputError
        Where a persistence is not finite, and so has no share.
    """
    points = np.asarray(dgm, np.float64).reshape(-1, 2)
    persistence = np.abs(points[:, 1] - points[:, 0])
    if not np.isfinite(persistence).all():
        raise InputError(
            "dgm: has no entropy: expected finite persistences, got infinite ones. "
            "Cap the essential points or leave them out."
        )
    positive = persistence[persistence > 0]
    shares = positive / positive.sum() if len(positive) else positive
    return -math.fsum(shares * np.log(shares)) + 0.0
