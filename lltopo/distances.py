"""Exact Wasserstein and bottleneck distances of persistence diagrams.

The ground metric is L-infinity, and a point may also go to the diagonal at half its persistence.
The distance is the p-norm of the costs of the cheapest matching; its value is the sum of that
matching's own costs, never a difference of larger sums, so close diagrams keep their digits.
Source: Edelsbrunner and Harer, Computational Topology (2010), VIII.2.

Points above the diagonal never gain by a partner below it (their distance is at least the sum of
their ways to the diagonal), so each side is matched for itself. Points that never die are matched
among themselves in the order of their births, which is optimal on a line.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.assignment import priced_transport
from lltopo.bottleneck import bottleneck_pairs
from lltopo.errors import InputError
from lltopo.lengths import matching_lengths, p_norm, ways_to_diagonal
from lltopo.transport import TooManyArcs, Transport, sparse_transport

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Matching(NamedTuple):
    """A matching of two diagrams, as row indices: every row occurs exactly once.

    pairs : (m, 2) int64, rows of the first and of the second diagram matched to each other.
    diagonal_a, diagonal_b : int64, the rows of each that go to the diagonal.
    """

    pairs: Indices
    diagonal_a: Indices
    diagonal_b: Indices


class DualPotentials(NamedTuple):
    """A proof that a matching is optimal: prices of all rows, in the order-th power of the unit.

    No pair's prices sum up to more than its length to the power, and no row's price exceeds its
    way to the diagonal to the power. So the sum of all prices is at most what any matching costs.

    a, b : (n,) and (m,) float64, the prices of the rows of the first and of the second diagram.
    gap : how far the optimal matching's cost may at most lie above the sum of the prices; 0 where
        integers hold the lengths exactly, as with order 1 and losses in single precision.
    """

    a: Floats
    b: Floats
    gap: float


def wasserstein_distance(dgm_a: ArrayLike, dgm_b: ArrayLike, order: float = 1.0) -> float:
    """Wasserstein distance W_p of two persistence diagrams, exact to float64 rounding.

    Parameters
    ----------
    dgm_a, dgm_b : (n, 2) and (m, 2) arrays
        Birth and death, in either direction (birth <= death or birth >= death); empty is allowed.
        A death of +inf or -inf marks a point that never dies.
    order : float
        The p of W_p, at least 1; ``inf`` gives the bottleneck distance.

    Returns
    -------
    float
        In the diagrams' unit; inf if they have unequal numbers of points that never die.

    Raises
    ------
    InputError
        For NaN, infinite births, a wrong shape, or an order below 1.
    """
    return _distance(_as_diagram(dgm_a, "dgm_a"), _as_diagram(dgm_b, "dgm_b"), _as_order(order))


def _distance(a: Floats, b: Floats, order: float) -> float:
    """W_p of two checked diagrams."""
    if any(len(rows_a) != len(rows_b) for rows_a, rows_b in _essential_rows(a, b)):
        return math.inf
    return p_norm(matching_lengths(a, b, _matching(a, b, order).pairs), order)


def bottleneck_distance(dgm_a: ArrayLike, dgm_b: ArrayLike) -> float:
    """Bottleneck distance of two diagrams: ``wasserstein_distance`` of order inf."""
    return wasserstein_distance(dgm_a, dgm_b, order=math.inf)


def optimal_matching(dgm_a: ArrayLike, dgm_b: ArrayLike, order: float = 1.0) -> Matching:
    """The matching whose cost is ``wasserstein_distance(dgm_a, dgm_b, order)``.

    Parameters, errors and cost are that function's. Where the numbers of points that never die
    differ, those left over are listed with the diagonal, at infinite cost. Where several matchings
    are optimal, one of them is returned.
    """
    a, b = _as_diagram(dgm_a, "dgm_a"), _as_diagram(dgm_b, "dgm_b")
    return _matching(a, b, _as_order(order))


def dual_potentials(dgm_a: ArrayLike, dgm_b: ArrayLike, order: float = 1.0) -> DualPotentials:
    """The prices that prove ``optimal_matching(dgm_a, dgm_b, order)`` optimal.

    Parameters, errors and cost are those of ``wasserstein_distance``; the order must be finite, and
    so must all deaths.
    """
    a, b = _as_diagram(dgm_a, "dgm_a"), _as_diagram(dgm_b, "dgm_b")
    order = _as_order(order)
    if math.isinf(order):
        raise InputError(
            "order: has no prices: expected a finite order, got inf. Use 1, 2 or larger."
        )
    for diagram, name in ((a, "dgm_a"), (b, "dgm_b")):
        if np.isinf(diagram).any():
            raise InputError(
                f"{name}: holds points that never die: expected finite deaths, got "
                f"{int(np.isinf(diagram[:, 1]).sum())} infinite. Leave them out."
            )
    price_a, price_b = (ways_to_diagonal(diagram) ** order for diagram in (a, b))
    gap = 0.0
    for rows_a, rows_b in _finite_rows(a, b):
        if len(rows_a) and len(rows_b):
            side = _side_transport(_ascending(a[rows_a]), _ascending(b[rows_b]), order)
            price_a[rows_a] = side.price_a * side.unit**order
            price_b[rows_b] = side.price_b * side.unit**order
            gap += (side.primal - side.dual + side.rounding) * side.unit**order
    return DualPotentials(price_a, price_b, gap)


def distance_matrix(diagrams: Sequence[ArrayLike], order: float = 1.0) -> Floats:
    """The (n, n) Wasserstein distances between all diagrams of a sequence; symmetric.

    Order, errors and cost of each of the n (n - 1) / 2 pairs are those of ``wasserstein_distance``.
    """
    order = _as_order(order)
    checked = [_as_diagram(dgm, f"diagrams[{index}]") for index, dgm in enumerate(diagrams)]
    matrix = np.zeros((len(checked), len(checked)))
    for i, j in combinations(range(len(checked)), 2):
        matrix[i, j] = matrix[j, i] = _distance(checked[i], checked[j], order)
    return matrix


def _as_diagram(dgm: ArrayLike, name: str) -> Floats:
    """The diagram as an (n, 2) float64 array, or a clear error."""
    try:
        diagram = np.asarray(dgm, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{name}: is no array of numbers: expected shape (n, 2), got {type(dgm).__name__}. "
            "Pass births and deaths as two columns."
        ) from None
    if diagram.shape == (0,):
        return np.empty((0, 2))
    if diagram.ndim != 2 or diagram.shape[1] != 2:
        raise InputError(
            f"{name}: has the wrong shape: expected (n, 2), got {diagram.shape}. "
            "Pass births and deaths as two columns."
        )
    if np.isnan(diagram).any():
        raise InputError(
            f"{name}: holds NaN: expected numbers, got {int(np.isnan(diagram).sum())} NaN. "
            "Leave out epochs whose losses diverged."
        )
    if np.isinf(diagram[:, 0]).any():
        raise InputError(
            f"{name}: holds infinite births: expected finite ones, got "
            f"{int(np.isinf(diagram[:, 0]).sum())} infinite. Only a death may be infinite."
        )
    return diagram


def _as_order(order: float) -> float:
    if not order >= 1:
        raise InputError(
            f"order: is out of range: expected at least 1 or inf, got {order}. "
            "Use 1, 2 or inf (the bottleneck distance)."
        )
    return float(order)


def _essential_rows(a: Floats, b: Floats) -> Iterator[tuple[Indices, Indices]]:
    """Rows of the points that never die, in the order of their births, for each sign of death."""
    for death in (np.inf, -np.inf):
        rows_a, rows_b = np.flatnonzero(a[:, 1] == death), np.flatnonzero(b[:, 1] == death)
        yield (
            rows_a[np.argsort(a[rows_a, 0], kind="stable")],
            rows_b[np.argsort(b[rows_b, 0], kind="stable")],
        )


def _finite_rows(a: Floats, b: Floats) -> Iterator[tuple[Indices, Indices]]:
    """Rows of the finite points off the diagonal, above it and then below it."""
    for sign in (1.0, -1.0):
        yield _rows_on_side(a, sign), _rows_on_side(b, sign)


def _rows_on_side(diagram: Floats, sign: float) -> Indices:
    above = sign * diagram[:, 1] > sign * diagram[:, 0]
    return np.flatnonzero(above & np.isfinite(diagram[:, 1]))


def _matching(a: Floats, b: Floats, order: float) -> Matching:
    """The optimal matching, put together from the two sides and the points that never die."""
    parts = [np.empty((0, 2), dtype=np.int64)]
    for rows_a, rows_b in _essential_rows(a, b):
        n_common = min(len(rows_a), len(rows_b))
        parts.append(np.column_stack((rows_a[:n_common], rows_b[:n_common])))
    for rows_a, rows_b in _finite_rows(a, b):
        if len(rows_a) and len(rows_b):
            side = _side_pairs(_ascending(a[rows_a]), _ascending(b[rows_b]), order)
            parts.append(np.column_stack((rows_a[side[:, 0]], rows_b[side[:, 1]])))
    pairs = np.concatenate(parts)
    return Matching(pairs, _missing_rows(len(a), pairs[:, 0]), _missing_rows(len(b), pairs[:, 1]))


def _ascending(points: Floats) -> Floats:
    return np.sort(points, axis=1)


def _missing_rows(n_rows: int, rows: Indices) -> Indices:
    missing = np.ones(n_rows, dtype=bool)
    missing[rows] = False
    return np.flatnonzero(missing)


def _side_pairs(a: Floats, b: Floats, order: float) -> Indices:
    """The optimal pairs of two ascending diagrams off the diagonal."""
    if math.isinf(order):
        return bottleneck_pairs(a, b)
    return _side_transport(a, b, order).pairs


def _side_transport(a: Floats, b: Floats, order: float) -> Transport:
    if order == 1:
        # A sparse graph does unless the points lie on few lines.
        with contextlib.suppress(TooManyArcs):
            return sparse_transport(a, b)
    return priced_transport(a, b, order)
