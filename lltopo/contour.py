"""Carr's combination of an augmented join and an augmented split tree into the contour tree.

Leaf after leaf is taken off both trees (Carr, Snoeyink and Axen 2003, algorithm 4.2). An upper
leaf has nothing above it in the join tree and one vertex below it in the split tree: its arc
is the join tree's. A lower leaf likewise. In the tree where it is no leaf, its one neighbour on
that side is tied to the next; that neighbour is known from the sum of all neighbours there.

On a graph with cycles the outcome depends on the order in which leaves are taken, and some
orders leave vertices without an arc. Here the highest leaf always goes first.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def combined_arcs(below, above):  # type: ignore[no-untyped-def]
    """Return the arcs (upper, lower) of the augmented contour tree.

    Parameters
    ----------
    below, above : (n,) int32
        By rank in the total order: the next vertex down in the join tree, the next one up in
        the split tree, or the vertex itself where there is none. Both are used up.

    Returns
    -------
    (n - c, 2) int64
        Ranks, in the order found, for c components of the graph. Time n log n.
    """
    n = len(below)
    n_above, sum_above = _sides(below)  # in the join tree
    n_below, sum_below = _sides(above)  # in the split tree
    leaves = [-v for v in range(n - 1, -1, -1) if n_above[v] + n_below[v] == 1]  # a heap
    arcs = np.empty((n, 2), np.int64)
    n_arcs = 0
    while len(leaves) > 0:
        v = -heappop(leaves)
        if n_above[v] + n_below[v] != 1:
            continue  # the last of its component
        if n_above[v] == 0:
            other = below[v]
            arcs[n_arcs, 0] = v
            arcs[n_arcs, 1] = other
            _take_leaf(v, below, n_above, sum_above)
            _take_inner(v, above, n_below, sum_below)
        else:
            other = above[v]
            arcs[n_arcs, 0] = other
            arcs[n_arcs, 1] = v
            _take_leaf(v, above, n_below, sum_below)
            _take_inner(v, below, n_above, sum_above)
        n_arcs += 1
        if n_above[other] + n_below[other] == 1:
            heappush(leaves, -other)
    return arcs[:n_arcs].copy()


@njit(cache=True, nogil=True)
def _sides(successor):  # type: ignore[no-untyped-def]
    """Count and add up the vertices whose successor each vertex is."""
    count = np.zeros(len(successor), np.int32)
    total = np.zeros(len(successor), np.int64)
    for v in range(len(successor)):
        if successor[v] != v:
            count[successor[v]] += 1
            total[successor[v]] += v
    return count, total


@njit(cache=True, nogil=True)
def _take_leaf(v, successor, count, total):  # type: ignore[no-untyped-def]
    """Take v out of the tree where nothing comes before it."""
    count[successor[v]] -= 1
    total[successor[v]] -= v


@njit(cache=True, nogil=True)
def _take_inner(v, successor, count, total):  # type: ignore[no-untyped-def]
    """Take v out of the tree where one vertex comes before it, and tie that to the next."""
    before = np.int32(total[v])
    if successor[v] == v:
        successor[before] = before
    else:
        successor[before] = successor[v]
        total[successor[v]] += before - v
