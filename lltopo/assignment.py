"""Optimal matchings of any order p, as a bipartite flow whose arcs are found as they are needed.

For p > 1 the costs c^p know no triangle inequality: a unit goes from a point of one diagram
straight to one of the other, or to the diagonal. Of all pairs only few are ever worth an arc. A
network simplex solves the problem on some; its prices tell which pairs it misses, those that cost
less than the prices of their two points; the most wasteful of them are added, until none is left
(column generation, Ford and Fulkerson 1958).

A pair is looked for from its dearer point, whose price bounds how far away a partner can be. No
length above a known limit of the distance can be part of the matching, so costs are cut above it:
that keeps the integers fine enough, however far the persistences lie apart. The first limit is the
cost of the bottleneck matching, the next the cost that was found below it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lltopo.bottleneck import bottleneck_pairs
from lltopo.lengths import matching_lengths, p_norm
from lltopo.network_simplex import Integer, Network, Tree, improve_tree, join_nearest, star_tree
from lltopo.transport import Integers, Transport, distinct_rows, matched_rows, net_supply

Floats = NDArray[np.float64]

COST_BITS = 56  # potentials may take four more
ARCS_PER_POINT = 6  # that each point finds in a round, the most wasteful ones
NEGLIGIBLE_BITS = 39  # a bound of rounding this far below the power of the distance is enough
WAY_CUT = 1.01  # times the limit's power, which no matching with such a way stays below,
PAIR_CUT = 3.0  # and more than two ways, so that no price ever calls for such a pair


class Ground(NamedTuple):
    """The distinct points of both diagrams, a's first, each sorted by birth + death; their costs.

    A length costs (length / limit) ** order * scale, rounded; from ``longest`` on all cost the
    same.
    """

    birth: Floats
    death: Floats
    n_a: int
    order: float
    limit: float
    longest: float
    scale: float


def priced_transport(a: Floats, b: Floats, order: float) -> Transport:
    """The cheapest transport of an order between two ascending diagrams off the diagonal.

    Prices and costs are powers: an integer of it stands for unit ** order.
    """
    pairs = bottleneck_pairs(a, b)
    limit = p_norm(matching_lengths(a, b, pairs), order)
    if limit == 0:
        prices = np.zeros(len(a) + len(b), dtype=np.int64)
        return Transport(pairs, prices[: len(a)], prices[len(a) :], 0, 0, 0.0, 0)
    while True:
        try:
            transport = _transport_below(a, b, order, limit, COST_BITS)
        except OverflowError:  # no potential can exceed the sum of all points' costs
            n_bits = COST_BITS - (len(a) + len(b)).bit_length()
            transport = _transport_below(a, b, order, limit, n_bits)
        norm = p_norm(matching_lengths(a, b, transport.pairs), order)
        if transport.rounding << NEGLIGIBLE_BITS <= transport.primal or 2 * norm > limit:
            return transport
        limit = norm


def _transport_below(a: Floats, b: Floats, order: float, limit: float, n_bits: int) -> Transport:
    """The cheapest transport, where it is known to cost no more than the limit."""
    node_of_a, row_of_node = distinct_rows(a.sum(axis=1), a[:, 1])
    points_a = a[row_of_node]
    node_of_b, row_of_node = distinct_rows(b.sum(axis=1), b[:, 1])
    birth, death = np.concatenate((points_a, b[row_of_node])).T.copy()
    longest = limit * PAIR_CUT ** (1 / order)
    ground = Ground(birth, death, len(points_a), order, limit, longest, float(1 << n_bits))
    node_of_row = np.concatenate((node_of_a, node_of_b + ground.n_a))
    tree = _priced_tree(ground, net_supply(node_of_row, len(a)))
    pairs = matched_rows(tree, node_of_row, len(a))
    price = tree.potential[node_of_row]
    price[len(a) :] *= -1
    return Transport(
        pairs=pairs,
        price_a=price[: len(a)],
        price_b=price[len(a) :],
        primal=_matching_cost(ground, node_of_row, len(a), pairs),
        dual=sum(price.tolist()),
        unit=limit / ground.scale ** (1 / order),
        rounding=len(price),
    )


def _priced_tree(ground: Ground, supply: Integers) -> Tree:
    """The optimal tree on arcs that are added until no pair is missed."""
    ways = _way_costs(ground)
    nodes = np.arange(len(ways), dtype=np.uint32)
    roots = np.full(len(ways), len(ways), dtype=np.uint32)
    is_a = nodes < ground.n_a
    network = Network(np.where(is_a, nodes, roots), np.where(is_a, roots, nodes), ways, False)
    # At first all points have the same price, so that each finds its nearest partners.
    network = _with_arcs(network, _missed_arcs(ground, np.full_like(ways, int(ground.scale) // 2)))
    tree = star_tree(supply, ways)
    join_nearest(network, tree, supply)
    while True:
        improve_tree(network, tree)
        missed = _missed_arcs(ground, np.where(is_a, 1, -1) * tree.potential[:-1])
        if len(missed[0]) == 0:
            return tree
        network = _with_arcs(network, missed)


def _with_arcs(
    network: Network, arcs: tuple[NDArray[np.uint32], NDArray[np.uint32], Integers]
) -> Network:
    tail, head, cost = arcs
    return Network(
        np.concatenate((network.tail, tail)),
        np.concatenate((network.head, head)),
        np.concatenate((network.cost, cost)),
        network.two_way,
    )


def _matching_cost(ground: Ground, node_of_row: Integers, n_a: int, pairs: Integers) -> int:
    """The sum of the integer costs of the pairs and of all other rows' ways."""
    nodes_a, nodes_b = node_of_row[pairs[:, 0]], node_of_row[n_a + pairs[:, 1]]
    ways = np.delete(_way_costs(ground)[node_of_row], [*pairs[:, 0], *(n_a + pairs[:, 1])])
    return int(sum(_pair_costs(ground, nodes_a, nodes_b).tolist()) + sum(ways.tolist()))


