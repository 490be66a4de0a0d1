"""Primal network simplex in integers, for transport with a root that takes and gives freely.

Every spanning tree of the network is a basis: the supplies alone fix the flow on its arcs, and the
arcs' costs fix each node's potential, the cost of sending one more unit from it to the root. An arc
whose tail could send its unit more cheaply over it enters the tree; pushing flow around the cycle it
closes empties another arc, which leaves. When no such arc is left, tree and potentials prove each
other optimal, exactly, for all numbers are integers.

Trees stay strongly feasible (Cunningham 1976): an arc without flow points to the root, and of several
arcs that block the cycle the last one, going around from its apex, leaves. So no tree comes twice.
The entering arc is the best of a block of arcs (Grigoriadis 1986), the blocks going round and round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

BLOCK_SIZE = 64
POTENTIAL_LIMIT = 1 << 60  # one more step beyond it still fits into 64 bits


class Network(NamedTuple):
    """Arcs without capacities; two-way arcs may carry flow in either direction."""

    tail: NDArray[np.int32]
    head: NDArray[np.int32]
    cost: NDArray[np.int64]
    two_way: bool


class Tree(NamedTuple):
    """A spanning tree with its flow and potentials; the root is the last node.

    The arc of a node is the one to its parent: ``upward`` where it points to the parent.
    """

    parent: NDArray[np.int32]
    depth: NDArray[np.int32]
    first_child: NDArray[np.int32]
    next_sibling: NDArray[np.int32]
    previous_sibling: NDArray[np.int32]
    upward: NDArray[np.bool_]
    flow: NDArray[np.int64]
    potential: NDArray[np.int64]


def star_tree(supply: NDArray[np.int64], root_cost: NDArray[np.int64]) -> Tree:
    """The tree in which each node trades with the root alone; no supply may be zero."""
    n_nodes = len(supply)
    chain = np.arange(n_nodes + 1, dtype=np.int32)
    first_child = np.full(n_nodes + 1, -1, dtype=np.int32)
    first_child[n_nodes] = 0 if n_nodes else -1
    parent = np.full(n_nodes + 1, n_nodes, dtype=np.int32)
    parent[n_nodes] = -1
    next_sibling = chain + np.int32(1)
    next_sibling[n_nodes - 1 :] = -1
    previous_sibling = chain - np.int32(1)
    previous_sibling[n_nodes] = -1
    return Tree(
        parent=parent,
        depth=(chain < n_nodes).astype(np.int32),
        first_child=first_child,
        next_sibling=next_sibling,
        previous_sibling=previous_sibling,
        upward=np.append(supply > 0, False),
        flow=np.append(np.abs(supply), 0),
        potential=np.append(np.sign(supply) * root_cost, 0),
    )


@njit(cache=True, nogil=True)
def improve_tree(network: Network, tree: Tree) -> bool:
    """Pivot until the tree is optimal; False where a potential left the range of exactness."""
    position = 0
    while True:
        arc, excess, position = _entering_arc(network, tree.potential, position)
        if arc < 0:
            return True
        tail, head = network.tail[arc], network.head[arc]
        if tree.potential[tail] < tree.potential[head] and network.two_way:
            tail, head = head, tail
        if _pivot(tree, tail, head, excess) > POTENTIAL_LIMIT:
            return False


@njit(cache=True, nogil=True)
def _entering_arc(
    network: Network, potential: NDArray[np.int64], position: int
) -> tuple[int, int, int]:
    """The arc of largest saving in the first block that has one, the saving, the next block."""
    tail, head, cost = network.tail, network.head, network.cost
    n_arcs = len(tail)
    back = -1 if network.two_way else 0  # a mask: the way back counts too
    n_seen = 0
    while n_seen < n_arcs:
        best, largest = -1, np.int64(0)
        end = min(position + BLOCK_SIZE, n_arcs)
        for arc in range(position, end):
            drop = potential[tail[arc]] - potential[head[arc]]
            sign = (drop >> 63) & back
            excess = ((drop ^ sign) - sign) - cost[arc]
            if excess > largest:
                best, largest = arc, excess
        n_seen += end - position
        position = end if end < n_arcs else 0
        if best >= 0:
            return best, largest, position
    return -1, np.int64(0), position


@njit(cache=True, nogil=True)
def _pivot(tree: Tree, tail: int, head: int, excess: int) -> int:
    """Bring the arc from tail to head into the tree; the largest potential that was changed."""
    amount, leaving, is_tail_side = _leaving_arc(tree, tail, head)
    if amount > 0:
        _push(tree, tail, head, amount)
    if is_tail_side:
        _hang(tree, leaving, tail, head, True, amount)
        return _shift(tree, tail, -excess)
    _hang(tree, leaving, head, tail, False, amount)
    return _shift(tree, head, excess)


@njit(cache=True, nogil=True)
def _leaving_arc(tree: Tree, tail: int, head: int) -> tuple[int, int, bool]:
    """The flow that the cycle takes, the node whose arc it empties, whether below the tail."""
    parent, depth, upward, flow = tree.parent, tree.depth, tree.upward, tree.flow
    unbounded = np.int64(1) << 62
    from_tail, tail_node = unbounded, -1
    from_head, head_node = unbounded, -1
    while tail != head:
        if depth[tail] >= depth[head]:
            if upward[tail] and flow[tail] < from_tail:
                from_tail, tail_node = flow[tail], tail
            tail = parent[tail]
        else:
            if not upward[head] and flow[head] <= from_head:
                from_head, head_node = flow[head], head
            head = parent[head]
    if from_head <= from_tail:
        return from_head, head_node, False
    return from_tail, tail_node, True


@njit(cache=True, nogil=True)
def _push(tree: Tree, tail: int, head: int, amount: int) -> None:
    """Send flow from the apex down to the tail, and from the head up to the apex."""
    parent, depth, upward, flow = tree.parent, tree.depth, tree.upward, tree.flow
    while tail != head:
        if depth[tail] >= depth[head]:
            flow[tail] += -amount if upward[tail] else amount
            tail = parent[tail]
        else:
            flow[head] += amount if upward[head] else -amount
            head = parent[head]


@njit(cache=True, nogil=True)
def _hang(tree: Tree, top: int, node: int, below: int, points_up: bool, amount: int) -> None:
    """Cut the subtree of ``top`` off, and hang it by its ``node`` below another node."""
    parent, upward, flow = tree.parent, tree.upward, tree.flow
    while True:
        old_parent, old_upward, old_flow = parent[node], upward[node], flow[node]
        _remove_child(tree, node)
        _add_child(tree, node, below)
        upward[node], flow[node] = points_up, amount
        if node == top:
            return
        below, node, points_up, amount = node, old_parent, not old_upward, old_flow


@njit(cache=True, nogil=True)
def _remove_child(tree: Tree, node: int) -> None:
    left, right = tree.previous_sibling[node], tree.next_sibling[node]
    if left >= 0:
        tree.next_sibling[left] = right
    else:
        tree.first_child[tree.parent[node]] = right
    if right >= 0:
        tree.previous_sibling[right] = left


@njit(cache=True, nogil=True)
def _add_child(tree: Tree, node: int, parent: int) -> None:
    right = tree.first_child[parent]
    tree.parent[node] = parent
    tree.first_child[parent] = node
    tree.previous_sibling[node], tree.next_sibling[node] = -1, right
    if right >= 0:
        tree.previous_sibling[right] = node


@njit(cache=True, nogil=True)
def _shift(tree: Tree, top: int, shift: int) -> int:
    """Add to the potentials of a subtree, and renew its depths; the largest potential there."""
    parent, depth, potential = tree.parent, tree.depth, tree.potential
    largest = np.int64(0)
    node = top
    while True:
        potential[node] += shift
        largest = max(largest, abs(potential[node]))
        depth[node] = depth[parent[node]] + 1
        if tree.first_child[node] >= 0:
            node = tree.first_child[node]
            continue
        while node != top and tree.next_sibling[node] < 0:
            node = parent[node]
        if node == top:
            return largest
        node = tree.next_sibling[node]
