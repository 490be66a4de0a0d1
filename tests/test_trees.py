"""Merge trees against brute force, and against each other."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import (
    contour_arcs,
    contracted,
    hard_fields,
    join_arcs,
    level_set_arcs,
    neighbour_sets,
    split_arcs,
    sweep_order,
)

from lltopo.errors import InputError
from lltopo.graph import Graph
from lltopo.trees import (
    MergeTree,
    contour_counts,
    contour_tree,
    field_values,
    join_tree,
    split_tree,
    vertex_order,
)

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") == "1"
LARGE = 1_000_000 if COMPILED and not CHECKED else 2_000
FIELDS = hard_fields(40)
TREES = {"join": join_tree, "split": split_tree, "contour": contour_tree}
TWINS = {"join": join_arcs, "split": split_arcs, "contour": contour_arcs}
Field = tuple[int, np.ndarray, np.ndarray]


@st.composite
def fields(draw: st.DrawFn, max_vertices: int = 10) -> Field:
    n = draw(st.integers(1, max_vertices))
    ends = st.integers(0, n - 1)
    edges = draw(hnp.arrays(np.int64, (draw(st.integers(0, 3 * n)), 2), elements=ends))
    values = draw(hnp.arrays(np.float32, n, elements=st.integers(-3, 3)))
    return n, edges, values


@st.composite
def forests(draw: st.DrawFn, max_vertices: int = 12) -> Field:
    n = draw(st.integers(1, max_vertices))
    edges = [(draw(st.integers(0, v - 1)), v) for v in range(1, n) if draw(st.booleans())]
    names = np.array(draw(st.permutations(range(n))))
    values = draw(hnp.arrays(np.float64, n, elements=st.integers(-3, 3)))
    return n, names[np.array(edges, int).reshape(-1, 2)], values


def assert_same(tree: MergeTree, twin: tuple[list[int], list[list[int]]]) -> None:
    assert tree.nodes.tolist() == twin[0]
    assert tree.arcs.tolist() == twin[1]
    assert tree.nodes.dtype == tree.arcs.dtype == np.int32
    assert tree.arcs.shape == (len(twin[1]), 2)


def degrees(tree: MergeTree, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Arcs above and below every vertex; one of each where it lies within an arc."""
    above = np.bincount(tree.arcs[:, 1], minlength=n)
    below = np.bincount(tree.arcs[:, 0], minlength=n)
    within = ~np.isin(np.arange(n), tree.nodes)
    return np.where(within, 1, above), np.where(within, 1, below)


# -- against brute force --


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", TREES)
def test_trees_of_hard_fields_are_those_of_brute_force(kind: str, name: str) -> None:
    n, edges, values = FIELDS[name]
    order = sweep_order(values)
    twin = contracted(TWINS[kind](neighbour_sets(n, edges), order), order)
    assert_same(TREES[kind](Graph.from_edges(n, edges), values), twin)


@pytest.mark.parametrize("kind", TREES)
@given(field=fields())
@settings(deadline=None, max_examples=150)
def test_trees_are_those_of_brute_force(kind: str, field: Field) -> None:
    n, edges, values = field
    order = sweep_order(values)
    twin = contracted(TWINS[kind](neighbour_sets(n, edges), order), order)
    assert_same(TREES[kind](Graph.from_edges(n, edges), values), twin)


@given(field=forests())
@settings(deadline=None, max_examples=150)
def test_without_cycles_the_contour_tree_is_that_of_the_level_sets(field: Field) -> None:
    n, edges, values = field
    order = sweep_order(values)
    arcs = level_set_arcs(neighbour_sets(n, edges), order)
    tree = contour_tree(Graph.from_edges(n, edges), values)
    assert {tuple(arc) for arc in tree.arcs.tolist()} == arcs
    ends = {v for arc in arcs for v in arc}
    assert set(tree.nodes.tolist()) == ends | {v for v in range(n) if v not in edges}


# -- against each other --


