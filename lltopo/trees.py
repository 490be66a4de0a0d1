"""Merge trees of a scalar field on a graph, by sweep and union-find.

Vertices are swept in the total order by (value, index). Carr, Snoeyink and Axen, "Computing
contour trees in all dimensions" (Computational Geometry 24, 2003): swept from high to low, the
components of the superlevel sets are born at maxima and merge in the **join** tree; from low
to high, those of the sublevel sets are born at minima and merge in the **split** tree. Each
sweep gives the augmented tree (every vertex with the next one of its component); combining
the two augmented trees leaf by leaf gives the **contour** tree.

Components are numbered as they are born, so the first is the eldest, and soon has most of the
vertices. One byte a vertex says whether it is in the first or in a younger one. The sweep's
inner loop, which has no branch, takes these bytes of all neighbours together; only where a
younger component is among them are components looked up, and the bytes brought up to date.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from lltopo.arrays import read_only
from lltopo.contour import combined_arcs
from lltopo.errors import InputError
from lltopo.graph import Graph
from lltopo.prefetch import prefetch

RADIX_BITS = 11  # three passes for float32, whose counters stay in the first cache
RADIX = 1 << RADIX_BITS
FIRST, YOUNGER = 1, 2  # bits: what a vertex's neighbours may have met together
READ_AHEAD = 8  # a row is asked for so many vertices before it is needed, to be in the cache
LINE = 16  # neighbours in a line of the cache


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
        If there is not one finite value a vertex.
    """
    order = vertex_order(field_values(graph, values))
    return _contracted(order, _join_arcs(join_sweep(graph, order)))


def split_tree(graph: Graph, values: ArrayLike) -> MergeTree:
    """Build the tree of the sublevel sets' components, whose leaves are the minima.

    Parameters, returns and errors are those of `join_tree`; the roots are the maxima.
    """
    order = vertex_order(field_values(graph, values))
    return _contracted(order, _split_arcs(split_sweep(graph, order)))


def contour_tree(graph: Graph, values: ArrayLike) -> MergeTree:
    """Combine the augmented join and split trees; leaves are maxima and minima.

    On a graph without cycles this is the tree of the level sets' components; on others it is
    Carr's combination of the two trees, the highest leaf first, and that is its definition.
    Parameters, returns and errors are those of `join_tree`.
    """
    order = vertex_order(field_values(graph, values))
    return _contracted(order, _contour_arcs(graph, order))


def contour_counts(graph: Graph, values: ArrayLike) -> ContourCounts:
    """Count the contour tree's maxima, minima, merges and arcs.

    Parameters and errors are those of `join_tree`.
    """
    tree = contour_tree(graph, values)
    n_above = np.bincount(tree.arcs[:, 1], minlength=graph.n_vertices)[tree.nodes]
    n_below = np.bincount(tree.arcs[:, 0], minlength=graph.n_vertices)[tree.nodes]
    return ContourCounts(
        n_maxima=int(np.count_nonzero(n_above == 0)),
        n_minima=int(np.count_nonzero(n_below == 0)),
        n_merges=int(np.count_nonzero((n_above > 1) | (n_below > 1))),
        n_arcs=len(tree.arcs),
    )


