"""Distances of diagrams against POT, GUDHI, scipy and exact rational arithmetic."""

from __future__ import annotations

import math
import os

import gudhi
import numpy as np
import ot
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from lltopo.distances import (
    Matching,
    bottleneck_distance,
    distance_matrix,
    dual_potentials,
    optimal_matching,
    wasserstein_distance,
)
from lltopo.errors import InputError

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") == "1"
N_POINTS = 30 if INTERPRETED else 300
N_REPEATED = 60 if INTERPRETED else 3000
ORDERS = [1.0, 2.0, 3.0]


def random_diagram(seed: int, n_points: int, scale: float = 1.0) -> np.ndarray:
    """Most points close to the diagonal, a few far from it, as real diagrams have them."""
    rng = np.random.default_rng(seed)
    birth = rng.random(n_points)
    return scale * np.column_stack((birth, birth + rng.exponential(0.1, n_points) ** 2 + 1e-4))


def exact_rounding(values: np.ndarray) -> np.ndarray:
    return np.round(values * 64) / 64


def digits_diagram(n_steps: int, tree: str) -> np.ndarray:
    """The diagram, by GUDHI, of a linear classifier's losses on the digits after a few steps."""
    features, labels = load_digits(return_X_y=True)
    features, labels = features[: 12 * N_POINTS // 2] / 16, labels[: 12 * N_POINTS // 2]
    weights, targets = np.zeros((64, 10)), np.eye(10)[labels]
    for _ in range(n_steps):
        scores = np.exp(features @ weights)
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        weights += features.T @ (targets - probabilities) / len(labels)
    losses = -np.log(probabilities[np.arange(len(labels)), labels]).astype(np.float32)
    sign = 1.0 if tree == "split" else -1.0
    values = sign * losses.astype(np.float64)
    complex_ = gudhi.SimplexTree()
    for vertex, value in enumerate(values):
        complex_.insert([vertex], value)
    neighbours = NearestNeighbors(n_neighbors=5).fit(features).kneighbors(features)[1]
    for vertex, row in enumerate(neighbours):
        for other in row[row != vertex]:
            complex_.insert([vertex, other], max(values[vertex], values[other]))
    complex_.persistence(min_persistence=0)
    pairs = complex_.persistence_intervals_in_dimension(0)
    return sign * pairs[np.isfinite(pairs[:, 1])]


small_diagrams = (
    st.integers(0, 8)
    .flatmap(lambda n: arrays(np.float64, (n, 2), elements=st.floats(0, 4, width=16)))
    .map(lambda values: np.sort(values, axis=1))
)
any_order = st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf])

