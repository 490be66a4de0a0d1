"""Primal network simplex in integers, for transport with a root that takes and gives freely.

Every spanning tree of the network is a basis: the supplies alone fix the flow on its arcs, and the
arcs' costs fix each node's potential, the cost of sending one more unit from it to the root. An
arc over which its tail would send that unit more cheaply enters the tree; the cycle it closes is
filled with flow until an arc runs empty, and that one leaves. When no such arc is left, tree and
potentials prove each other optimal, exactly, for all numbers are integers.

Trees stay strongly feasible (Cunningham 1976): an arc without flow points to the root, and of
several arcs that run empty the last one, going around from the cycle's apex, leaves. So no tree
comes twice. The entering arc is the best of a block (Grigoriadis 1986); blocks go round and round.
The first tree joins nearest neighbours of opposite supply, and hangs everything else on the root.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Integer = int | np.signedinteger[Any]  # compiled code knows only the latter

BLOCK_SIZE = 64
BLOCK_STRIDE = 8  # a block's arcs lie apart, so that they touch different parts of the tree
N_GREEDY_ROUNDS = 3
POTENTIAL_LIMIT = 1 << 60  # one more step beyond it still fits into 64 bits
UNBOUNDED = 1 << 62

NODE = np.dtype(
    [
        ("flow", np.int64),  # on the arc to the parent,
        ("upward", np.int32),  # which points to the parent (1) or away from it (0)
        ("parent", np.int32),
        ("depth", np.int32),
        ("first_child", np.int32),
        ("next_sibling", np.int32),
        ("previous_sibling", np.int32),
    ]
)


class Network(NamedTuple):
    """Arcs without capacities; two-way arcs may carry flow in either direction."""

    tail: NDArray[np.uint32]
    head: NDArray[np.uint32]
    cost: NDArray[np.int64]
    two_way: bool


class Tree(NamedTuple):
    """A spanning tree with its flow and potentials; the root is the last node."""

    nodes: NDArray[np.void]  # of dtype NODE
    potential: NDArray[np.int64]


def star_tree(supply: NDArray[np.int64], root_cost: NDArray[np.int64]) -> Tree:
    """The tree in which each node trades with the root alone.

    Parameters
    ----------
    supply : (n,) int64
        What each node gives (> 0) or takes (< 0). The root makes up the difference.
    root_cost : (n,) int64
        The cost of each node's arc to (or from) the root.
    """
    n_nodes = len(supply)
    nodes = np.zeros(n_nodes + 1, dtype=NODE)
    nodes["flow"][:-1] = np.abs(supply)
    nodes["upward"][:-1] = supply >= 0
    nodes["parent"] = n_nodes
    nodes["depth"][:-1] = 1
    nodes["first_child"] = -1
    nodes["first_child"][n_nodes] = 0
    nodes["next_sibling"] = np.arange(1, n_nodes + 2)
    nodes["next_sibling"][n_nodes - 1 :] = -1
    nodes["previous_sibling"] = np.arange(-1, n_nodes)
    potential = np.where(supply >= 0, root_cost, -root_cost)
    return Tree(nodes.view(np.recarray), np.append(potential, 0))


@njit(cache=True, nogil=True)
def join_nearest(network: Network, tree: Tree, supply: NDArray[np.int64]) -> None:
    """Join nodes of opposite supply that are each other's nearest, for a few rounds."""
    nodes, potential = tree
    root = len(supply)
    joined = np.zeros(root, dtype=np.bool_)
    for _ in range(N_GREEDY_ROUNDS):
        nearest, distance = _nearest_opposite(network, supply, joined)
        for node in range(root):
            other = nearest[node]
            if other < 0 or nearest[other] != node or supply[node] < 0:
                continue
            joined[node] = joined[other] = True
            if supply[node] + supply[other] >= 0:  # the root still takes what is left
                nodes[node].flow = supply[node] + supply[other]
                _move_child(nodes, other, node)
                nodes[other].depth = 2
                potential[other] = potential[node] - distance[node]
            else:
                nodes[other].flow = -supply[node] - supply[other]
                _move_child(nodes, node, other)
                nodes[node].depth = 2
                potential[node] = potential[other] + distance[node]


