"""Persistence diagrams of merge trees, and numbers that sum them up.

By the elder rule the younger of two components that meet dies: its pair is the value at which
it was born and the value at which they met (Edelsbrunner, Letscher and Zomorodian 2002). A
component that never meets an elder one is essential; its death is the last value of its sweep.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.errors import InputError
from lltopo.graph import Graph
from lltopo.trees import Sweep, field_values, join_sweep, split_sweep, vertex_order


class PersistencePairs(NamedTuple):
    """Birth and death of every component of persistence above zero, and of essential ones.

    In the order of birth in the sweep. In a join tree births are maxima and ``birth >= death``;
    in a split tree births are minima and ``birth <= death``.

    Attributes
    ----------
    birth, death : (m,) float64
        Values of the field.
    birth_vertex, death_vertex : (m,) int32
        Where a component is born, and where it meets an elder one. For an essential pair the
        latter is the last vertex of the sweep of its component of the graph.
    essential : (m,) bool
        One a connected component of the graph.
    """

    birth: NDArray[np.float64]
    death: NDArray[np.float64]
    birth_vertex: NDArray[np.int32]
    death_vertex: NDArray[np.int32]
    essential: NDArray[np.bool_]


def persistence_pairs(graph: Graph, values: ArrayLike, tree: str = "join") -> PersistencePairs:
    """Pair the extrema of a field with the vertices where their components die.

    Parameters
    ----------
    graph : Graph
    values : (n_vertices,) array of real numbers
        The field.
    tree : {"join", "split"}
        Maxima of the superlevel sets, or minima of the sublevel sets.

    Returns
    -------
    PersistencePairs

    Raises
    ------
    InputError
        If there is not one finite value a vertex, or `tree` is neither.
    """
    _check_choice("tree", tree, ("join", "split"))
    field = field_values(graph, values)
    order = vertex_order(field)
    return _pairs(field, join_sweep(graph, order) if tree == "join" else split_sweep(graph, order))


def both_persistence_pairs(
    graph: Graph, values: ArrayLike
) -> tuple[PersistencePairs, PersistencePairs]:
    """Return the pairs of the join and of the split tree, sorting the vertices once.

    Parameters and errors are those of `persistence_pairs`.
    """
    field = field_values(graph, values)
    order = vertex_order(field)
    return _pairs(field, join_sweep(graph, order)), _pairs(field, split_sweep(graph, order))


def diagram_of(
    pairs: PersistencePairs, essential: str = "cap", tree: str = "join"
) -> NDArray[np.float64]:
    """Return the points of a diagram.

    Parameters
    ----------
    pairs : PersistencePairs
    essential : {"cap", "inf", "drop"}
        Essential pairs end at the last value of their sweep (one of persistence zero is then
        left out, like any other), or at infinity, or are left out.
    tree : {"join", "split"}
        Whose pairs they are, which "inf" needs to know: -inf in a join, +inf in a split tree.

    Returns
    -------
    (m, 2) float64
        Columns birth and death, in the order of the pairs.

    Raises
    ------
    InputError
        If `essential` or `tree` is none of these, or the pairs are the other tree's.
    """
    _check_choice("essential", essential, ("cap", "inf", "drop"))
    _check_choice("tree", tree, ("join", "split"))
    points: NDArray[np.float64] = np.column_stack([pairs.birth, pairs.death])
    if essential != "inf":
        kept = pairs.birth != pairs.death if essential == "cap" else ~pairs.essential
        return np.ascontiguousarray(points[kept])
    wrong = pairs.birth < pairs.death if tree == "join" else pairs.birth > pairs.death
    if wrong.any():
        raise InputError(
            f"tree: not that of the pairs: expected the other one, got {tree!r}. "
            "Name the tree that the pairs were made of."
        )
    points[pairs.essential, 1] = -math.inf if tree == "join" else math.inf
    return points


def persistence_diagram(
    graph: Graph, values: ArrayLike, tree: str = "join", essential: str = "cap"
) -> NDArray[np.float64]:
    """Compute the persistence diagram of a field's join or split tree.

    Parameters and errors are those of `persistence_pairs` and `diagram_of`.

    Returns
    -------
    (m, 2) float64
        Columns birth and death; join: ``birth > death``, split: ``birth < death``.
    """
    return diagram_of(persistence_pairs(graph, values, tree), essential, tree)


def total_persistence(dgm: ArrayLike, degree: float = 1.0) -> float:
    """Add up the persistence of a diagram's points, each to the power `degree`.

    Parameters
    ----------
    dgm : (m, 2) array
        Points (birth, death) of either tree.
    degree : float
        Above 0.

    Returns
    -------
    float
        Correctly rounded sum (`math.fsum`) of the float64 powers; inf if a point is infinite.

    Raises
    ------
    InputError
        If `dgm` is no diagram or `degree` is not above 0.
    """
    points = _points(dgm)
    if not degree > 0:
        raise InputError(
            f"degree: out of range: expected a number above 0, got {degree}. Use 1 for the sum."
        )
    return math.fsum(np.abs(points[:, 1] - points[:, 0]) ** degree)


def as_ascending(dgm: ArrayLike) -> NDArray[np.float64]:
    """Order each point's two values, as GUDHI, POT and persim expect a diagram's points.

    A join diagram's columns change places, a split diagram stays as it is: the values stay
    those of the field, and every distance is the same.

    Parameters
    ----------
    dgm : (m, 2) array
        Points (birth, death) of either tree.

    Returns
    -------
    (m, 2) float64
        The smaller value first.
    """
    return np.sort(_points(dgm), axis=1)


def persistence_histogram(
    dgm: ArrayLike,
    bins: int | tuple[int, int],
    ranges: tuple[tuple[float, float], tuple[float, float]],
) -> NDArray[np.int64]:
    """Count a diagram's points on a grid of births and deaths (a heatmap).

    Parameters
    ----------
    dgm : (m, 2) array
        Points (birth, death); an infinite one lies in no bin.
    bins : int or (int, int)
        Numbers of equal bins for births and for deaths.
    ranges : ((low, high), (low, high))
        Of births and of deaths; the highest values belong to the last bins. Diagrams that are
        compared share bins and ranges.

    Returns
    -------
    (bins, bins) int64
        Rows are births, columns are deaths; points out of range are not counted.

    Raises
    ------
    InputError
        If `dgm` is no diagram, or a range or number of bins is empty.
    """
    points = _points(dgm)
    grid = (bins, bins) if isinstance(bins, int) else bins
    if min(grid) < 1 or any(not low < high for low, high in ranges):
        raise InputError(
            f"ranges: empty: expected low < high and a bin at least, got {ranges} in {grid} bins. "
            "Take the range of all the diagrams that are compared."
        )
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=grid, range=ranges)
    return counts.astype(np.int64)


def _pairs(field: NDArray[np.floating[Any]], sweep: Sweep) -> PersistencePairs:
    """Turn a sweep's times into vertices and values, leaving out what lives for nothing."""
    birth_vertex = sweep.order[sweep.births]
    death_vertex = sweep.order[sweep.deaths]
    lives = (field[birth_vertex] != field[death_vertex]) | sweep.essential
    birth_vertex, death_vertex = birth_vertex[lives], death_vertex[lives]
    return PersistencePairs(
        birth=field[birth_vertex].astype(np.float64),
        death=field[death_vertex].astype(np.float64),
        birth_vertex=birth_vertex,
        death_vertex=death_vertex,
        essential=sweep.essential[lives],
    )


def _points(dgm: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(dgm, np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or np.isnan(points).any():
        raise InputError(
            "dgm: no diagram: expected numbers of shape (m, 2), got shape "
            f"{points.shape}{' with NaN' if np.isnan(points).any() else ''}. "
            "Give one row (birth, death) a point."
        )
    return points


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise InputError(
            f"{name}: unknown: expected {', '.join(known)}, got {given!r}. Name one of them."
        )
