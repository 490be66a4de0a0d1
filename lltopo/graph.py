"""The graph of the samples: the domain on which every loss is a field."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from lltopo.candidates import Progress
from lltopo.errors import InputError
from lltopo.neighbours import Neighbours, nearest_neighbours, neighbour_recall

__all__ = [
    "Graph",
    "Neighbours",
    "knn_graph",
    "nearest_neighbours",
    "neighbour_graph",
    "neighbour_recall",
]


class Graph(NamedTuple):
    """An undirected graph in compressed sparse rows, without self-loops or repeated edges.

    Attributes
    ----------
    indptr : (n_vertices + 1,) int64
        Row ``v`` of `indices` is ``indices[indptr[v]:indptr[v + 1]]``.
    indices : (2 * n_edges,) int32
        Each vertex's neighbours in ascending order; every edge stands in both its rows.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]

    @classmethod
    def from_edges(cls, n_vertices: int, edges: ArrayLike) -> Graph:
        """Build the graph of a list of edges in linear time.

        Parameters
        ----------
        n_vertices : int
            Vertices are ``0 .. n_vertices - 1``; one without an edge is isolated.
        edges : (m, 2) array of any integer type
            Undirected, in any order; self-loops and repeats are dropped.

        Raises
        ------
        InputError
            If an end is no vertex, or `edges` is not an (m, 2) integer array.
        """
        pairs = np.asarray(edges)
        if pairs.size == 0:
            pairs = np.empty((0, 2), np.int32)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
            raise InputError(
                "edges: wrong array: expected shape (m, 2) of integers, got shape "
                f"{pairs.shape} of {pairs.dtype}. Give one row of two vertex indices an edge."
            )
        if not 0 <= n_vertices < 2**31:
            raise InputError(
                f"n_vertices: out of range: expected 0 to 2^31 - 1, got {n_vertices}. "
                "Give the number of vertices."
            )
        if len(pairs) and (pairs.min() < 0 or pairs.max() >= n_vertices):
            wrong = int(pairs.min() if pairs.min() < 0 else pairs.max())
            raise InputError(
                f"edges: no such vertex: expected 0 to {n_vertices - 1}, got {wrong}. "
                "Count vertices from 0, and give n_vertices as their number."
            )
        return cls(*_symmetric_rows(int(n_vertices), np.ascontiguousarray(pairs, np.int32)))

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return len(self.indptr) - 1

    @property
    def n_edges(self) -> int:
        """Number of undirected edges."""
        return len(self.indices) // 2

    @property
    def n_components(self) -> int:
        """Number of connected components, isolated vertices included."""
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components

        shape = (self.n_vertices, self.n_vertices)
        ones = np.ones(len(self.indices), np.int8)
        adjacency = csr_array((ones, self.indices, self.indptr), shape=shape)
        return int(connected_components(adjacency, directed=False, return_labels=False))


def knn_graph(
    features: ArrayLike, k: int = 20, method: str = "auto", progress: Progress | None = None
) -> Graph:
    """Connect every vertex with its k nearest others, an edge being wanted by either end.

    Parameters
    ----------
    features : (n, ...) array
        One row a vertex, flattened; any real type, taken as it is, without scaling.
    k : int
        ``1 <= k < n``.
    method : {"auto", "exact", "nndescent"}
        See `nearest_neighbours`.
    progress : callable, optional
        Called now and then with the fraction done, from 0 to 1.

    Returns
    -------
    Graph
        Between ``n * k / 2`` and ``n * k`` edges.

    Raises
    ------
    InputError
        If there is no row, a value is not finite or too large, or k or method is wrong.
    """
    return neighbour_graph(nearest_neighbours(features, k, method, progress).indices)


def neighbour_graph(indices: NDArray[np.integer[Any]]) -> Graph:
    """Connect every vertex with the neighbours found for it.

    Parameters
    ----------
    indices : (n, k) array of integers
        As in `Neighbours`.

    Returns
    -------
    Graph
        The union of both directions.
    """
    n, k = indices.shape
    sources = np.repeat(np.arange(n, dtype=np.int32), k)
    return Graph.from_edges(n, np.column_stack([sources, indices.ravel()]))


@njit(cache=True, nogil=True)
def _symmetric_rows(n_vertices, edges):  # type: ignore[no-untyped-def]
    """Return indptr and indices of an undirected graph: bucket sorts, linear time."""
    ends = np.zeros(n_vertices + 1, np.int64)
    for e in range(len(edges)):
        if edges[e, 0] != edges[e, 1]:
            ends[edges[e, 0] + 1] += 1
            ends[edges[e, 1] + 1] += 1
    for v in range(n_vertices):
        ends[v + 1] += ends[v]
    rows = np.empty(ends[-1], np.int32)
    cursor = ends[:-1].copy()
    for e in range(len(edges)):
        u = edges[e, 0]
        v = edges[e, 1]
        if u != v:
            rows[cursor[u]] = v
            rows[cursor[v]] = u
            cursor[u] += 1
            cursor[v] += 1
    # the multigraph is its own transpose, and transposing leaves every row sorted
    indices = np.empty_like(rows)
    cursor = ends[:-1].copy()
    for u in range(n_vertices):
        for v in rows[ends[u] : ends[u + 1]]:
            indices[cursor[v]] = u
            cursor[v] += 1
    return _without_repeats(ends, indices)


@njit(cache=True, nogil=True)
def _without_repeats(ends, indices):  # type: ignore[no-untyped-def]
    """Drop repeated entries of sorted rows, in place."""
    indptr = np.zeros_like(ends)
    size = 0
    for v in range(len(ends) - 1):
        for i in range(ends[v], ends[v + 1]):
            if i == ends[v] or indices[i] != indices[i - 1]:
                indices[size] = indices[i]
                size += 1
        indptr[v + 1] = size
    return indptr, indices[:size].copy()
