"""Optimal matchings of order 1, as transshipment on a sparse graph of the points.

With x = birth + death and y = death - birth the L-infinity distance is half the L1 distance in
(x, y), and the diagonal is one root at distance y from every point. As this is a metric, a unit may
travel through other points on its way. So an arc is needed only where the rectangle between two
points holds no third one, and where it is shorter than the detour over the root: about a dozen
arcs a point instead of all pairs, and potentials that fit these arcs fit all pairs.
(Such points dominate each other directly: Güting, Nurmi and Ottmann 1989.)

Coordinates are integers, on the finest binary grid that the values need. Where that takes too many
bits, gaps wider than the whole distance are narrowed, for no unit crosses them; what is still too
fine is rounded, and the bound of that is told.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lltopo.network_simplex import (
    UNBOUNDED,
    Integer,
    Network,
    Tree,
    improve_tree,
    join_nearest,
    star_tree,
)

Integers = NDArray[np.int64]
BigIntegers = NDArray[np.object_]  # of Python's int, which never overflows

COORDINATE_BITS = 57  # potentials may take three more
NEGLIGIBLE_BITS = 50  # a bound this far below the distance is lost in its last digits
MAX_ARCS_PER_POINT = 64
STRETCH = 32  # points passed by at once, where none of them is low enough


class TooManyArcs(Exception):
    """The sparse graph is not sparse: the points lie on few lines across the diagonal."""


class Transport(NamedTuple):
    """A cheapest transport between two diagrams, with its proof.

    pairs : (m, 2) int64, the matched rows of a and of b; all others go to the diagonal.
    price_a, price_b : int64, the dual prices of the rows. The prices of two rows sum up to no more
        than their pair costs, the price of one is at most the cost of its way to the diagonal.
    primal, dual : the sums of the matching's costs and of all prices, which prove each other
        optimal by being equal.
    unit : the length that one of these integers stands for.
    rounding : a bound of what rounding to integers may have added to the matching's cost, in units.
    """

    pairs: Integers
    price_a: Integers
    price_b: Integers
    primal: int
    dual: int
    unit: float
    rounding: int


def sparse_transport(a: NDArray[np.float64], b: NDArray[np.float64]) -> Transport:
    """The cheapest transport of order 1 between two ascending diagrams off the diagonal.

    Raises
    ------
    TooManyArcs
        Where the graph would need more than MAX_ARCS_PER_POINT arcs a point.
    """
    mantissa, shift, unit = _binary(np.concatenate((a, b)))
    if int((np.frexp(mantissa.astype(np.float64))[1] + shift).max()) < COORDINATE_BITS - 1:
        births, deaths = (mantissa << shift).T
        # a sum that does not fit sends the points to the rounded grid below
        with contextlib.suppress(OverflowError):
            return _transport_on_grid(births + deaths, deaths - births, len(a), unit)
    big_births, big_deaths = (mantissa.astype(object) << shift.astype(object)).T
    x, y = big_births + big_deaths, big_deaths - big_births
    try:
        return _rounded_transport(x, y, len(a), unit, COORDINATE_BITS)
    except OverflowError:  # no potential can exceed the sum of all nodes' costs
        return _rounded_transport(x, y, len(a), unit, COORDINATE_BITS - len(x).bit_length())


def _binary(values: NDArray[np.float64]) -> tuple[Integers, Integers, float]:
    """Values as mantissa * 2**shift * 2 * unit, with odd mantissas and the smallest shift 0."""
    fraction, exponent = np.frexp(values)
    mantissa = np.ldexp(fraction, 53).astype(np.int64)
    n_trailing = np.frexp((mantissa & -mantissa).astype(np.float64))[1].astype(np.int64) - 1
    mantissa >>= np.maximum(n_trailing, 0)
    shift = exponent + n_trailing - 53
    finest = int(shift[mantissa != 0].min())
    # Lengths in (x, y) are twice those of the diagrams.
    return mantissa, np.where(mantissa != 0, shift - finest, 0), float(np.ldexp(1.0, finest - 1))


def _rounded_transport(
    x: BigIntegers, y: BigIntegers, n_a: int, unit: float, n_bits: int
) -> Transport:
    """Transport of coordinates with too many bits, narrowed and rounded to so many."""
    limit = sum(y)
    while True:
        narrow_x, narrow_y = _narrowed(x, limit, min(x)), _narrowed(y, limit, 0)
        n_dropped = max(0, int(max(*narrow_x, *narrow_y)).bit_length() - n_bits)
        transport = _transport_on_grid(
            (narrow_x >> n_dropped).astype(np.int64),
            np.maximum(narrow_y >> n_dropped, 1).astype(np.int64),
            n_a,
            float(np.ldexp(unit, n_dropped)),
        )
        cost = _matching_cost(x, y, n_a, transport.pairs)
        rounding = 2 * len(x) if n_dropped else 0
        if rounding << n_dropped + NEGLIGIBLE_BITS <= cost or 2 * cost > limit:
            return transport._replace(rounding=rounding)
        limit = cost


def _narrowed(values: BigIntegers, limit: int, start: int) -> BigIntegers:
    """The values from ``start`` on, every gap between neighbours cut to twice the limit."""
    order = np.argsort(values)
    narrowed = np.empty_like(values)
    narrowed[order] = np.cumsum(np.minimum(np.diff(values[order], prepend=start), 2 * limit + 1))
    return narrowed


def _matching_cost(x: NDArray[Any], y: NDArray[Any], n_a: int, pairs: Integers) -> int:
    rows_a, rows_b = pairs[:, 0], pairs[:, 1] + n_a
    lengths = np.abs(x[rows_a] - x[rows_b]) + np.abs(y[rows_a] - y[rows_b])
    return int(sum(lengths.tolist()) + sum(np.delete(y, [*rows_a, *rows_b]).tolist()))


def _transport_on_grid(x: Integers, y: Integers, n_a: int, unit: float) -> Transport:
    """The cheapest transport between rows with integer coordinates, the first n_a of them a's."""
    node_of_row, row_of_node = distinct_rows(x, y)
    node_x, node_y = x[row_of_node], y[row_of_node]
    network = sparse_network(node_x, node_y)
    supply = net_supply(node_of_row, n_a)
    tree = star_tree(supply, node_y)
    join_nearest(network, tree, supply)
    improve_tree(network, tree)
    pairs = matched_rows(tree, node_of_row, n_a)
    price = tree.potential[node_of_row]
    price[n_a:] *= -1
    return Transport(
        pairs=pairs,
        price_a=price[:n_a],
        price_b=price[n_a:],
        primal=_matching_cost(x, y, n_a, pairs),
        dual=sum(price.tolist()),
        unit=unit,
        rounding=0,
    )


