"""The graph against scipy, and nearest neighbours against brute force."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import brute_force_neighbours
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lltopo import candidates
from lltopo import neighbours as search
from lltopo.errors import InputError
from lltopo.graph import Graph, knn_graph, nearest_neighbours, neighbour_recall

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") == "1"
DESCENT = pytest.mark.skipif(
    not COMPILED or CHECKED, reason="pynndescent compiles for half a minute, and only as it is"
)
N = 400 if COMPILED else 40
RNG = np.random.default_rng(3)


def features(dtype: type = np.float64, n: int = N, d: int = 12, high: int = 256) -> np.ndarray:
    return RNG.integers(0, high, (n, d)).astype(dtype)


# -- Graph --


@given(st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=60)
def test_edges_become_a_symmetric_simple_graph(n: int, data: st.DataObject) -> None:
    edges = data.draw(
        hnp.arrays(np.int64, (data.draw(st.integers(0, 30)), 2), elements=st.integers(0, n - 1))
    )
    graph = Graph.from_edges(n, edges)
    wanted = {(u, v) for u, v in edges.tolist() if u != v}
    wanted |= {(v, u) for u, v in wanted}
    sources = np.repeat(np.arange(n), np.diff(graph.indptr))
    assert list(zip(sources.tolist(), graph.indices.tolist(), strict=True)) == sorted(wanted)
    assert graph.n_vertices == n
    assert graph.n_edges == len(wanted) // 2
    adjacency = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    assert graph.n_components == connected_components(adjacency, directed=False)[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_edges_may_have_any_integer_type(dtype: type) -> None:
    edges = np.array([[0, 1], [2, 1], [3, 3], [1, 0]], dtype)
    edges.flags.writeable = False
    graph = Graph.from_edges(4, edges)
    assert graph.indptr.dtype == np.int64
    assert graph.indices.dtype == np.int32
    assert graph.indptr.tolist() == [0, 1, 3, 4, 4]
    assert graph.indices.tolist() == [1, 0, 2, 1]


def test_a_graph_may_have_no_edge_and_no_vertex() -> None:
    assert Graph.from_edges(3, []).n_components == 3
    assert Graph.from_edges(0, []).n_components == 0
    assert Graph.from_edges(0, []).indptr.tolist() == [0]


@pytest.mark.parametrize(
    ("n_vertices", "edges", "reason"),
    [
        (3, [[0, 3]], "edges: no such vertex: expected 0 to 2, got 3"),
        (3, [[-1, 0]], "edges: no such vertex: expected 0 to 2, got -1"),
        (3, [[0, 1, 2]], "edges: wrong array"),
        (3, [0, 1], "edges: wrong array"),
        (3, [[0.0, 1.0]], "edges: wrong array"),
        (-1, [], "n_vertices: out of range"),
        (2**31, [], "n_vertices: out of range"),
    ],
)
def test_wrong_edges_are_refused(n_vertices: int, edges: list, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Graph.from_edges(n_vertices, edges)


# -- exact nearest neighbours --


@pytest.mark.parametrize("high", [2, 5, 256])
@pytest.mark.parametrize("k", [1, 7, N - 1])
@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int8, np.uint16, np.int64, np.float32, np.float64]
)
def test_neighbours_are_those_of_brute_force(dtype: type, k: int, high: int) -> None:
    rows = features(dtype, high=min(high, 100) if dtype == np.int8 else high)
    found = nearest_neighbours(rows, k, "exact")
    truth = brute_force_neighbours(rows, k)
    assert found.indices.dtype == np.int32
    assert np.array_equal(found.indices, truth)
    differences = rows.astype(float)[:, None] - rows.astype(float)[truth]
    assert np.array_equal(found.distances, np.sqrt((differences**2).sum(axis=2)))


@pytest.mark.parametrize("n_threads", [1, 5])
@pytest.mark.parametrize("tile", [1, 7, 64])
def test_tiles_and_threads_do_not_matter(
    tile: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = features(np.uint8, n=50 if COMPILED else 20, high=3)
    whole = nearest_neighbours(rows, 9, "exact")
    monkeypatch.setattr(candidates, "TILE", tile)
    monkeypatch.setattr(candidates, "N_THREADS", n_threads)
    tiled = nearest_neighbours(rows, 9, "exact")
    assert np.array_equal(whole.indices, tiled.indices)
    assert np.array_equal(whole.distances, tiled.distances)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((N, 5)),
        np.repeat(features(np.uint8, n=N // 20, d=40), 20, axis=0),
        np.outer(np.arange(N), np.ones(3)),
        RNG.normal(size=(N, 30)) * 1e-3 + 1e6,
        RNG.normal(size=(N, 6)) * 10.0 ** RNG.integers(-20, 20, (N, 1)),
        RNG.normal(size=(N, 6)) * 1e120,
        RNG.normal(size=(N, 6)) * 1e-120,
        np.where(RNG.random((N, 9)) < 0.01, 255, 0).astype(np.uint8),
    ],
    ids=["equal", "duplicates", "line", "far off", "all scales", "huge", "tiny", "almost empty"],
)
def test_neighbours_on_hard_features(rows: np.ndarray) -> None:
    found = nearest_neighbours(rows, 8, "exact")
    truth = brute_force_neighbours(rows, 8)
    off = np.flatnonzero((found.indices != truth).any(axis=1))
    for v in off:  # only what rounding of the two sums cannot tell apart may come in another order
        wanted = np.linalg.norm(rows[truth[v]].astype(float) - rows[v], axis=1)
        np.testing.assert_allclose(found.distances[v], wanted, rtol=1e-14)
    if rows.dtype == np.uint8 or np.array_equal(rows, np.rint(rows)):
        assert len(off) == 0


def test_a_row_whose_bounds_do_not_decide_is_searched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = []
    search_rows = search._search_rows

    def watch(rows: np.ndarray, doubtful: np.ndarray, k: int, n_threads: int) -> object:
        chosen.extend(doubtful.tolist())
        return search_rows(rows, doubtful, k, n_threads)

    monkeypatch.setattr(search, "_search_rows", watch)
    rows = features(np.uint8, d=30)
    nearest_neighbours(rows, 5, "exact")
    assert chosen == []
    rows[:20] = 255
    found = nearest_neighbours(rows, 5, "exact")
    assert chosen == list(range(20))
    assert np.array_equal(found.indices, brute_force_neighbours(rows, 5))


@pytest.mark.parametrize("d", [1, 3, 8, 31, 70])
def test_both_rankings_have_the_same_bits(d: int) -> None:
    rows = features(np.float64, d=d) / 7
    rows.flags.writeable = False
    everyone = np.arange(N)
    ids = np.ascontiguousarray(np.broadcast_to(everyone.astype(np.int32), (N, N)))
    by_candidates = search._ranked(rows, everyone, ids, 9, 1)
    by_search = search._search_rows(rows, everyone, 9)
    assert np.array_equal(by_candidates.indices, by_search.indices)
    assert np.array_equal(by_candidates.distances, by_search.distances)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32, np.float64]),
        st.tuples(st.integers(2, 30), st.integers(1, 4)),
        elements=st.integers(0, 4),
    ),
    st.data(),
)
@settings(deadline=None, max_examples=60)
def test_ties_go_by_index(rows: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rows) - 1))
    assert np.array_equal(nearest_neighbours(rows, k).indices, brute_force_neighbours(rows, k))


def test_arrays_may_be_read_only_strided_and_of_many_axes() -> None:
    images = features(np.uint8, d=48).reshape(N, 4, 4, 3)
    plain = nearest_neighbours(images.reshape(N, -1), 5)
    images.flags.writeable = False
    assert np.array_equal(nearest_neighbours(images, 5).indices, plain.indices)
    backwards = nearest_neighbours(images.reshape(N, -1)[:, ::-1], 5)
    assert np.array_equal(backwards.indices, plain.indices)


def test_the_graph_joins_whom_either_end_wants() -> None:
    rows = features(np.uint8)
    graph = knn_graph(rows, 4)
    truth = brute_force_neighbours(rows, 4)
    wanted = {frozenset((v, u)) for v in range(N) for u in truth[v].tolist()}
    sources = np.repeat(np.arange(N), np.diff(graph.indptr)).tolist()
    assert {frozenset(arc) for arc in zip(sources, graph.indices.tolist(), strict=True)} == wanted
    assert graph.n_edges == len(wanted)


def test_progress_rises_to_one() -> None:
    fractions: list[float] = []
    knn_graph(features(), 3, "exact", fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize(
    ("rows", "k", "method", "reason"),
    [
        (np.full((5, 2), np.nan), 2, "auto", "features: not finite or too large"),
        (np.array([[0.0], [-np.inf], [1.0]]), 1, "auto", "features: not finite or too large"),
        (np.array([[0.0], [1e200], [1.0]]), 1, "auto", "features: not finite or too large"),
        (np.empty((0, 3)), 1, "auto", "features: wrong array"),
        (np.empty((3, 0)), 1, "auto", "features: wrong array"),
        (np.zeros(5), 1, "auto", "features: wrong array"),
        (np.zeros((5, 2), complex), 1, "auto", "features: wrong array"),
        (np.zeros((5, 2)), 5, "auto", "k: out of range: expected 1 to 4 for 5 samples, got 5"),
        (np.zeros((5, 2)), 0, "auto", "k: out of range"),
        (
            np.zeros((5, 2)),
            2,
            "fast",
            "method: unknown: expected auto, exact or nndescent, got 'fast'",
        ),
    ],
)
def test_wrong_features_are_refused(rows: np.ndarray, k: int, method: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        knn_graph(rows, k, method)


# -- approximate nearest neighbours --


@DESCENT
def test_nn_descent_is_seeded_and_almost_exact() -> None:
    rows = RNG.normal(size=(1500, 24))
    first, second = (nearest_neighbours(rows, 15, "nndescent") for _ in range(2))
    assert np.array_equal(first.indices, second.indices)
    assert np.array_equal(first.distances, second.distances)
    assert neighbour_recall(rows, first.indices) > 0.99
    assert (first.indices != np.arange(1500)[:, None]).all()
    truth = np.linalg.norm(rows[:, None] - rows[first.indices], axis=2)
    np.testing.assert_allclose(first.distances, truth, rtol=1e-12)
    assert (np.diff(first.distances, axis=1) >= 0).all()


@DESCENT
@pytest.mark.parametrize("scale", [0, 1e60])
def test_nn_descent_leaves_no_row_short(scale: float) -> None:
    rows = scale * features(n=200, d=4)
    found = nearest_neighbours(rows, 6, "nndescent")
    assert ((found.indices >= 0) & (found.indices < 200)).all()
    assert all(len({v, *row}) == 7 for v, row in enumerate(found.indices.tolist()))
    assert neighbour_recall(rows, found.indices) > 0.9 or scale == 0
    assert np.isfinite(found.distances).all()


@DESCENT
def test_auto_is_exact_until_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = features(n=60, d=3, high=3)
    assert np.array_equal(nearest_neighbours(rows, 5).indices, brute_force_neighbours(rows, 5))
    monkeypatch.setattr(search, "EXACT_WITHIN", candidates.search_work(60, 60, 3) - 1)
    approximate = nearest_neighbours(rows, 5).indices
    assert np.array_equal(approximate, nearest_neighbours(rows, 5, "nndescent").indices)


def test_recall_counts_what_was_found() -> None:
    rows = features(np.uint8)
    truth = brute_force_neighbours(rows, 4)
    assert neighbour_recall(rows, truth) == 1.0
    half = truth.copy()
    half[:, 2:] = np.arange(N)[:, None]  # oneself is nobody's neighbour
    assert neighbour_recall(rows, half, n_rows=N // 2, seed=1) == 0.5
