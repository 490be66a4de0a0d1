"""Topology of the loss over weights: a planted circle whose neighbours, losses and loop are known,
GUDHI for the components, and PHATE itself on the vectors."""

from __future__ import annotations

import sys
from itertools import pairwise

import gudhi
import numpy as np
import pytest
from jumping import REACH, Circle, planted_circle
from numpy.testing import assert_allclose, assert_array_equal

from lltopo import jump_topology
from lltopo.errors import InputError
from lltopo.graph import Graph
from lltopo.jump_topology import (
    cosine_distances,
    extended_points,
    persistent_entropy,
    phate_embedding,
    potential_graph,
    principal_scores,
    sublevel_components,
    sublevel_loops,
)

N = 60
K = 2 * REACH


def read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


@pytest.fixture(scope="module")
def circle() -> Circle:
    return planted_circle(N)


@pytest.fixture(scope="module")
def potential(circle: Circle) -> np.ndarray:
    scores = principal_scores([circle.vectors], N)
    return read_only(phate_embedding(read_only(cosine_distances(scores))).potential)


def same_graph(a: Graph, b: Graph) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_neighbours_are_the_nearest_on_the_circle(circle: Circle, potential: np.ndarray) -> None:
    expected = circle.graph()
    assert same_graph(potential_graph(potential, K), expected)
    # what the published code does: the largest entries of each row of potentials
    farthest = np.argsort(potential, axis=1)[:, -1 : -(1 + K) : -1]
    edges = np.column_stack([np.repeat(np.arange(N), K), farthest.ravel()])
    assert not same_graph(Graph.from_edges(N, edges), expected)


def test_the_planted_loss_has_its_wells_and_its_loop(circle: Circle, potential: np.ndarray) -> None:
    graph = potential_graph(potential, K)
    along, minima = circle.along(), circle.wells()
    # a gap of REACH points on the circle is what keeps two arcs apart
    gate = np.min([np.roll(along, -shift) for shift in range(REACH)], axis=0)
    gates = [gate[a:b].max() for a, b in pairwise(minima)]
    gates.append(np.concatenate([gate[minima[-1] :], gate[: minima[0]]]).max())
    assert len(minima) == 3
    components = sublevel_components(graph, circle.loss)
    assert_array_equal(np.sort(components.birth), np.sort(along[minima]))
    # the highest gate joins nothing, but closes the circle
    assert_array_equal(np.sort(components.death[~components.essential]), np.sort(gates)[:2])
    assert components.death[components.essential].tolist() == [along.max()]
    loops = sublevel_loops(graph, circle.loss)
    assert loops.birth.tolist() == [max(gates)]
    assert (loops.essential.tolist(), loops.death.tolist()) == ([True], [along.max()])


@pytest.mark.parametrize("shift", [1, -1])
def test_a_loss_of_the_point_before_or_after_would_be_seen(circle: Circle, shift: int) -> None:
    graph = circle.graph()
    right = sublevel_components(graph, circle.loss)
    wrong = sublevel_components(graph, np.roll(circle.loss, shift))
    assert len(wrong.birth) > 2 * len(right.birth)


def test_the_embedding_keeps_the_order_on_the_circle(circle: Circle) -> None:
    distances = cosine_distances(principal_scores([circle.vectors], N))
    points = phate_embedding(distances).points
    angles = np.unwrap(np.arctan2(*points[np.argsort(circle.place)].T))
    steps = np.diff(angles)
    assert (np.sign(steps) == np.sign(steps[0])).all()
    assert abs(angles[-1] - angles[0]) == pytest.approx(2 * np.pi * (1 - 1 / N), rel=0.05)


@pytest.mark.parametrize("n", [130, 60])
def test_distances_are_those_that_phate_takes_of_the_vectors(n: int) -> None:
    from phate import PHATE

    rng = np.random.default_rng(1)
    vectors = 20 + np.cumsum(rng.normal(size=(n, 400)), axis=0)
    # PHATE keeps fewer points than its principal components as they are, about the origin
    given = vectors if n > 100 else vectors - vectors.mean(axis=0)
    operator = PHATE(knn_dist="cosine", n_landmark=None, random_state=0, verbose=0)
    operator.fit(given)
    distances = cosine_distances(principal_scores(np.array_split(vectors, 7, axis=1), n))
    found = phate_embedding(distances)
    assert_allclose(found.potential, operator.diff_potential, rtol=2e-2)
    assert found.points.shape == (n, 2)


def test_blocks_and_further_vectors_change_nothing(circle: Circle) -> None:
    more = np.concatenate([circle.vectors, 3 * circle.vectors[:2]])
    blocks = np.array_split(more, 9, axis=1)
    whole = cosine_distances(principal_scores([circle.vectors], N))
    parts = cosine_distances(principal_scores(blocks, N))
    assert_allclose(parts[:N, :N], whole, atol=1e-9)
    # the centred circle is the plane: the distance is that of the angle
    steps = (circle.place[:, None] - circle.place) * 2 * np.pi / N
    assert_allclose(whole, 1 - np.cos(steps), atol=1e-5)