def field_values(graph: Graph, values: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return the field as a contiguous float32 or float64 array, or say what is wrong with it.

    Raises
    ------
    InputError
        If there is not one finite value a vertex.
    """
    field = np.asarray(values)
    n = graph.n_vertices
    if field.shape != (n,) or field.dtype.kind not in "buif":
        raise InputError(
            f"values: wrong array: expected {n} real numbers, one a vertex, got shape "
            f"{field.shape} of {field.dtype}. Give the field of this graph."
        )
    if field.dtype != np.float32:
        field = field.astype(np.float64, copy=False)
    if not np.isfinite(field).all():
        wrong = int(np.flatnonzero(~np.isfinite(field))[0])
        raise InputError(
            f"values: not finite: expected finite numbers, got {field[wrong]} at vertex {wrong}. "
            "Leave such a field out."
        )
    return np.ascontiguousarray(field)


def vertex_order(field: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Sort the vertices by (value, index), ascending: the total order of every sweep.

    Parameters
    ----------
    field : (n,) float32 or float64, finite
        Zeros of both signs are equal.

    Returns
    -------
    (n,) int32
        Split trees sweep it forwards, join trees backwards.
    """
    # the bits of floats, as unsigned integers, ascend like the floats once the sign is mended
    unsigned = np.uint32 if field.dtype == np.float32 else np.uint64
    bits: NDArray[Any] = (field + field.dtype.type(0)).view(unsigned)
    sign = unsigned(1) << unsigned(8 * bits.itemsize - 1)
    order: NDArray[np.int32] = _radix_order(np.where(bits & sign, ~bits, bits | sign))
    return order


@njit(cache=True, nogil=True)
def _radix_order(keys):  # type: ignore[no-untyped-def]
    """Sort indices by (key, index): from the lowest digit up, each pass keeping the last order."""
    n = len(keys)
    order = np.arange(n).astype(np.int32)
    other = np.empty_like(order)
    for shift in range(0, 8 * keys.itemsize, RADIX_BITS):
        ends = np.zeros(RADIX + 1, np.int64)
        for v in range(n):
            ends[_digit(keys[v], shift) + 1] += 1
        if n == 0 or ends[_digit(keys[0], shift) + 1] == n:
            continue  # the digit is the same everywhere
        for digit in range(RADIX):
            ends[digit + 1] += ends[digit]
        for i in range(n):
            digit = _digit(keys[order[i]], shift)
            other[ends[digit]] = order[i]
            ends[digit] += 1
        order, other = other, order
    return order


@njit(cache=True, nogil=True)
def _digit(key, shift):  # type: ignore[no-untyped-def]
    return np.int64((np.uint64(key) >> np.uint64(shift)) & np.uint64(RADIX - 1))


# -- the sweep ------------------------------------------------------------------------------


def join_sweep(graph: Graph, order: NDArray[np.int32]) -> Sweep:
    """Sweep from high to low; `order` is that of `vertex_order`. Time n alpha(n) + n_edges."""
    return _swept(graph, np.ascontiguousarray(order[::-1]))


def split_sweep(graph: Graph, order: NDArray[np.int32]) -> Sweep:
    """Sweep from low to high; `order` is that of `vertex_order`. Time n alpha(n) + n_edges."""
    return _swept(graph, order)


def _swept(graph: Graph, order: NDArray[np.int32]) -> Sweep:
    return Sweep(order, *_sweep(read_only(graph.indptr), read_only(graph.indices), order))


@njit(cache=True, nogil=True)
def _sweep(indptr, indices, order):  # type: ignore[no-untyped-def]
    n = len(order)
    side = np.zeros(n, np.uint8)  # by vertex: 0 until it is swept, then FIRST or YOUNGER
    component = np.empty(n, np.int32)  # by vertex: that which it was swept into
    parent = np.empty(n + 1, np.int32)  # by component: an elder one that it has met, or itself
    births = np.empty(n + 1, np.int32)
    deaths = np.empty(n + 1, np.int32)
    last = np.zeros(n + 1, np.int32)  # by component: the time of its latest vertex
    successor = np.arange(n).astype(np.int32)
    younger = np.empty(n, np.int32)  # neighbours that were not known to be in the first
    n_components = 0
    for time in range(n):
        v = order[time]
        first, end = indptr[v], indptr[v + 1]
        soon = order[min(time + READ_AHEAD, n - 1)]
        for i in range(indptr[soon], indptr[soon + 1], LINE):
            prefetch(indices, i)
        met = 0
        for i in range(first, end):
            met |= side[indices[i]]
        c = np.int32(1)
        if met == 0:
            n_components += 1
            c = np.int32(n_components)
            births[c] = time
            parent[c] = c
        elif met >= YOUNGER:
            n_younger = np.int64(0)
            for i in range(first, end):
                younger[n_younger] = indices[i]
                n_younger += side[indices[i]] // YOUNGER
            if met == YOUNGER:
                c = np.int32(n_components)
            for u in younger[:n_younger]:
                component[u] = _root(parent, component[u])
                c = min(c, component[u])
            for u in younger[:n_younger]:
                other = _root(parent, component[u])
                if other != c:
                    parent[other] = c
                    deaths[other] = time
                    successor[last[other]] = time
                if c == 1:
                    side[u] = FIRST
        if met > 0:
            successor[last[c]] = time
        component[v] = c
        last[c] = time
        side[v] = FIRST if c == 1 else YOUNGER
    essential = np.empty(n_components, np.bool_)
    for e in range(1, n_components + 1):
        essential[e - 1] = parent[e] == e
        if parent[e] == e:
            deaths[e] = last[e]
    born = slice(1, n_components + 1)
    return births[born].copy(), deaths[born].copy(), essential, successor


@njit(cache=True, nogil=True)
def _root(parent, c):  # type: ignore[no-untyped-def]
    """Return the eldest component that c has become part of, halving the path to it."""
    while parent[c] != c:
        parent[c] = parent[parent[c]]
        c = parent[c]
    return c


# -- trees from sweeps ----------------------------------------------------------------------


def _join_arcs(sweep: Sweep) -> NDArray[np.int64]:
    """Return the augmented tree as (upper, lower) ranks: places in the ascending order."""
    times = np.flatnonzero(sweep.successor != np.arange(len(sweep.order)))
    return len(sweep.order) - 1 - np.column_stack([times, sweep.successor[times]])


def _split_arcs(sweep: Sweep) -> NDArray[np.int64]:
    """Return the augmented tree as (upper, lower) ranks: places in the ascending order."""
    times = np.flatnonzero(sweep.successor != np.arange(len(sweep.order)))
    arcs: NDArray[np.int64] = np.column_stack([sweep.successor[times], times])
    return arcs


def _contour_arcs(graph: Graph, order: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the augmented contour tree as (upper, lower) ranks."""
    below = len(order) - 1 - join_sweep(graph, order).successor[::-1]
    above = split_sweep(graph, order).successor
    arcs: NDArray[np.int64] = combined_arcs(np.ascontiguousarray(below, np.int32), above)
    return arcs


def _contracted(order: NDArray[np.int32], arcs: NDArray[np.int64]) -> MergeTree:
    """Keep the vertices of an augmented tree that have not just one neighbour on either side."""
    nodes, kept = _contract(len(order), _descending(len(order), arcs))
    return MergeTree(order[nodes], order[_descending(len(order), kept)])


def _descending(n: int, arcs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort arcs by their upper rank, then by their lower one, from high to low."""
    keys = np.sort(arcs[:, 0] * n + arcs[:, 1])[::-1]
    return np.column_stack([keys // n, keys % n]) if n else arcs


@njit(cache=True, nogil=True)
def _contract(n, arcs):  # type: ignore[no-untyped-def]
    n_above = np.zeros(n, np.int32)
    n_below = np.zeros(n, np.int32)
    for upper, lower in arcs:
        n_below[upper] += 1
        n_above[lower] += 1
    is_node = (n_above != 1) | (n_below != 1)
    node_above = np.arange(n)  # where a chain of other vertices starts
    kept = np.empty_like(arcs)
    n_kept = 0
    for upper, lower in arcs:
        if is_node[lower]:
            kept[n_kept, 0] = node_above[upper]
            kept[n_kept, 1] = lower
            n_kept += 1
        else:
            node_above[lower] = node_above[upper]
    return np.flatnonzero(is_node)[::-1], kept[:n_kept].copy()