def distinct_rows(x: NDArray[Any], y: NDArray[Any]) -> tuple[Integers, Integers]:
    """The node of each row, equal rows sharing one, and a row of each node, sorted by x and y."""
    order = np.lexsort((y, x))
    is_new = np.append(True, (np.diff(x[order]) != 0) | (np.diff(y[order]) != 0))
    node_of_row = np.empty_like(order)
    node_of_row[order] = np.cumsum(is_new) - 1
    return node_of_row, order[is_new]


def net_supply(node_of_row: Integers, n_a: int) -> Integers:
    """How many more rows of a than of b each node has."""
    n_nodes = int(node_of_row.max()) + 1
    return np.bincount(node_of_row[:n_a], minlength=n_nodes) - np.bincount(
        node_of_row[n_a:], minlength=n_nodes
    )


def sparse_network(x: Integers, y: Integers) -> Network:
    """Two-way arcs between distinct points, sorted by x, and between each and the root."""
    n_points = len(x)
    capacity = MAX_ARCS_PER_POINT * n_points
    tail, head = np.empty(capacity, dtype=np.uint32), np.empty(capacity, dtype=np.uint32)
    cost = np.empty(capacity, dtype=np.int64)
    by_height = np.argsort(y, kind="stable")[::-1].copy()
    n_arcs = _fill_arcs(x, y, by_height, tail, head, cost)
    if n_arcs > capacity:
        raise TooManyArcs
    return Network(tail[:n_arcs], head[:n_arcs], cost[:n_arcs], two_way=True)


