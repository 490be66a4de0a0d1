"""Optimal matchings of order infinity, by augmenting paths between closing thresholds.

At a threshold t only the points whose way to the diagonal is longer than t must have a partner, at
most t away. Whether all of one diagram's can, and all of the other's, are two questions (Mendelsohn
and Dulmage 1958): a point once matched stays so while the other side is served. A side is served by
rounds of breadth-first search from all its points without partner at once (Hopcroft and Karp 1973):
a path ends at a free partner, or at a point that may go to the diagonal and leaves its partner.

The distance is one of the lengths. So a matching lowers the upper bound to the longest length that
it uses, and a failure raises the lower bound to the shortest length that would have led further.
The search starts at the nearest neighbours' lower bound, and gallops.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GALLOP = 1 / 64  # the first step from the lower bound, of the way to the upper one


class Side(NamedTuple):
    """The points of one diagram, sorted by birth + death."""

    birth: Floats
    death: Floats
    position: Floats
    way: Floats  # to the diagonal


def bottleneck_pairs(a: Floats, b: Floats) -> Integers:
    """Pairs of rows of two ascending diagrams, (m, 2), whose longest length is the least possible.

    The others go to the diagonal. Points must lie off the diagonal. Takes O(n) memory; the time is
    that of some ten thresholds, a few passes over the pairs of near points each.
    """
    order_a, order_b = (np.argsort(points.sum(axis=1), kind="stable") for points in (a, b))
    side_a, side_b = _side(a[order_a]), _side(b[order_b])
    partner = _bottleneck_partners(side_a, side_b)
    matched = np.flatnonzero(partner >= 0)
    return np.column_stack((order_a[matched], order_b[partner[matched]]))


def _side(points: Floats) -> Side:
    birth, death = np.ascontiguousarray(points.T)
    return Side(birth, death, birth + death, (death - birth) / 2)


@njit(cache=True, nogil=True)
def _bottleneck_partners(a: Side, b: Side) -> Integers:
    """The partner in b of each point of a, or -1, in a matching whose longest length is least."""
    partner_of_a, partner_of_b = np.full(len(a.way), -1), np.full(len(b.way), -1)
    best, upper = partner_of_a.copy(), max(a.way.max(), b.way.max())
    lower = max(_nearest_bound(a, b), _nearest_bound(b, a))
    threshold, step = lower, (upper - lower) * GALLOP
    while lower < upper:
        _drop_longer(a, b, partner_of_a, partner_of_b, threshold)
        next_length = _serve(a, b, partner_of_a, partner_of_b, threshold)
        if next_length == 0:
            next_length = _serve(b, a, partner_of_b, partner_of_a, threshold)
        if next_length > 0:
            lower = next_length
            step *= 2
        else:
            best, upper = partner_of_a.copy(), _longest(a, b, partner_of_a, partner_of_b)
        threshold = max(lower, min(lower + step, lower + (upper - lower) / 2))
    return best


@njit(cache=True, nogil=True)
def _length(a: Side, i: int, b: Side, j: int) -> float:
    return float(max(abs(a.birth[i] - b.birth[j]), abs(a.death[i] - b.death[j])))


@njit(cache=True, nogil=True)
def _reach(side: Side, i: int, length: float) -> float:
    """How far apart the positions of points within a length may be, with room for rounding."""
    return float(2 * length + 1e-15 * (abs(side.position[i]) + 2 * length))


@njit(cache=True, nogil=True)
def _nearest_bound(a: Side, b: Side) -> float:
    """The longest of the shortest lengths that a's points can have."""
    bound = 0.0
    for i in range(len(a.way)):
        shortest = a.way[i]
        middle = np.searchsorted(b.position, a.position[i])
        for start, end, step in ((middle, len(b.way), 1), (middle - 1, -1, -1)):
            for j in range(start, end, step):
                if abs(b.position[j] - a.position[i]) > _reach(a, i, shortest) or shortest <= bound:
                    break
                shortest = min(shortest, _length(a, i, b, j))
        bound = max(bound, shortest)
    return bound


