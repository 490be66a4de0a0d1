"""Diagrams against GUDHI's simplex trees and ToMATo, and their sums against plain Python."""

from __future__ import annotations

import math
import os
from fractions import Fraction

import gudhi
import numpy as np
import pytest
from gudhi.clustering.tomato import Tomato
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import hard_fields, neighbour_sets, sweep_order

from lltopo.diagrams import (
    as_ascending,
    both_persistence_pairs,
    diagram_of,
    persistence_diagram,
    persistence_histogram,
    persistence_pairs,
    total_persistence,
)
from lltopo.errors import InputError
from lltopo.graph import Graph
from lltopo.trees import join_tree, split_tree

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") == "1"
LARGE = 300_000 if COMPILED and not CHECKED else 2_000
N = 2_000 if COMPILED else 200
FIELDS = {**hard_fields(40), **{f"{name}, larger": field for name, field in hard_fields(N).items()}}
Field = tuple[int, np.ndarray, np.ndarray]


@st.composite
def fields(draw: st.DrawFn, max_vertices: int = 12, max_value: int = 4) -> Field:
    n = draw(st.integers(1, max_vertices))
    ends = st.integers(0, n - 1)
    edges = draw(hnp.arrays(np.int64, (draw(st.integers(0, 3 * n)), 2), elements=ends))
    values = draw(hnp.arrays(np.float64, n, elements=st.integers(-max_value, max_value)))
    return n, edges, values


def ordered(points: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, points.tolist()))


def lower_star_diagram(n: int, edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """GUDHI's H0 of the sublevel sets, without pairs of persistence zero; essential deaths inf."""
    heights = values.astype(np.float64).tolist()
    simplices = gudhi.SimplexTree()
    for v in range(n):  # insert_batch would ignore a vertex's own filtration
        simplices.insert([v], filtration=heights[v])
    for u, v in edges.tolist():
        simplices.insert(sorted({u, v}), filtration=max(heights[u], heights[v]))
    simplices.compute_persistence(min_persistence=0, persistence_dim_max=True)
    return simplices.persistence_intervals_in_dimension(0).reshape(-1, 2)


# -- against GUDHI --


@pytest.mark.parametrize("name", FIELDS)
def test_both_diagrams_of_hard_fields_are_those_of_gudhi(name: str) -> None:
    n, edges, values = FIELDS[name]
    graph = Graph.from_edges(n, edges)
    split = persistence_diagram(graph, values, "split", "inf")
    join = persistence_diagram(graph, values, "join", "inf")
    assert ordered(split) == ordered(lower_star_diagram(n, edges, values))
    assert ordered(-join) == ordered(lower_star_diagram(n, edges, -values))


@given(field=fields())
@settings(deadline=None, max_examples=150)
def test_both_diagrams_are_those_of_gudhi(field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    split = persistence_diagram(graph, values, "split", "inf")
    join = persistence_diagram(graph, values, "join", "inf")
    assert ordered(split) == ordered(lower_star_diagram(n, edges, values))
    assert ordered(-join) == ordered(lower_star_diagram(n, edges, -values))


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name][0] > 0])
def test_join_diagrams_are_those_of_tomato(name: str) -> None:
    n, edges, values = FIELDS[name]
    neighbours = [sorted(row) for row in neighbour_sets(n, edges)]
    tomato = Tomato(graph_type="manual", density_type="manual")
    tomato.fit(neighbours, weights=values.astype(np.float64))
    theirs = tomato.diagram_.reshape(-1, 2)
    pairs = persistence_pairs(Graph.from_edges(n, edges), values, "join")
    ours = diagram_of(pairs, "drop")
    assert ordered(ours) == ordered(theirs[theirs[:, 0] != theirs[:, 1]])
    assert sorted(pairs.birth[pairs.essential]) == sorted(tomato.max_weight_per_cc_)


# -- pairs --


