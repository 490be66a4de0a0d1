"""The sparse graph, the network simplex and the certificates below the distances."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from lltopo import assignment, transport
from lltopo.assignment import priced_transport
from lltopo.network_simplex import Network, Tree, improve_tree, star_tree
from lltopo.transport import TooManyArcs, Transport, distinct_rows, sparse_network, sparse_transport

integer_points = st.lists(
    st.tuples(st.integers(-12, 12), st.integers(1, 12)), min_size=1, max_size=30, unique=True
)
integer_diagrams = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12
).map(lambda rows: np.array([(birth, birth + y) for birth, y in rows], dtype=np.float64))


@settings(max_examples=60, deadline=None)
@given(integer_points)
def test_paths_in_the_sparse_graph_are_as_short_as_the_metric(points):
    x, y = np.array(sorted(points), dtype=np.int64).T
    network = sparse_network(x, y)
    arcs = csr_array((network.cost, (network.tail, network.head)), shape=(len(x) + 1,) * 2)
    direct = np.abs(x[:, None] - x) + np.abs(y[:, None] - y)
    expected = np.minimum(direct, y[:, None] + y)
    np.fill_diagonal(expected, 0)
    assert (shortest_path(arcs, directed=False)[:-1, :-1] == expected).all()


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(1, 16)), st.integers(1, 4))
def test_sparse_graph_has_the_empty_rectangles_alone(heights, spread):
    x, y = spread * np.arange(15), np.array(heights)
    network = sparse_network(x, y)
    arcs = [
        tuple(sorted((int(i), int(j)))) for i, j in zip(network.tail, network.head, strict=True)
    ]
    expected = reference.empty_rectangles(x.tolist(), y.tolist())
    assert sorted(arcs) == sorted(expected | {(point, 15) for point in range(15)})


def test_points_on_two_lines_are_refused_by_the_sparse_graph():
    births = np.linspace(0, 0.1, 200)
    a, b = (np.column_stack((births, np.full(200, death))) for death in (2.0, 2.25))
    with pytest.raises(TooManyArcs):
        sparse_transport(a, b)


@settings(max_examples=60, deadline=None)
@given(integer_diagrams, integer_diagrams, st.sampled_from([1.0, 2.0, 3.0]))
def test_both_transports_prove_their_optimum(a, b, order):
    expected = reference.exact_wasserstein(a, b, order)
    transports = [priced_transport(a, b, order)]
    if order == 1:
        transports.append(sparse_transport(a, b))
        assert transports[1].rounding == 0
    for proven in transports:
        assert proven.primal == proven.dual == sum_of_prices(proven)
        cost = proven.primal ** (1 / order) * proven.unit
        assert cost == pytest.approx(expected, rel=1e-12)


def sum_of_prices(proven: Transport) -> int:
    return sum(proven.price_a.tolist()) + sum(proven.price_b.tolist())


def test_potentials_beyond_the_exact_range_are_refused():
    nodes = np.arange(2, dtype=np.uint32)
    network = Network(nodes[:1], nodes[1:], np.array([1]), two_way=True)
    tree = star_tree(np.array([1, -1]), np.array([1 << 61, 1 << 61]))
    with pytest.raises(OverflowError, match="exact integers"):
        improve_tree(network, tree)


@pytest.mark.parametrize("module", [assignment, transport])
def test_an_overflow_is_met_with_fewer_bits(module, monkeypatch):
    """The real thing is not known to happen, so the first attempts are made to fail."""
    n_calls, n_failing = 0, 2 if module is transport else 1

    def overflow_at_first(network: Network, tree: Tree) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls <= n_failing:
            raise OverflowError
        improve_tree(network, tree)

    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.random((20, 2)), axis=1) for _ in range(2))
    solve = sparse_transport if module is transport else partial(priced_transport, order=1.0)
    expected = solve(a, b)
    monkeypatch.setattr(module, "improve_tree", overflow_at_first)
    coarse = solve(a, b)
    assert coarse.unit > expected.unit
    assert coarse.primal == coarse.dual
    assert coarse.primal * coarse.unit == pytest.approx(expected.primal * expected.unit, rel=1e-12)


def test_equal_rows_share_a_node():
    x, y = np.array([3, 1, 3, 1, 2]), np.array([1, 5, 1, 4, 0])
    node_of_row, row_of_node = distinct_rows(x, y)
    assert node_of_row.tolist() == [3, 1, 3, 0, 2]
    assert x[row_of_node].tolist() == [1, 1, 2, 3]