@njit(cache=True, nogil=True)
def _drop_longer(
    a: Side, b: Side, partner_of_a: Integers, partner_of_b: Integers, threshold: float
) -> None:
    """Part the pairs that are longer than the threshold."""
    for i in range(len(a.way)):
        j = partner_of_a[i]
        if j >= 0 and _length(a, i, b, j) > threshold:
            partner_of_a[i] = partner_of_b[j] = -1


@njit(cache=True, nogil=True)
def _longest(a: Side, b: Side, partner_of_a: Integers, partner_of_b: Integers) -> float:
    """The longest length that a matching uses."""
    longest = 0.0
    for i in range(len(a.way)):
        j = partner_of_a[i]
        longest = max(longest, a.way[i] if j < 0 else _length(a, i, b, j))
    for j in range(len(b.way)):
        if partner_of_b[j] < 0:
            longest = max(longest, b.way[j])
    return longest


@njit(cache=True, nogil=True)
def _serve(
    a: Side, b: Side, partner_of_a: Integers, partner_of_b: Integers, threshold: float
) -> float:
    """Match all points of a that must be; 0, or where they cannot the next length that may help."""
    n_a, n_b = len(a.way), len(b.way)
    queue, root = np.empty(n_a, dtype=np.int64), np.empty(n_a, dtype=np.int64)
    found_by = np.empty(n_b, dtype=np.int64)
    while True:
        n_queued = 0
        for i in range(n_a):
            if partner_of_a[i] < 0 and a.way[i] > threshold:
                queue[n_queued], root[i] = i, i
                n_queued += 1
        if n_queued == 0:
            return 0.0
        unseen = np.arange(n_b + 1)  # leads from each point of b to the next one not seen yet
        is_served = np.zeros(n_a, dtype=np.bool_)
        n_served, n_done = 0, 0
        while n_done < n_queued:
            i = queue[n_done]
            n_done += 1
            if is_served[root[i]]:
                continue
            reach = _reach(a, i, threshold)
            j = _next_unseen(unseen, np.searchsorted(b.position, a.position[i] - reach))
            while j < n_b and b.position[j] <= a.position[i] + reach:
                if _length(a, i, b, j) <= threshold:
                    unseen[j], found_by[j] = j + 1, i
                    other = partner_of_b[j]
                    if other < 0 or a.way[other] <= threshold:
                        _augment(partner_of_a, partner_of_b, found_by, j)
                        is_served[root[i]] = True
                        n_served += 1
                        break
                    queue[n_queued], root[other] = other, root[i]
                    n_queued += 1
                j = _next_unseen(unseen, j + 1)
        if n_served == 0:
            return _next_length(a, b, queue[:n_queued], unseen)


@njit(cache=True, nogil=True)
def _next_unseen(unseen: Integers, start: int) -> int:
    """The first point from ``start`` on that was not seen, shortening the way to it."""
    end = start
    while unseen[end] != end:
        end = unseen[end]
    while unseen[start] != end:
        unseen[start], start = end, unseen[start]
    return end


@njit(cache=True, nogil=True)
def _augment(partner_of_a: Integers, partner_of_b: Integers, found_by: Integers, end: int) -> None:
    """Give every point of b on the path to ``end`` to the point of a that found it."""
    if partner_of_b[end] >= 0:
        partner_of_a[partner_of_b[end]] = -1
    j = end
    while j >= 0:
        i = found_by[j]
        partner_of_b[j] = i
        partner_of_a[i], j = j, partner_of_a[i]


@njit(cache=True, nogil=True)
def _next_length(a: Side, b: Side, stuck: Integers, unseen: Integers) -> float:
    """The shortest length that leads stuck points of a to the diagonal or an unseen point of b."""
    shortest = np.inf
    for i in stuck:
        shortest = min(shortest, a.way[i])
    for i in stuck:
        j = _next_unseen(
            unseen, np.searchsorted(b.position, a.position[i] - _reach(a, i, shortest))
        )
        while j < len(b.way) and b.position[j] <= a.position[i] + _reach(a, i, shortest):
            shortest = min(shortest, _length(a, i, b, j))
            j = _next_unseen(unseen, j + 1)
    return shortest