PAIRS = {
    "empty": (np.empty((0, 2)), np.empty((0, 2))),
    "one empty": (np.empty((0, 2)), random_diagram(1, N_POINTS)),
    "on the diagonal": (np.repeat(np.arange(5.0), 2).reshape(5, 2), random_diagram(1, 20)),
    "random": (random_diagram(1, N_POINTS), random_diagram(2, N_POINTS // 2)),
    "repeated": (np.tile([[0.0, 1.0], [0.5, 0.75]], (9, 1)), np.tile([[0.0, 1.5]], (7, 1))),
    "shared points": (
        random_diagram(3, N_POINTS),
        np.vstack((random_diagram(3, N_POINTS)[::2], random_diagram(4, N_POINTS // 3))),
    ),
    "equal births": (
        random_diagram(5, N_POINTS) * [0, 1],
        random_diagram(6, N_POINTS) * [0, 1],
    ),
    "grid": (exact_rounding(random_diagram(7, N_POINTS)), exact_rounding(random_diagram(8, 40))),
    "digits, split": (digits_diagram(20, "split"), digits_diagram(60, "split")),
    "digits, join": (digits_diagram(20, "join"), digits_diagram(60, "join")),
    "digits, close": (digits_diagram(60, "split"), digits_diagram(61, "split")),
    "close": (
        random_diagram(9, N_POINTS),
        random_diagram(9, N_POINTS) + 1e-3 * random_diagram(10, N_POINTS),
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", PAIRS)
def test_wasserstein_equals_optimal_transport_of_the_full_problem(name, order):
    a, b = PAIRS[name]
    cost = reference.full_assignment_costs(a, b, order)
    expected = 0.0
    if cost.size:
        weights = np.ones(len(cost))
        expected = ot.emd2(weights, weights, cost, numItermax=10**7) ** (1 / order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0, 7.5])
@pytest.mark.parametrize("name", PAIRS)
def test_wasserstein_equals_the_dense_assignment(name, order):
    a, b = PAIRS[name]
    expected = reference.assignment_wasserstein(a, b, order)
    distance = wasserstein_distance(a, b, order)
    assert distance == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert distance <= expected * (1 + 1e-13)  # its gains round more than our costs do


@pytest.mark.parametrize("name", PAIRS)
def test_bottleneck_equals_gudhi_and_has_the_bits_of_bisection(name):
    a, b = PAIRS[name]
    # GUDHI rounds its last bits; its "exact" mode (e=0) errs on three copies of (0, 1), (0, 3).
    ascending = [np.sort(dgm, axis=1) for dgm in (a, b)]
    expected = gudhi.bottleneck_distance(*ascending)
    assert bottleneck_distance(a, b) == pytest.approx(expected, rel=1e-14)
    assert bottleneck_distance(a, b) == reference.brute_force_bottleneck(a, b)
    assert bottleneck_distance(a[:, ::-1], b[:, ::-1]) == bottleneck_distance(a, b)


@pytest.mark.parametrize("order", [*ORDERS, math.inf])
@pytest.mark.parametrize("name", PAIRS)
def test_matching_uses_every_row_once_and_costs_the_distance(name, order):
    a, b = PAIRS[name]
    matching = optimal_matching(a, b, order)
    assert sorted([*matching.pairs[:, 0], *matching.diagonal_a]) == list(range(len(a)))
    assert sorted([*matching.pairs[:, 1], *matching.diagonal_b]) == list(range(len(b)))
    assert matching_cost(a, b, matching, order) == pytest.approx(
        wasserstein_distance(a, b, order), rel=1e-12
    )


def matching_cost(a: np.ndarray, b: np.ndarray, matching: Matching, order: float) -> float:
    costs = [
        *np.abs(a[matching.pairs[:, 0]] - b[matching.pairs[:, 1]]).max(axis=1, initial=0),
        *np.abs(np.diff(a[matching.diagonal_a]).ravel() / 2),
        *np.abs(np.diff(b[matching.diagonal_b]).ravel() / 2),
    ]
    if math.isinf(order):
        return max(costs, default=0.0)
    return math.fsum(cost**order for cost in costs) ** (1 / order)


@pytest.mark.parametrize("order", [*ORDERS, math.inf])
def test_nearly_equal_diagrams_cost_what_was_planted(order):
    """Noise of 1e-9: the difference of two large sums would lose it altogether."""
    rng = np.random.default_rng(11)
    birth = np.arange(N_POINTS, dtype=np.float64)
    a = np.column_stack((birth, birth + 0.3))
    b = a + 1e-9 * rng.random(a.shape)
    shuffled = rng.permutation(N_POINTS)
    costs = np.abs(a - b).max(axis=1)
    planted = costs.max() if math.isinf(order) else math.fsum(costs**order) ** (1 / order)
    assert wasserstein_distance(a, b[shuffled], order) == pytest.approx(planted, rel=1e-12)
    matching = optimal_matching(a, b[shuffled], order)
    if not math.isinf(order):
        assert np.array_equal(shuffled[matching.pairs[:, 1]], matching.pairs[:, 0])


@settings(max_examples=60, deadline=None)
@given(small_diagrams, small_diagrams, any_order)
def test_small_diagrams_have_the_exact_distance(a, b, order):
    expected = reference.exact_wasserstein(a, b, order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-13)


@settings(max_examples=60, deadline=None)
@given(small_diagrams, small_diagrams, small_diagrams, any_order)
def test_axioms_of_a_metric(a, b, c, order):
    ab = wasserstein_distance(a, b, order)
    assert wasserstein_distance(a, a[::-1], order) == 0
    assert wasserstein_distance(b, a, order) == pytest.approx(ab, rel=1e-13)
    off_diagonal = [sorted(map(tuple, dgm[dgm[:, 0] != dgm[:, 1]])) for dgm in (a, b)]
    assert (ab == 0) == (off_diagonal[0] == off_diagonal[1])
    through_c = wasserstein_distance(a, c, order) + wasserstein_distance(c, b, order)
    assert ab <= through_c * (1 + 1e-13)


@settings(max_examples=60, deadline=None)
@given(small_diagrams, small_diagrams, any_order, st.integers(-40, 40), st.integers(-64, 64))
def test_shift_scale_and_reflection(a, b, order, exponent, shift):
    ab = wasserstein_distance(a, b, order)
    scale = 2.0**exponent
    assert wasserstein_distance(scale * a, scale * b, order) == pytest.approx(scale * ab, rel=1e-13)
    shifted = wasserstein_distance(a + shift, b + shift, order)
    assert shifted == pytest.approx(ab, rel=1e-9, abs=1e-9)
    assert wasserstein_distance(-a, -b, order) == pytest.approx(ab, rel=1e-13)
    assert wasserstein_distance(a[:, ::-1], b[:, ::-1], order) == pytest.approx(ab, rel=1e-13)


@settings(max_examples=60, deadline=None)
@given(small_diagrams, small_diagrams, small_diagrams, small_diagrams, any_order)
def test_sides_of_the_diagonal_never_gain_by_each_other(above_a, below_a, above_b, below_b, order):
    a = np.vstack((above_a, below_a[:, ::-1]))
    b = np.vstack((below_b[:, ::-1], above_b))
    expected = reference.exact_wasserstein(a, b, order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-13)


def test_opposite_sides_go_to_the_diagonal():
    assert wasserstein_distance([[0.0, 1.0]], [[1.0, 0.0]]) == 1.0
    assert bottleneck_distance([[0.0, 1.0]], [[1.0, 0.0]]) == 0.5
    assert len(optimal_matching([[0.0, 1.0]], [[1.0, 0.0]]).pairs) == 0


@pytest.mark.parametrize("death", [np.inf, -np.inf])
def test_infinite_points_match_by_sorted_birth(death):
    a = np.array([[3.0, death], [0.0, 1.0], [1.0, death]])
    b = np.array([[1.5, death], [5.0, death], [0.0, 1.0]])
    assert wasserstein_distance(a, b) == 2.5
    assert wasserstein_distance(a, b, 2) == pytest.approx(math.sqrt(0.25 + 4))
    assert bottleneck_distance(a, b) == 2.0
    assert sorted(map(tuple, optimal_matching(a, b).pairs)) == [(0, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_unequal_numbers_of_infinite_points_are_infinitely_far(order):
    a, b = np.array([[0.0, np.inf]]), np.array([[0.0, 1.0], [0.0, -np.inf]])
    assert wasserstein_distance(a, b, order) == math.inf
    assert wasserstein_distance(a, a, order) == 0
    matching = optimal_matching(a, b, order)
    assert len(matching.pairs) == 0
    assert matching.diagonal_a.tolist() == [0]
    assert matching.diagonal_b.tolist() == [0, 1]


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_many_equal_points(order):
    a, b = np.tile([[0.0, 1.0]], (N_REPEATED, 1)), np.tile([[0.0, 1.25]], (N_REPEATED - 1, 1))
    costs = np.array([0.25] * (N_REPEATED - 1) + [0.5])
    expected = costs.max() if order == math.inf else (costs**order).sum() ** (1 / order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("order", [*ORDERS, math.inf])
@pytest.mark.parametrize("direction", [(0, 1), (1, 1), (1, -1)])
def test_all_points_on_one_line(order, direction):
    rng = np.random.default_rng(12)
    a, b = (np.sort(rng.random((N_POINTS, 1)), axis=0) * direction + [0, 3] for _ in range(2))
    expected = reference.assignment_wasserstein(a, b, order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("order", [1.0, 2.0, 20.0, 400.0])
def test_large_orders_and_units_neither_overflow_nor_vanish(order, unit):
    a, b = random_diagram(13, 20), random_diagram(14, 25)
    distance = wasserstein_distance(unit * a, unit * b, order)
    assert distance == pytest.approx(unit * wasserstein_distance(a, b, order), rel=1e-9)
    bottleneck = bottleneck_distance(unit * a, unit * b)
    assert bottleneck <= distance * (1 + 1e-12)
    assert distance <= bottleneck * 45 ** (1 / order) * (1 + 1e-12)


magnitudes = st.builds(
    lambda birth, persistence, exponent: (birth, birth + persistence * 10.0**exponent),
    st.sampled_from([0.0, 1e-12, 0.1, 3.0, 1e6, 1e12]),
    st.floats(0.1, 1.0),
    st.integers(-12, 12),
)
mixed_diagrams = st.lists(magnitudes, max_size=6).map(lambda rows: np.array(rows).reshape(-1, 2))


@settings(max_examples=150, deadline=None)
@given(mixed_diagrams, mixed_diagrams, mixed_diagrams, st.sampled_from([1.0, 1.5, 2.0, 3.0, 30.0]))
def test_huge_and_tiny_persistences_mixed_are_exact(a, b, shared, order):
    """Shared points hide the scale of the distance: all that counts may be far below them."""
    a, b = np.vstack((a, shared)), np.vstack((shared, b))
    expected = reference.exact_wasserstein(a, b, order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_deaths_on_two_values(order):
    """Points on two lines across the diagonal see each other all: no graph of them is sparse."""
    rng = np.random.default_rng(17)
    a = np.column_stack((rng.random(2 * N_POINTS), np.full(2 * N_POINTS, 2.0)))
    b = np.column_stack((rng.random(2 * N_POINTS), np.full(2 * N_POINTS, 2.25)))
    expected = reference.assignment_wasserstein(a, b, order)
    assert wasserstein_distance(a, b, order) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("name", PAIRS)
def test_dual_potentials_prove_the_matching_optimal(name, order):
    a, b = (np.vstack((dgm, dgm[:5, ::-1] + 1)) for dgm in PAIRS[name])
    potentials = dual_potentials(a, b, order)
    length, way_a, way_b = (costs**order for costs in reference.ground_costs(a, b))
    slack = 1e-12 * max(way_a.max(initial=0), way_b.max(initial=0))
    assert (potentials.a[:, None] + potentials.b[None, :] <= length + slack).all()
    assert (potentials.a <= way_a + slack).all()
    assert (potentials.b <= way_b + slack).all()
    primal = wasserstein_distance(a, b, order) ** order
    dual = math.fsum([*potentials.a, *potentials.b])
    assert primal == pytest.approx(dual, rel=1e-11, abs=1e-14)
    assert 0 <= potentials.gap <= 1e-11 * primal


def test_order_one_of_single_precision_has_no_gap():
    a, b = (random_diagram(seed, N_POINTS).astype(np.float32) for seed in (18, 19))
    potentials = dual_potentials(a, b)
    assert potentials.gap == 0
    assert math.fsum([*potentials.a, *potentials.b]) == wasserstein_distance(a, b)


def test_potentials_refuse_what_they_cannot_price():
    good, essential = [[0.0, 1.0]], [[0.0, math.inf]]
    with pytest.raises(InputError, match=r"^order: .*expected a finite order"):
        dual_potentials(good, good, math.inf)
    with pytest.raises(InputError, match=r"^dgm_b: .*never die"):
        dual_potentials(good, essential)


@pytest.mark.parametrize("order", [*ORDERS, math.inf])
def test_distance_matrix_holds_all_distances_bit_for_bit(order):
    diagrams = [random_diagram(seed, 10 + seed) for seed in range(4)]
    diagrams += [dgm[:, ::-1] for dgm in diagrams[:2]]
    diagrams += [np.vstack((dgm, [[seed, math.inf]])) for seed, dgm in enumerate(diagrams[:2])]
    matrix = distance_matrix(diagrams, order)
    n = len(diagrams)
    for i in range(n):
        later = [wasserstein_distance(diagrams[i], b, order) for b in diagrams[i:]]
        assert matrix[i, i:].tolist() == matrix[i:, i].tolist() == later
        assert matrix[i, i] == 0
    assert np.isinf(matrix).sum() == 2 * 2 * (n - 2)


def test_distance_matrix_of_none_and_of_wrong_diagrams():
    diagrams = [random_diagram(1, 4)]
    assert distance_matrix([]).shape == (0, 0)
    with pytest.raises(InputError, match=r"^diagrams\[1\]: .*NaN"):
        distance_matrix([diagrams[0], [[0.0, math.nan]]])


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_single_precision_and_read_only(order):
    a, b = (random_diagram(seed, 50).astype(np.float32) for seed in (15, 16))
    wide = [np.asfortranarray(dgm, dtype=np.float64) for dgm in (a, b)]
    for dgm in (a, b, *wide):
        dgm.setflags(write=False)
    assert wasserstein_distance(a, b, order) == wasserstein_distance(*wide, order)
    assert wasserstein_distance(a.tolist(), b.tolist(), order) == wasserstein_distance(a, b, order)


@pytest.mark.parametrize("order", [0.5, 0, -1, math.nan, -math.inf])
def test_orders_below_one_are_refused(order):
    with pytest.raises(InputError, match=r"^order: .*expected at least 1"):
        wasserstein_distance([[0.0, 1.0]], [[0.0, 1.0]], order)


@pytest.mark.parametrize(
    ("diagram", "complaint"),
    [
        ([[0.0, math.nan]], "NaN"),
        ([[math.inf, 1.0]], "infinite births"),
        ([0.0, 1.0], "shape"),
        (np.zeros((2, 3)), "shape"),
        ([["x", "y"]], "numbers"),
    ],
)
@pytest.mark.parametrize("distance", [wasserstein_distance, bottleneck_distance, optimal_matching])
def test_bad_diagrams_are_refused_by_name(distance, diagram, complaint):
    good = np.array([[0.0, 1.0]])
    with pytest.raises(InputError, match=f"^dgm_a: .*{complaint}"):
        distance(diagram, good)
    with pytest.raises(InputError, match=f"^dgm_b: .*{complaint}"):
        distance(good, diagram)
