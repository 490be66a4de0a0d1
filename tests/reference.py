"""Brute-force twins of lltopo's kernels: slow, obvious, and importing nothing of lltopo."""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

# Distances of persistence diagrams


def ground_costs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L-infinity lengths of all pairs, and the ways of both diagrams' points to the diagonal."""
    length = np.abs(a[:, None, :] - b[None, :, :]).max(axis=2)
    return length, np.abs(a[:, 1] - a[:, 0]) / 2, np.abs(b[:, 1] - b[:, 0]) / 2


def full_assignment_costs(a: np.ndarray, b: np.ndarray, order: float) -> np.ndarray:
    """The (n + m) x (n + m) costs, where each point may also go to its own diagonal copy."""
    length, way_a, way_b = ground_costs(a, b)
    n_a, n_b = length.shape
    costs = np.zeros((n_a + n_b, n_b + n_a))
    costs[:n_a, :n_b] = length**order
    costs[:n_a, n_b:] = (way_a**order)[:, None]
    costs[n_a:, :n_b] = (way_b**order)[None, :]
    return costs


def assignment_wasserstein(a: np.ndarray, b: np.ndarray, order: float) -> float:
    """W_p of finite diagrams by scipy's dense assignment of the n x m gains over the diagonal."""
    length, way_a, way_b = ground_costs(a, b)
    if math.isinf(order):
        return brute_force_bottleneck(a, b)
    unit = max(way_a.max(initial=0), way_b.max(initial=0)) or 1.0
    gain = (way_a[:, None] / unit) ** order + (way_b[None, :] / unit) ** order
    gain = np.maximum(gain - np.minimum(length / unit, 2) ** order, 0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    paired = gain[rows, columns] > 0
    rows, columns = rows[paired], columns[paired]
    costs = [*length[rows, columns], *np.delete(way_a, rows), *np.delete(way_b, columns)]
    largest = max(costs, default=0.0) or 1.0
    return largest * math.fsum((cost / largest) ** order for cost in costs) ** (1 / order)


def brute_force_bottleneck(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cost at which the full problem has a perfect matching, by bisection."""
    length, way_a, way_b = ground_costs(a, b)
    n_a, n_b = length.shape
    costs = np.full((n_a + n_b, n_b + n_a), np.inf)
    costs[:n_a, :n_b] = length
    costs[np.arange(n_a), n_b + np.arange(n_a)] = way_a
    costs[n_a + np.arange(n_b), np.arange(n_b)] = way_b
    costs[n_a:, n_b:] = 0
    candidates = np.unique(np.concatenate(([0.0], costs[np.isfinite(costs)])))

    def is_enough(position: int) -> bool:
        allowed = csr_array(costs <= candidates[position])
        return bool((maximum_bipartite_matching(allowed) >= 0).all())

    return float(candidates[bisect_left(range(len(candidates)), True, key=is_enough)])


def exact_wasserstein(a: np.ndarray, b: np.ndarray, order: float) -> float:
    """W_p by the Hungarian method in rational arithmetic: no rounding before the last root.

    Costs are exact for p = 1, 2, 3, ...; for other p they are rounded once, to float64.
    """
    if math.isinf(order):
        return brute_force_bottleneck(a, b)

    def power(cost: Fraction) -> Fraction:
        return cost ** int(order) if float(order).is_integer() else Fraction(float(cost) ** order)

    rows_a, rows_b = ([[Fraction(v) for v in row] for row in dgm.tolist()] for dgm in (a, b))
    way_a, way_b = ([power(abs(d - c) / 2) for c, d in rows] for rows in (rows_a, rows_b))
    costs = [
        [power(max(abs(c - e), abs(d - f))) for e, f in rows_b] + [way_a[i]] * len(a)
        for i, (c, d) in enumerate(rows_a)
    ] + [way_b + [Fraction(0)] * len(a) for _ in rows_b]
    total = sum((costs[i][j] for i, j in enumerate(hungarian_assignment(costs))), Fraction(0))
    if total == 0:
        return 0.0
    # The power is brought near one first, for float64 holds no 1e-400.
    exponent = total.numerator.bit_length() - total.denominator.bit_length()
    return 2.0 ** (exponent / order) * float(total / Fraction(2) ** exponent) ** (1 / order)


def hungarian_assignment(costs: list[list[Fraction]]) -> list[int]:
    """The column of each row in a cheapest assignment of a square matrix (Kuhn 1955)."""
    size = len(costs)
    row_price, column_price = [Fraction(0)] * size, [Fraction(0)] * (size + 1)
    row_of = [-1] * (size + 1)  # the last column stands for "no column yet"
    for new_row in range(size):
        row_of[size] = new_row
        column, came_from, visited = size, [size] * size, [False] * (size + 1)
        slack: list[Fraction | None] = [None] * size
        while row_of[column] >= 0:
            visited[column] = True
            row = row_of[column]
            for j in range(size):
                reduced = costs[row][j] - row_price[row] - column_price[j]
                if not visited[j] and (slack[j] is None or reduced < slack[j]):
                    slack[j], came_from[j] = reduced, column
            nearest = min((j for j in range(size) if not visited[j]), key=lambda j: slack[j])
            step = slack[nearest]
            for j in range(size + 1):
                if visited[j]:
                    row_price[row_of[j]] += step
                    column_price[j] -= step
                elif j < size:
                    slack[j] -= step
            column = nearest
        while column != size:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    column_of = [0] * size
    for j in range(size):
        column_of[row_of[j]] = j
    return column_of


def empty_rectangles(x: list[int], y: list[int]) -> set[tuple[int, int]]:
    """Pairs nearer to each other than over the diagonal, and no point in the rectangle between."""

    def is_between(i: int, j: int, k: int) -> bool:
        return all(min(c[i], c[j]) <= c[k] <= max(c[i], c[j]) for c in (x, y))

    pairs = ((i, j) for j in range(len(x)) for i in range(j))
    return {
        (i, j)
        for i, j in pairs
        if abs(x[i] - x[j]) < 2 * min(y[i], y[j])
        and not any(is_between(i, j, k) for k in range(len(x)) if k not in (i, j))
    }


# Graphs and merge trees


def brute_force_neighbours(features: np.ndarray, k: int) -> np.ndarray:
    """Each row's k nearest others, by (distance, index), from all distances."""
    rows = features.reshape(len(features), -1).astype(np.float64)
    squared = np.array([((rows - row) ** 2).sum(axis=1) for row in rows])
    np.fill_diagonal(squared, np.inf)
    return np.argsort(squared, axis=1, kind="stable")[:, :k]


def neighbour_sets(n_vertices: int, edges: np.ndarray) -> list[set[int]]:
    """Each vertex's neighbours, without itself."""
    neighbours: list[set[int]] = [set() for _ in range(n_vertices)]
    for u, v in edges.tolist():
        if u != v:
            neighbours[u].add(v)
            neighbours[v].add(u)
    return neighbours


def sweep_order(values: np.ndarray) -> list[int]:
    """The vertices from low to high by (value, index)."""
    return sorted(range(len(values)), key=lambda v: (values[v], v))


def augmented_merge_tree(neighbours: list[set[int]], order: list[int]) -> set[tuple[int, int]]:
    """Arcs (earlier, later) of the components of what is swept, kept as sets."""
    components: list[list[int]] = []  # each in the order swept
    arcs = set()
    for v in order:
        met = [component for component in components if neighbours[v] & set(component)]
        components = [component for component in components if component not in met]
        components.append([*sorted((u for c in met for u in c), key=order.index), v])
        arcs |= {(component[-1], v) for component in met}
    return arcs


def join_arcs(neighbours: list[set[int]], order: list[int]) -> set[tuple[int, int]]:
    """Augmented join tree as (upper, lower)."""
    return augmented_merge_tree(neighbours, order[::-1])


def split_arcs(neighbours: list[set[int]], order: list[int]) -> set[tuple[int, int]]:
    """Augmented split tree as (upper, lower)."""
    return {(upper, lower) for lower, upper in augmented_merge_tree(neighbours, order)}


def without(arcs: set[tuple[int, int]], v: int) -> set[tuple[int, int]]:
    """Take v out of a tree, tying what is above it to what is below it."""
    above = [u for u, w in arcs if w == v]
    below = [w for u, w in arcs if u == v]
    return {arc for arc in arcs if v not in arc} | {(u, w) for u in above for w in below}


def contour_arcs(neighbours: list[set[int]], order: list[int]) -> set[tuple[int, int]]:
    """Augmented contour tree by Carr's combination, the highest leaf first."""
    join, split = join_arcs(neighbours, order), split_arcs(neighbours, order)
    arcs = set()
    while join or split:
        for v in reversed(order):
            above = [u for u, w in join if w == v]
            below = [w for u, w in split if u == v]
            if len(above) + len(below) == 1:
                arcs |= {(v, w) for u, w in join if u == v and not above}
                arcs |= {(u, v) for u, w in split if w == v and not below}
                join, split = without(join, v), without(split, v)
                break
        else:
            raise AssertionError("no leaf is left")
    return arcs


def level_set_arcs(neighbours: list[set[int]], order: list[int]) -> set[tuple[int, int]]:
    """Arcs (upper, lower) of the level sets' components on a graph without cycles.

    Between two vertices of the order a level set is one point on every edge across that level,
    and no two are connected. A component's life is followed downwards: at a vertex the points
    on its upper edges meet and become those on its lower edges; the others pass by.
    """
    rank = {v: i for i, v in enumerate(order)}
    started: dict[tuple[int, int], int] = {}  # edge across the level: node where it began
    arcs = set()
    for v in reversed(order):
        upper = [(u, v) for u in neighbours[v] if rank[u] > rank[v]]
        lower = [(v, w) for w in neighbours[v] if rank[w] < rank[v]]
        met = [started.pop(edge) for edge in upper]
        passes = len(upper) == len(lower) == 1
        arcs |= set() if passes else {(node, v) for node in met}
        started.update(dict.fromkeys(lower, met[0] if passes else v))
    return arcs


def contracted(arcs: set[tuple[int, int]], order: list[int]) -> tuple[list[int], list[list[int]]]:
    """Nodes and arcs of an augmented tree without its regular vertices, from high to low."""
    rank = {v: i for i, v in enumerate(order)}
    nodes = list(reversed(order))
    for v in order:
        sides = [sum(u == v for u, _ in arcs), sum(w == v for _, w in arcs)]
        if sides == [1, 1]:
            arcs = without(arcs, v)
            nodes.remove(v)
    by_rank = sorted(arcs, key=lambda arc: (rank[arc[0]], rank[arc[1]]), reverse=True)
    return nodes, [list(arc) for arc in by_rank]


def hard_fields(n: int) -> dict[str, tuple[int, np.ndarray, np.ndarray]]:
    """Fields (n_vertices, edges, values) of about n vertices on which a sweep can go wrong."""
    rng = np.random.default_rng(7)
    path = np.column_stack([np.arange(n - 1), np.arange(1, n)])
    star = np.column_stack([np.zeros(n - 1, int), np.arange(1, n)])
    sparse, dense = rng.integers(0, n, (n // 2, 2)), rng.integers(0, n, (4 * n, 2))
    normal = rng.normal(size=n)
    return {
        "generic": (n, dense, normal),
        "float32": (n, dense, normal.astype(np.float32)),
        "ties": (n, dense, rng.integers(0, 3, n).astype(np.float32)),
        "ties float64": (n, dense, rng.integers(0, 3, n) / 7),
        "constant": (n, dense, np.full(n, 2.5)),
        "signed zeros": (n, dense, rng.choice([-0.0, 0.0, 1.0], n).astype(np.float32)),
        "negative": (n, dense, -np.abs(normal).astype(np.float32)),
        "subnormal": (n, dense, (normal * 1e-44).astype(np.float32)),
        "huge and tiny": (n, dense, normal * 10.0 ** rng.integers(-12, 12, n)),
        "duplicate edges": (n, np.concatenate([dense, dense[::-1, ::-1], dense]), normal),
        "self-loops": (n, np.concatenate([dense, np.column_stack([np.arange(n)] * 2)]), normal),
        "disconnected": (n, sparse, rng.integers(0, 5, n).astype(np.float32)),
        "isolated": (n, np.empty((0, 2), int), rng.integers(0, 4, n).astype(np.float64)),
        "path": (n, path, np.sin(np.arange(n) * 1.7)),
        "rising path": (n, path, np.arange(n, dtype=np.float32)),
        "star, centre high": (n, star, np.where(np.arange(n) == 0, 9.0, normal)),
        "star, centre low": (n, star, np.where(np.arange(n) == 0, -9.0, normal)),
        "one edge": (2, np.array([[1, 0]]), np.array([1.0, 1.0], np.float32)),
        "one vertex": (1, np.empty((0, 2), int), np.array([3.0], np.float32)),
        "no vertex": (0, np.empty((0, 2), int), np.empty(0)),
    }


# Directions in weight space


def filter_normalised(weights: dict[str, np.ndarray], seed: object) -> dict[str, np.ndarray]:
    """Li et al. (2018): noise whose filters are as long as the weights' own; 0 for vectors."""
    generator = np.random.default_rng(seed)
    direction = {name: np.zeros(w.shape) for name, w in weights.items()}
    for name, w in weights.items():
        if w.ndim > 1:
            noise = generator.standard_normal(w.shape, dtype=np.float32).astype(np.float64)
            for i in range(len(w)):
                length = math.sqrt(float((w[i].astype(np.float64) ** 2).sum()))
                direction[name][i] = noise[i] * length / (np.linalg.norm(noise[i]) + 1e-10)
    return direction