@pytest.mark.parametrize("kind", TREES)
@given(field=fields(max_vertices=30))
@settings(deadline=None, max_examples=80)
def test_every_component_has_one_tree(kind: str, field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    tree = TREES[kind](graph, values)
    assert len(tree.nodes) - len(tree.arcs) == graph.n_components
    assert Graph.from_edges(n, tree.arcs).n_components == n - len(tree.arcs)
    rank = np.argsort(vertex_order(values))
    assert (rank[tree.arcs[:, 0]] > rank[tree.arcs[:, 1]]).all()
    assert (np.diff(rank[tree.nodes]) < 0).all()


@given(field=fields(max_vertices=30))
@settings(deadline=None, max_examples=80)
def test_contour_leaves_and_merges_are_those_of_the_two_trees(field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    above, below = degrees(contour_tree(graph, values), n)
    assert np.array_equal(above, degrees(join_tree(graph, values), n)[0])
    assert np.array_equal(below, degrees(split_tree(graph, values), n)[1])


@given(field=fields(max_vertices=30))
@settings(deadline=None, max_examples=80)
def test_contour_counts_count_extrema_and_merges(field: Field) -> None:
    n, edges, values = field
    graph = Graph.from_edges(n, edges)
    counts = contour_counts(graph, values)
    rank = np.argsort(vertex_order(values))
    neighbours = neighbour_sets(n, edges)
    assert counts.n_maxima == sum(all(rank[u] < rank[v] for u in neighbours[v]) for v in range(n))
    assert counts.n_minima == sum(all(rank[u] > rank[v] for u in neighbours[v]) for v in range(n))
    merging = degrees(join_tree(graph, values), n)[0] > 1
    merging |= degrees(split_tree(graph, values), n)[1] > 1
    assert counts.n_merges == merging.sum()
    assert counts.n_arcs == len(contour_tree(graph, values).arcs)


@given(field=fields(max_vertices=20))
@settings(deadline=None, max_examples=80)
def test_the_join_tree_is_the_mirrored_split_tree(field: Field) -> None:
    n, edges, values = field
    values = values + np.arange(n) / 64  # all different: mirroring turns the order of ties round
    graph = Graph.from_edges(n, edges)
    join, split = join_tree(graph, values), split_tree(graph, -values)
    assert np.array_equal(join.nodes, split.nodes[::-1])
    assert sorted(join.arcs.tolist()) == sorted(split.arcs[:, ::-1].tolist())


@pytest.mark.parametrize("kind", ["join", "split"])
@given(field=fields(max_vertices=20), data=st.data())
@settings(deadline=None, max_examples=60)
def test_names_of_vertices_do_not_matter(kind: str, field: Field, data: st.DataObject) -> None:
    n, edges, values = field
    values = values + np.arange(n) / 64
    names = np.array(data.draw(st.permutations(range(n))))
    renamed = np.empty_like(values)
    renamed[names] = values
    tree = TREES[kind](Graph.from_edges(n, edges), values)
    other = TREES[kind](Graph.from_edges(n, names[edges]), renamed)
    assert np.array_equal(names[tree.nodes], other.nodes)
    assert np.array_equal(names[tree.arcs], other.arcs)


# -- the order --


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_vertices_are_ordered_by_value_then_index(dtype: type, data: st.DataObject) -> None:
    width = 8 * np.dtype(dtype).itemsize
    numbers = st.floats(width=width, allow_nan=False, allow_infinity=False)
    some = st.sampled_from([-0.0, 0.0, 1.5, -1.5])
    values = data.draw(hnp.arrays(dtype, st.integers(0, 30), elements=numbers | some))
    order = vertex_order(values)
    assert order.dtype == np.int32
    assert order.tolist() == sweep_order(values)


# -- any array, any size --


@pytest.mark.parametrize("kind", TREES)
def test_arrays_may_be_read_only_strided_and_of_other_types(kind: str) -> None:
    n, edges, values = FIELDS["ties"]
    graph = Graph.from_edges(n, edges)
    tree = TREES[kind](graph, values)
    for array in (*graph, values):
        array.flags.writeable = False
    others = [values, values.astype(np.int8), values.astype(np.float16), np.repeat(values, 2)[::2]]
    for other in [*others, values.tolist(), values.astype(">f8")]:
        again = TREES[kind](graph, other)
        assert np.array_equal(tree.nodes, again.nodes)
        assert np.array_equal(tree.arcs, again.arcs)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("high_centre", [False, True])
def test_a_large_star_takes_linear_time(kind: str, high_centre: bool) -> None:
    n = LARGE
    edges = np.column_stack([np.zeros(n - 1, np.int32), np.arange(1, n, dtype=np.int32)])
    values = np.arange(n, dtype=np.float32)
    values[0] = n if high_centre else -1
    tree = TREES[kind](Graph.from_edges(n, edges), values)
    merges = kind == "contour" or (kind == "split") == high_centre
    assert len(tree.nodes) == (n if merges else 2)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("tooth", [0, 1.5])
def test_a_long_path_takes_linear_time(kind: str, tooth: float) -> None:
    n = LARGE
    edges = np.column_stack([np.arange(n - 1, dtype=np.int32), np.arange(1, n, dtype=np.int32)])
    values = np.arange(n) + tooth * (np.arange(n) % 2)
    tree = TREES[kind](Graph.from_edges(n, edges), values)
    assert len(tree.nodes) == (n if tooth else 2)


@pytest.mark.parametrize("build", [*TREES.values(), contour_counts, field_values])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, 1.0], "values: wrong array: expected 3 real numbers, one a vertex, got shape"),
        ([[0.0, 1.0, 2.0]], "values: wrong array"),
        ([0.0, 1j, 2.0], "values: wrong array"),
        (["a", "b", "c"], "values: wrong array"),
        ([0.0, np.nan, 1.0], "values: not finite: expected finite numbers, got nan at vertex 1"),
        ([0.0, 1.0, -np.inf], "values: not finite: expected finite numbers, got -inf at vertex 2"),
    ],
)
def test_wrong_values_are_refused(build: Callable[..., object], values: list, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        build(Graph.from_edges(3, [[0, 1]]), values)