def test_a_further_point_is_placed_among_those_near_it(circle: Circle) -> None:
    scores = principal_scores([circle.vectors], N)
    further = 2 * scores[7:8]  # in the direction of a point that is there
    distances = cosine_distances(np.concatenate([scores, further]))
    points = phate_embedding(distances[:N, :N]).points
    placed = extended_points(distances[N:, :N], points)
    away = np.linalg.norm(points - placed, axis=1)
    assert away.argmin() == 7
    assert away[7] < 0.02 * np.ptp(points)
    assert extended_points(distances[N:, :N][:0], points).shape == (0, 2)
    # where several points lie in the very same place
    same = extended_points(np.zeros((1, 6)), np.arange(12.0).reshape(6, 2))
    assert_allclose(same, [[5, 6]])


@pytest.mark.parametrize("seed", range(4))
def test_components_are_those_of_gudhi(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 50
    graph = Graph.from_edges(n, rng.integers(0, n, (90, 2)))
    # with ties
    losses = read_only(np.round(rng.random(n), 1))
    tree = gudhi.SimplexTree()
    for vertex in range(n):
        tree.insert([vertex], losses[vertex])
    for u in range(n):
        for v in graph.indices[graph.indptr[u] : graph.indptr[u + 1]]:
            tree.insert([u, int(v)], max(losses[u], losses[v]))
    tree.compute_persistence(persistence_dim_max=True)
    theirs = tree.persistence_intervals_in_dimension(0)
    ours = sublevel_components(graph, losses)
    finite = ours.diagram[~ours.essential]
    assert sorted(map(tuple, finite)) == sorted(map(tuple, theirs[np.isfinite(theirs[:, 1])]))
    # of GUDHI's infinite ones those are left out here that do not rise above their birth
    births = np.sort(theirs[np.isinf(theirs[:, 1]), 0])
    assert set(ours.birth[ours.essential]) <= set(births)
    assert len(births) == graph.n_components


def test_triangles_fill_a_loop() -> None:
    # a square of edges, then both its triangles by a diagonal; beside it a square left open
    edges = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (4, 5), (5, 6), (6, 7), (7, 4)]
    losses = read_only(np.array([5.0, 1, 2, 3, 1, 2, 3, 4]))
    graph = Graph.from_edges(8, np.array(edges))
    # the diagonal comes with vertex 0, as two of the square's edges do: no loop lives
    assert sublevel_loops(graph, losses).diagram.tolist() == [[4.0, 5.0]]
    # a hub over a ring: born with the ring, filled by the hub
    ring = [(i, (i + 1) % 5) for i in range(5)] + [(i, 5) for i in range(5)]
    wheel = Graph.from_edges(6, np.array(ring))
    loops = sublevel_loops(wheel, np.array([1.0, 2, 3, 2.5, 1.5, 7]))
    assert loops.diagram.tolist() == [[3.0, 7.0]]
    assert loops.essential.tolist() == [False]


def test_a_loop_that_comes_last_has_no_persistence() -> None:
    square = Graph.from_edges(4, np.array([(0, 1), (1, 2), (2, 3), (3, 0)]))
    assert len(sublevel_loops(square, np.arange(4.0)).birth) == 0
    tree = Graph.from_edges(3, np.array([(0, 1), (1, 2)]))
    assert sublevel_loops(tree, np.arange(3.0)).diagram.shape == (0, 2)


def test_entropy_of_known_shares() -> None:
    # persistences 1, 1 and 2: shares 1/4, 1/4 and 1/2
    dgm = read_only(np.array([[0.0, 1], [2, 3], [5, 3], [4, 4]]))
    assert persistent_entropy(dgm) == pytest.approx(1.5 * np.log(2), rel=1e-15)
    assert persistent_entropy(np.array([[0.0, 1]] * 8)) == pytest.approx(np.log(8), rel=1e-15)
    for few in (np.empty((0, 2)), [[1.0, 4.0]], [[1.0, 1.0]]):
        assert str(persistent_entropy(few)) == "0.0"


def test_an_infinite_class_has_no_share() -> None:
    with pytest.raises(InputError, match="dgm: has no entropy"):
        persistent_entropy([[0.0, 1.0], [0.0, np.inf]])


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_few_points_are_embedded(n: int) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, 20))
    distances = read_only(cosine_distances(principal_scores([vectors], n)))
    found = phate_embedding(distances)
    assert np.isfinite(found.points).all()
    assert found.points.shape == (n, 2)
    assert potential_graph(found.potential, 20).n_edges == n * (n - 1) // 2
    again = phate_embedding(distances)
    assert again.points.tobytes() == found.points.tobytes()


def test_points_in_groups_far_from_each_other_are_embedded() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(10 * np.eye(3, 30), 8, axis=0) + 0.01 * rng.normal(size=(24, 30))
    found = phate_embedding(cosine_distances(principal_scores([groups], 24)))
    assert np.isfinite(found.points).all()
    graph = potential_graph(found.potential, 5)
    assert graph.n_components == 3
    components = sublevel_components(graph, np.arange(24.0))
    assert components.diagram.tolist() == [[0, 7], [8, 15], [16, 23]]
    assert components.essential.all()


def test_a_vector_of_length_zero_is_far_from_all() -> None:
    distances = cosine_distances(np.array([[1.0, 0], [0, 0], [-2, 0]]))
    assert distances.tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


def test_without_phate_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jump_topology, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "phate", None)
    with pytest.raises(InputError, match=r"pip install 'lltopo\[jump\]'"):
        phate_embedding(np.ones((4, 4)))
