"""Surfaces as fields on a grid, against GUDHI's cubical complexes."""

from __future__ import annotations

import os

import gudhi
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lltopo.errors import InputError
from lltopo.surface_topology import grid_graph, surface_diagrams

SIDE = 9 if os.environ.get("NUMBA_DISABLE_JIT") == "1" else 51


def cubical_diagram(values: np.ndarray) -> np.ndarray:
    """H0 of the sublevel sets by GUDHI; the essential pair ends at the largest value."""
    complex_ = gudhi.CubicalComplex(vertices=values)
    complex_.compute_persistence()
    points = complex_.persistence_intervals_in_dimension(0)
    points[~np.isfinite(points)] = values.max()
    return points[points[:, 0] != points[:, 1]]


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T)]


def fields() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    bowl = np.linspace(-1, 1, SIDE) ** 2
    return {
        "noise": rng.random((SIDE, SIDE)),
        "ties": rng.integers(0, 5, (SIDE, SIDE)).astype(float),
        "bowl": bowl[:, None] + bowl[None, :],
        "rough bowl": 10 ** (bowl[:, None] + bowl[None, :] + 0.3 * rng.random((SIDE, SIDE))),
        "unequal axes": rng.random((SIDE // 2, SIDE)),
        "one row": rng.random((1, SIDE)),
        "flat": np.ones((SIDE, SIDE)),
    }


@pytest.mark.parametrize("name", fields())
def test_diagrams_are_those_of_the_cubical_complex(name: str) -> None:
    values = fields()[name]
    found = surface_diagrams(values)
    assert_allclose(in_order(found.split), in_order(cubical_diagram(values)))
    assert_allclose(in_order(found.join), in_order(-cubical_diagram(-values)))


def test_a_bowl_has_one_minimum_and_four_corners() -> None:
    found = surface_diagrams(fields()["bowl"])
    assert_array_equal(found.split, [[0.0, 2.0]])
    assert_array_equal(found.join, [[2.0, 0.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])


def test_neighbours_are_the_next_ones_in_row_and_column() -> None:
    graph = grid_graph(2, 3)
    rows = [
        graph.indices[graph.indptr[v] : graph.indptr[v + 1]].tolist()
        for v in range(graph.n_vertices)
    ]
    assert rows == [[1, 3], [0, 2, 4], [1, 5], [0, 4], [1, 3, 5], [2, 4]]
    assert grid_graph(1, 1).n_edges == 0
    assert grid_graph(51, 51).n_edges == 2 * 51 * 50
    assert grid_graph(51, 51).n_components == 1


def test_what_is_no_finite_surface_is_refused() -> None:
    with pytest.raises(InputError, match="expected two axes"):
        surface_diagrams(np.ones(4))
    with pytest.raises(InputError, match="finite"):
        surface_diagrams(np.array([[1.0, np.inf], [0.0, 1.0]]))
