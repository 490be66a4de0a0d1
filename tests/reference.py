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
    unit = Fraction(2) ** (total.numerator.bit_length() - total.denominator.bit_length())
    return 2.0 ** (math.log2(unit) / order) * float(total / unit) ** (1 / order)


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
