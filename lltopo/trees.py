"""Merge trees of a scalar field on a graph, by sweep and union-find.

Vertices are swept in the total order by (value, index). Carr, Snoeyink and Axen, "Computing
contour trees in all dimensions" (Computational Geometry 24, 2003): swept from high to low, the
components of the superlevel sets are born at maxima and merge in the **join** tree; from low
to high, those of the sublevel sets are born at minima and merge in the **split** tree. Each
sweep gives the augmented tree (every vertex with the next one of its component); combining
the two augmented trees leaf by leaf gives the **contour** tree.

The sweep's inner loop has no branch: a vertex reads the components of all its neighbours and
keeps the smallest and the largest; only where the two differ may components have met.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from lltopo.errors import InputError
from lltopo.graph import Graph


class MergeTree(NamedTuple):
    """The vertices where the components of level sets are born, merge or end.

    Attributes
    ----------
    nodes : (n,) int32
        Vertex indices of leaves, merges and each component's last vertex, from high to low.
    arcs : (m, 2) int32
        Vertex indices (upper, lower), from high to low by the upper one, then by the lower.
    """

    nodes: NDArray[np.int32]
    arcs: NDArray[np.int32]


class ContourCounts(NamedTuple):
    """The size of a contour tree.

    Attributes
    ----------
    n_maxima, n_minima : int
        Vertices above, and below, all their neighbours; an isolated vertex is both.
    n_merges : int
        Vertices where components of superlevel or of sublevel sets merge.
    n_arcs : int
        Arcs between leaves and merges.
    """

    n_maxima: int
    n_minima: int
    n_merges: int
    n_arcs: int


class Sweep(NamedTuple):
    """What one sweep finds; a *time* is a vertex's place in the sweep's order.

    Attributes
    ----------
    order : (n,) int32
        The vertices in the order swept.
    births : (c,) int32
        The time at which each component is born, ascending.
    deaths : (c,) int32
        The time at which it meets an elder one, or its last time if it never does.
    essential : (c,) bool
        Whether it never meets an elder one: one a component of the graph.
    successor : (n,) int32
        At each time, the next time in the same component of the set swept so far, or the time
        itself if there is none: the augmented tree.
    """

    order: NDArray[np.int32]
    births: NDArray[np.int32]
    deaths: NDArray[np.int32]
    essential: NDArray[np.bool_]
    successor: NDArray[np.int32]


def vertex_order(values: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Sort the vertices by (value, index), ascending: the total order of every sweep.

    Parameters
    ----------
    values : (n,) float32 or float64, finite
        Zeros of both signs are equal.

    Returns
    -------
    (n,) int32
        Join trees sweep it backwards, split trees forwards.
    """
    if values.dtype == np.float32:
        return _float32_order(values)
    order = np.argsort(values)
    ascending = values[order]
    if np.any(ascending[1:] == ascending[:-1]):
        order = np.argsort(values, kind="stable")
    return order.astype(np.int32)


def join_tree(graph: Graph, values: ArrayLike) -> MergeTree:
    """Build the tree of the superlevel sets' components, whose leaves are the maxima.

    Parameters
    ----------
    graph : Graph
    values : (n_vertices,) array of real numbers
        The field.

    Returns
    -------
    MergeTree
        A forest, one tree a component of the graph; its roots are the components' minima.

    Raises
    ------
    InputError
        If the length is not the graph's number of vertices or a value is not finite.
    """
    return _merge_tree(join_sweep(graph, values), descending=True)
