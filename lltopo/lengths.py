"""The lengths that a matching of two diagrams uses, and their p-norm."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ways_to_diagonal(points: Floats) -> Floats:
    """The L-infinity distance of each point to the diagonal: half its persistence."""
    return np.asarray(np.abs(points[:, 1] - points[:, 0]) / 2)


def matching_lengths(a: Floats, b: Floats, pairs: NDArray[np.int64]) -> Floats:
    """The L-infinity length of every pair of rows, then the ways of all other rows.

    Deaths of a pair that are both infinite are equally far.
    """
    births, deaths = (np.column_stack((a[pairs[:, 0], k], b[pairs[:, 1], k])) for k in (0, 1))
    deaths[np.isinf(deaths).all(axis=1)] = 0
    pair_lengths = np.maximum(np.abs(np.diff(births)), np.abs(np.diff(deaths))).ravel()
    rest_a, rest_b = np.delete(a, pairs[:, 0], axis=0), np.delete(b, pairs[:, 1], axis=0)
    return np.concatenate((pair_lengths, ways_to_diagonal(rest_a), ways_to_diagonal(rest_b)))


def p_norm(lengths: Floats, order: float) -> float:
    """The p-norm, in units of the largest length so that no power under- or overflows."""
    largest = float(lengths.max(initial=0.0))
    if math.isinf(order) or largest == 0:
        return largest
    if order == 1:
        return math.fsum(lengths)
    return largest * float(math.fsum((lengths / largest) ** order) ** (1 / order))