@njit(cache=True, nogil=True)
def _nearest_opposite(
    network: Network, supply: NDArray[np.int64], joined: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each node the unjoined neighbour of opposite supply that is nearest, and how far."""
    root = len(supply)
    nearest = np.full(root, -1, dtype=np.int64)
    distance = np.full(root, UNBOUNDED, dtype=np.int64)
    for arc in range(len(network.tail)):
        tail, head = np.int64(network.tail[arc]), np.int64(network.head[arc])
        if tail == root or head == root or joined[tail] or joined[head]:
            continue
        if np.sign(supply[tail]) * np.sign(supply[head]) >= 0:
            continue
        if network.cost[arc] < distance[tail]:
            nearest[tail], distance[tail] = head, network.cost[arc]
        if network.cost[arc] < distance[head]:
            nearest[head], distance[head] = tail, network.cost[arc]
    return nearest, distance


@njit(cache=True, nogil=True)
def improve_tree(network: Network, tree: Tree) -> None:
    """Pivot until the tree is optimal for the network.

    The arcs to and from the root are among the network's. All costs must be below 2^59.

    Raises
    ------
    OverflowError
        Where a potential left the range in which integers are exact; smaller costs avoid it.
    """
    nodes, potential = tree
    block: Integer = np.int64(0)
    while True:
        arc, excess, block = _entering_arc(network, potential, block)
        if arc < 0:
            return
        tail, head = np.int64(network.tail[arc]), np.int64(network.head[arc])
        if network.two_way and potential[tail] < potential[head]:
            tail, head = head, tail
        amount, leaving, is_below_tail = _leaving_arc(nodes, tail, head)
        if amount > 0:
            _push(nodes, tail, head, amount)
        if is_below_tail:
            _hang(nodes, leaving, tail, head, np.int64(1), amount)
            largest = _shift(nodes, potential, tail, -excess)
        else:
            _hang(nodes, leaving, head, tail, np.int64(0), amount)
            largest = _shift(nodes, potential, head, excess)
        if largest > POTENTIAL_LIMIT:
            raise OverflowError("a potential left the range of exact integers")


@njit(cache=True, nogil=True)
def _entering_arc(
    network: Network, potential: NDArray[np.int64], block: Integer
) -> tuple[Integer, Integer, Integer]:
    """The most wasteful arc of the first block that has one, its excess, and the next block."""
    tail, head, cost = network.tail, network.head, network.cost
    n_arcs = len(tail)
    span = BLOCK_SIZE * BLOCK_STRIDE
    n_blocks = (n_arcs + span - 1) // span * BLOCK_STRIDE
    two_way = np.int64(-1) if network.two_way else np.int64(0)
    for _ in range(n_blocks):
        first = block // BLOCK_STRIDE * span + block % BLOCK_STRIDE
        block = (block + 1) % n_blocks
        best, largest = -1, np.int64(0)
        for arc in range(first, min(first + span, n_arcs), BLOCK_STRIDE):
            drop = potential[tail[arc]] - potential[head[arc]]
            sign = (drop >> 63) & two_way
            excess = (drop ^ sign) - sign - cost[arc]
            if excess > largest:
                best, largest = arc, excess
        if best >= 0:
            return best, largest, block
    return -1, np.int64(0), block


@njit(cache=True, nogil=True)
def _leaving_arc(
    nodes: NDArray[np.void], tail: Integer, head: Integer
) -> tuple[Integer, Integer, bool]:
    """The flow that the cycle takes, the node whose arc runs empty, whether below the tail."""
    from_tail, tail_node = np.int64(UNBOUNDED), tail
    from_head, head_node = np.int64(UNBOUNDED), head
    while tail != head:
        climb_tail = nodes[tail].depth >= nodes[head].depth
        climb_head = nodes[head].depth >= nodes[tail].depth
        if climb_tail:
            room = nodes[tail].flow if nodes[tail].upward else np.int64(UNBOUNDED)
            if room < from_tail:
                from_tail, tail_node = room, tail
            tail = np.int64(nodes[tail].parent)
        if climb_head:
            room = np.int64(UNBOUNDED) if nodes[head].upward else nodes[head].flow
            if room <= from_head:
                from_head, head_node = room, head
            head = np.int64(nodes[head].parent)
    if from_head <= from_tail:
        return from_head, head_node, False
    return from_tail, tail_node, True


@njit(cache=True, nogil=True)
def _push(nodes: NDArray[np.void], tail: Integer, head: Integer, amount: Integer) -> None:
    """Send flow from the apex down to the tail, and from the head up to the apex."""
    while tail != head:
        if nodes[tail].depth >= nodes[head].depth:
            nodes[tail].flow += -amount if nodes[tail].upward else amount
            tail = np.int64(nodes[tail].parent)
        else:
            nodes[head].flow += amount if nodes[head].upward else -amount
            head = np.int64(nodes[head].parent)


@njit(cache=True, nogil=True)
def _hang(
    nodes: NDArray[np.void],
    top: Integer,
    node: Integer,
    below: Integer,
    upward: Integer,
    flow: Integer,
) -> None:
    """Cut the subtree of ``top`` off, and hang it by its ``node`` below another node."""
    while True:
        parent = np.int64(nodes[node].parent)
        old_upward, old_flow = np.int64(nodes[node].upward), nodes[node].flow
        _move_child(nodes, node, below)
        nodes[node].upward, nodes[node].flow = upward, flow
        if node == top:
            return
        below, node, upward, flow = node, parent, 1 - old_upward, old_flow


@njit(cache=True, nogil=True)
def _move_child(nodes: NDArray[np.void], node: Integer, parent: Integer) -> None:
    """Take a node out of its parent's children, and put it first among another's."""
    left, right = nodes[node].previous_sibling, nodes[node].next_sibling
    if left >= 0:
        nodes[left].next_sibling = right
    else:
        nodes[nodes[node].parent].first_child = right
    if right >= 0:
        nodes[right].previous_sibling = left
    right = nodes[parent].first_child
    if right >= 0:
        nodes[right].previous_sibling = node
    nodes[parent].first_child = node
    nodes[node].parent = parent
    nodes[node].previous_sibling, nodes[node].next_sibling = -1, right


@njit(cache=True, nogil=True)
def _shift(
    nodes: NDArray[np.void], potential: NDArray[np.int64], top: Integer, shift: Integer
) -> Integer:
    """Add to the potentials below ``top``, and renew the depths; the largest potential there."""
    largest = np.int64(0)
    node = top
    while True:
        potential[node] += shift
        largest = max(largest, abs(potential[node]))
        nodes[node].depth = nodes[nodes[node].parent].depth + 1
        if nodes[node].first_child >= 0:
            node = np.int64(nodes[node].first_child)
            continue
        while node != top and nodes[node].next_sibling < 0:
            node = np.int64(nodes[node].parent)
        if node == top:
            return largest
        node = np.int64(nodes[node].next_sibling)