@pytest.mark.parametrize("tree", ["join", "split"])
@given(field=fields(max_vertices=20))
@settings(deadline=None, max_examples=100)
def test_pairs_name_their_vertices_in_the_order_of_birth(tree: str, field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    pairs = persistence_pairs(graph, values, tree)
    assert np.array_equal(pairs.birth, values[pairs.birth_vertex])
    assert np.array_equal(pairs.death, values[pairs.death_vertex])
    assert pairs.birth_vertex.dtype == pairs.death_vertex.dtype == np.int32
    order = sweep_order(values)[:: -1 if tree == "join" else 1]
    times = [order.index(v) for v in pairs.birth_vertex]
    assert times == sorted(set(times))
    assert np.count_nonzero(pairs.essential) == graph.n_components
    assert (pairs.essential | (pairs.birth != pairs.death)).all()
    falls = pairs.birth >= pairs.death if tree == "join" else pairs.birth <= pairs.death
    assert falls.all()


@given(field=fields(max_vertices=20))
@settings(deadline=None, max_examples=60)
def test_essential_pairs_end_at_the_other_end_of_their_component(field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    join, split = both_persistence_pairs(graph, values)
    tops = zip(join.birth_vertex[join.essential], join.death_vertex[join.essential], strict=True)
    ends = zip(
        split.death_vertex[split.essential], split.birth_vertex[split.essential], strict=True
    )
    assert sorted(tops) == sorted(ends)


@pytest.mark.parametrize("name", FIELDS)
def test_both_trees_at_once_are_the_two_trees(name: str) -> None:
    n, edges, values = FIELDS[name]
    graph = Graph.from_edges(n, edges)
    for tree, pairs in zip(("join", "split"), both_persistence_pairs(graph, values), strict=True):
        alone = persistence_pairs(graph, values, tree)
        assert all(np.array_equal(a, b) for a, b in zip(pairs, alone, strict=True))


@given(field=fields(max_vertices=20))
@settings(deadline=None, max_examples=60)
def test_births_and_deaths_are_leaves_and_merges_of_the_trees(field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    join, split = both_persistence_pairs(graph, values)
    for pairs, tree in ((join, join_tree(graph, values)), (split, split_tree(graph, values))):
        assert set(pairs.birth_vertex) | set(pairs.death_vertex) <= set(tree.nodes)


@given(field=fields(max_vertices=20))
@settings(deadline=None, max_examples=80)
def test_the_join_diagram_is_the_mirrored_split_diagram(field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    for essential in ("cap", "inf", "drop"):
        join = persistence_diagram(graph, values, "join", essential)
        split = persistence_diagram(graph, -values, "split", essential)
        assert ordered(join) == ordered(-split)


@pytest.mark.parametrize("tree", ["join", "split"])
@given(field=fields(max_vertices=20), data=st.data())
@settings(deadline=None, max_examples=80)
def test_names_of_vertices_do_not_matter(tree: str, field: Field, data: st.DataObject) -> None:
    n, edges, values = field
    names = np.array(data.draw(st.permutations(range(n))))
    renamed = np.empty_like(values)
    renamed[names] = values
    ours = persistence_diagram(Graph.from_edges(n, edges), values, tree)
    theirs = persistence_diagram(Graph.from_edges(n, names[edges]), renamed, tree)
    assert ordered(ours) == ordered(theirs)


@pytest.mark.parametrize("tree", ["join", "split"])
@given(field=fields(), shift=st.integers(-9, 9), scale=st.sampled_from([0.25, 1.0, 8.0]))
@settings(deadline=None, max_examples=60)
def test_diagrams_follow_shift_and_scale(tree: str, field: Field, shift: int, scale: float) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    plain = persistence_diagram(graph, values, tree)
    assert np.array_equal(
        persistence_diagram(graph, scale * values + shift, tree), scale * plain + shift
    )


# -- diagrams --


def test_essential_pairs_are_capped_infinite_or_left_out() -> None:
    graph = Graph.from_edges(6, [[0, 1], [1, 2], [3, 4]])
    values = np.array([3.0, 1.0, 2.0, 7.0, 7.0, 5.0])  # a valley; a flat pair; an isolated vertex
    assert persistence_diagram(graph, values, "join", "cap").tolist() == [[3, 1], [2, 1]]
    assert persistence_diagram(graph, values, "join", "drop").tolist() == [[2, 1]]
    assert persistence_diagram(graph, values, "join", "inf").tolist() == [
        [7, -math.inf],
        [5, -math.inf],
        [3, -math.inf],
        [2, 1],
    ]
    assert persistence_diagram(graph, values, "split", "cap").tolist() == [[1, 3]]
    assert persistence_diagram(graph, values, "split", "drop").tolist() == []
    assert persistence_diagram(graph, values, "split", "inf").tolist() == [
        [1, math.inf],
        [5, math.inf],
        [7, math.inf],
    ]


@pytest.mark.parametrize("essential", ["cap", "inf", "drop"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_diagram_is_that_of_its_pairs(name: str, essential: str) -> None:
    n, edges, values = FIELDS[name]
    graph = Graph.from_edges(n, edges)
    for tree in ("join", "split"):
        dgm = persistence_diagram(graph, values, tree, essential)
        assert dgm.dtype == np.float64
        assert dgm.shape == (len(dgm), 2)
        pairs = persistence_pairs(graph, values, tree)
        assert np.array_equal(dgm, diagram_of(pairs, essential, tree))


def test_pairs_of_the_other_tree_have_no_infinite_diagram() -> None:
    pairs = persistence_pairs(Graph.from_edges(2, [[0, 1]]), [1.0, 2.0], "split")
    with pytest.raises(InputError, match="tree: not that of the pairs"):
        diagram_of(pairs, "inf", "join")


@pytest.mark.parametrize(
    ("tree", "essential", "reason"),
    [
        ("merge", "cap", "tree: unknown: expected join, split, got 'merge'"),
        ("join", "max", "essential: unknown: expected cap, inf, drop, got 'max'"),
    ],
)
def test_unknown_choices_are_refused(tree: str, essential: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        persistence_diagram(Graph.from_edges(1, []), [1.0], tree, essential)


@pytest.mark.parametrize(
    "compute", [persistence_pairs, both_persistence_pairs, persistence_diagram]
)
@pytest.mark.parametrize("values", [[0.0, np.nan], [0.0, np.inf], [0.0], [0.0, 1.0, 2.0]])
def test_wrong_values_are_refused(compute: object, values: list[float]) -> None:
    with pytest.raises(InputError, match="values: "):
        compute(Graph.from_edges(2, [[0, 1]]), values)


def test_ties_by_the_thousand() -> None:
    rng = np.random.default_rng(11)
    edges = rng.integers(0, LARGE, (2 * LARGE, 2), dtype=np.int32)
    graph = Graph.from_edges(LARGE, edges)
    values = rng.integers(0, 50, LARGE).astype(np.float32)
    join, split = both_persistence_pairs(graph, values)
    mirrored = persistence_diagram(graph, -values, "join")
    assert ordered(diagram_of(split)) == ordered(-mirrored)
    assert np.count_nonzero(join.essential) == graph.n_components


# -- numbers --

POINTS = st.tuples(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))


@given(st.lists(POINTS, max_size=12))
def test_total_persistence_is_the_rounded_sum(points: list[tuple[float, float]]) -> None:
    exact = sum((abs(Fraction(abs(d - b))) for b, d in points), Fraction(0))
    assert total_persistence(points) == float(exact)


def test_total_persistence_of_a_degree() -> None:
    assert total_persistence([[0, 3], [5, 1]], 2) == 25
    assert total_persistence([[0, 4], [0, 9]], 0.5) == 5
    assert total_persistence([]) == 0
    assert total_persistence([[0, 1], [3, -math.inf]]) == math.inf
    assert total_persistence([[0, 1e16], [0, 1], [0, 1]]) == 1e16 + 2


@pytest.mark.parametrize("degree", [0, -1, math.nan])
def test_a_degree_is_positive(degree: float) -> None:
    with pytest.raises(InputError, match="degree: out of range"):
        total_persistence([[0, 1]], degree)


@pytest.mark.parametrize("dgm", [[1, 2], [[1, 2, 3]], [[math.nan, 1]], [[[1, 2]]]])
def test_what_is_no_diagram_is_refused(dgm: list) -> None:
    with pytest.raises(InputError, match="dgm: no diagram"):
        total_persistence(dgm)


def test_ascending_columns() -> None:
    dgm = np.array([[3.0, 1.0], [2.0, -math.inf], [1.0, 2.0]])
    assert as_ascending(dgm).tolist() == [[1, 3], [-math.inf, 2], [1, 2]]
    assert as_ascending([]).shape == (0, 2)
    assert dgm[0].tolist() == [3, 1]


def test_a_histogram_counts_births_by_row_and_deaths_by_column() -> None:
    dgm = [[0, 9], [1, 9], [9, 10], [10, 10], [5, math.inf], [-1, 5], [2, 5]]
    counts = persistence_histogram(dgm, (2, 5), ((0, 10), (0, 10)))
    assert counts.tolist() == [[0, 0, 1, 0, 2], [0, 0, 0, 0, 2]]
    assert counts.dtype == np.int64
    assert persistence_histogram([], 3, ((0, 1), (0, 1))).tolist() == [[0] * 3] * 3


@given(st.lists(POINTS, max_size=20), st.integers(1, 6))
def test_a_histogram_counts_every_point_in_range_once(points: list, bins: int) -> None:
    counts = persistence_histogram(points, bins, ((-1e6, 1e6), (-1e3, 1e9)))
    assert counts.shape == (bins, bins)
    assert counts.sum() == sum(-1e6 <= b <= 1e6 and -1e3 <= d <= 1e9 for b, d in points)


@pytest.mark.parametrize(
    ("bins", "ranges"),
    [
        (0, ((0, 1), (0, 1))),
        ((3, 0), ((0, 1), (0, 1))),
        (2, ((1, 1), (0, 1))),
        (2, ((0, 1), (2, 1))),
    ],
)
def test_empty_histograms_are_refused(bins: int, ranges: tuple) -> None:
    with pytest.raises(InputError, match="ranges: empty"):
        persistence_histogram([[0, 1]], bins, ranges)