@njit(cache=True, nogil=True)
def _fill_arcs(
    x: Integers,
    y: Integers,
    by_height: Integers,
    tail: NDArray[np.uint32],
    head: NDArray[np.uint32],
    cost: Integers,
) -> int:
    """Write the arcs from each point to higher ones; their number, or more than there is room.

    Points are taken from the highest down, so that the heights so far are those of the higher
    points. Going away from a point, the rectangle to another is empty as long as that one is
    lower than all before it.
    """
    n_points = len(x)
    height = np.full(n_points, UNBOUNDED, dtype=np.int64)
    lowest = np.full(n_points // STRETCH + 1, UNBOUNDED, dtype=np.int64)
    n_arcs = 0
    for point in by_height:
        if n_arcs + 1 > len(tail):
            return len(tail) + 1
        tail[n_arcs], head[n_arcs], cost[n_arcs] = point, n_points, y[point]
        n_arcs += 1
        reach = 2 * y[point]  # beyond it the way over the root is not longer
        for step in (-1, 1):
            if step > 0:
                end = np.searchsorted(x, x[point] + reach)
            else:
                end = np.searchsorted(x, x[point] - reach, side="right") - 1
            bound, other = np.int64(UNBOUNDED), point
            while bound > y[point]:
                other = _next_below(height, lowest, other + step, end, bound)
                if other == end:
                    break
                if n_arcs == len(tail):
                    return n_arcs + 1
                bound = height[other]
                tail[n_arcs], head[n_arcs] = point, other
                cost[n_arcs] = abs(x[other] - x[point]) + bound - y[point]
                n_arcs += 1
        height[point] = lowest[point // STRETCH] = y[point]
    return n_arcs


@njit(cache=True, nogil=True)
def _next_below(
    height: Integers, lowest: Integers, start: Integer, end: Integer, bound: Integer
) -> Integer:
    """The first position from ``start`` towards ``end`` whose height is below the bound."""
    position = start
    if start <= end:
        while position < end:
            if lowest[position // STRETCH] >= bound:
                position = (position // STRETCH + 1) * STRETCH
            elif height[position] < bound:
                return position
            else:
                position += 1
        return end
    while position > end:
        if lowest[position // STRETCH] >= bound:
            position = position // STRETCH * STRETCH - 1
        elif height[position] < bound:
            return position
        else:
            position -= 1
    return end


class Chains(NamedTuple):
    """The rows that wait at each node, all of one diagram, as linked lists; -1 ends a list."""

    first: Integers
    last: Integers
    following: Integers


def matched_rows(tree: Tree, node_of_row: Integers, n_a: Integer) -> Integers:
    """The pairs of rows that the flow on a tree connects; rows left over flow to the root."""
    depth, parent = tree.nodes["depth"][:-1], tree.nodes["parent"][:-1].astype(np.int64)
    deepest_first = np.argsort(-depth, kind="stable")
    chains = Chains(*(np.full(n, -1) for n in (len(parent), len(parent), len(node_of_row))))
    partner = np.full(len(node_of_row), -1)
    _match_along_tree(chains, partner, parent, deepest_first, node_of_row, n_a)
    rows_a = np.flatnonzero(partner[:n_a] >= 0)
    return np.column_stack((rows_a, partner[rows_a] - n_a))


@njit(cache=True, nogil=True)
def _match_along_tree(
    chains: Chains,
    partner: Integers,
    parent: Integers,
    deepest_first: Integers,
    node_of_row: Integers,
    n_a: Integer,
) -> None:
    """Match the rows at each node among themselves, and send what is left to its parent."""
    for row in range(len(node_of_row)):
        _deliver(chains, partner, node_of_row[row], row, row, n_a)
    for node in deepest_first:
        if parent[node] < len(parent):  # at the root nothing is matched
            _deliver(chains, partner, parent[node], chains.first[node], chains.last[node], n_a)


@njit(cache=True, nogil=True)
def _deliver(
    chains: Chains, partner: Integers, node: Integer, first: Integer, last: Integer, n_a: Integer
) -> None:
    """Match a chain of rows with those that wait at a node; what is left waits there too."""
    while first >= 0 and chains.first[node] >= 0 and (first < n_a) != (chains.first[node] < n_a):
        waiting = chains.first[node]
        partner[first], partner[waiting] = waiting, first
        first, chains.first[node] = chains.following[first], chains.following[waiting]
    if first >= 0:
        if chains.first[node] < 0:
            chains.last[node] = last
        chains.following[last] = chains.first[node]
        chains.first[node] = first