@njit(cache=True, nogil=True)
def _power(ground: Ground, length: float) -> float:
    """The order-th power of a length, in powers of the limit."""
    share = min(length, ground.longest) / ground.limit
    if ground.order == 1:
        return float(share)
    if ground.order == 2:
        return share * share
    return float(share**ground.order)


@njit(cache=True, nogil=True)
def _pair_length(ground: Ground, i: Integer, j: Integer) -> float:
    births = abs(ground.birth[i] - ground.birth[j])
    return float(max(births, abs(ground.death[i] - ground.death[j])))


@njit(cache=True, nogil=True)
def _pair_cost(ground: Ground, length: float) -> Integer:
    return np.int64(_power(ground, length) * ground.scale + 0.5)


@njit(cache=True, nogil=True)
def _pair_costs(ground: Ground, nodes: Integers, others: Integers) -> Integers:
    costs = np.empty(len(nodes), dtype=np.int64)
    for k in range(len(nodes)):
        costs[k] = _pair_cost(ground, _pair_length(ground, nodes[k], others[k]))
    return costs


@njit(cache=True, nogil=True)
def _way_costs(ground: Ground) -> Integers:
    costs = np.empty(len(ground.birth), dtype=np.int64)
    for i in range(len(costs)):
        power = _power(ground, (ground.death[i] - ground.birth[i]) / 2)
        costs[i] = np.int64(min(power, WAY_CUT) * ground.scale + 0.5)
    return costs


class Span(NamedTuple):
    """Points to look at, in order, and how far from here they are of interest."""

    start: int
    end: int
    step: int
    radius: float


class Partners(NamedTuple):
    """The most wasteful partners of a point so far, in no order."""

    node: Integers
    cost: Integers
    waste: Integers


@njit(cache=True, nogil=True)
def _missed_arcs(
    ground: Ground, price: Integers
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], Integers]:
    """Tails, heads and costs of pairs that cost less than the prices of their two points.

    Of each point the most wasteful ones with points that are not dearer than itself.
    """
    n_points, n_a = len(price), ground.n_a
    position = ground.birth + ground.death
    tail = np.empty(ARCS_PER_POINT * n_points, dtype=np.uint32)
    head = np.empty(ARCS_PER_POINT * n_points, dtype=np.uint32)
    cost = np.empty(ARCS_PER_POINT * n_points, dtype=np.int64)
    partners = Partners(
        np.empty(ARCS_PER_POINT, dtype=np.int64),
        np.empty(ARCS_PER_POINT, dtype=np.int64),
        np.empty(ARCS_PER_POINT, dtype=np.int64),
    )
    n_arcs = 0
    for i in range(n_points):
        if price[i] <= 0:
            continue
        first, last = (n_a, n_points) if i < n_a else (0, n_a)
        radius = ground.limit * (2 * price[i] / ground.scale) ** (1 / ground.order) * (1 + 1e-9)
        reach = 2 * radius + 1e-15 * abs(position[i])
        others = position[first:last]
        start = first + np.searchsorted(others, position[i] - reach)
        middle = first + np.searchsorted(others, position[i])
        end = first + np.searchsorted(others, position[i] + reach, side="right")
        right, left = Span(middle, end, 1, radius), Span(middle - 1, start - 1, -1, radius)
        n_found = _find_partners(ground, price, i, right, partners, np.int64(0))
        n_found = _find_partners(ground, price, i, left, partners, n_found)
        for k in range(n_found):
            tail[n_arcs], head[n_arcs] = i, partners.node[k]
            if i >= n_a:
                tail[n_arcs], head[n_arcs] = partners.node[k], i
            cost[n_arcs] = partners.cost[k]
            n_arcs += 1
    return tail[:n_arcs], head[:n_arcs], cost[:n_arcs]


@njit(cache=True, nogil=True)
def _find_partners(
    ground: Ground,
    price: Integers,
    i: Integer,
    span: Span,
    partners: Partners,
    n_found: Integer,
) -> Integer:
    """Add those of a span of points to the partners that waste most; how many there are."""
    least = partners.waste.min() if n_found == ARCS_PER_POINT else np.int64(0)
    for j in range(span.start, span.end, span.step):
        length = _pair_length(ground, i, j)
        # Of two points with the same price a's finds the other.
        if length > span.radius or price[j] > price[i] or (price[j] == price[i] and i > j):
            continue
        pair_cost = _pair_cost(ground, length)
        waste = price[i] + price[j] - pair_cost
        if waste <= least:
            continue
        slot: Integer = n_found
        if n_found < ARCS_PER_POINT:
            n_found += 1
        else:
            slot = np.argmin(partners.waste)
        partners.node[slot], partners.cost[slot], partners.waste[slot] = j, pair_cost, waste
        if n_found == ARCS_PER_POINT:
            least = partners.waste.min()
    return n_found
