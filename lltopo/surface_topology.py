"""The topology of a loss surface: a scalar field on the grid of its points, 4 neighbours each.

Its merge trees are those of any field on a graph (``trees.py``), so that a surface and the losses
of samples are told apart by one and the same measure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.diagrams import both_persistence_pairs, diagram_of
from lltopo.errors import InputError
from lltopo.graph import Graph


class SurfaceDiagrams(NamedTuple):
    """Both diagrams of a surface, (m, 2) float64, essential pairs capped at the other extremum.

    ``join``: maxima, the components of the superlevel sets; ``split``: minima, of the sublevel
    sets.
    """

    join: NDArray[np.float64]
    split: NDArray[np.float64]


def grid_graph(n_rows: int, n_columns: int) -> Graph:
    """Join every point of a grid with the next ones in its row and its column.

    Parameters
    ----------
    n_rows, n_columns : int
        1 or more.

    Returns
    -------
    Graph
        Vertices in row-major order.
    """
    vertex = np.arange(n_rows * n_columns).reshape(n_rows, n_columns)
    ends = ((vertex[:, :-1], vertex[:, 1:]), (vertex[:-1], vertex[1:]))
    edges = [np.column_stack([start.ravel(), end.ravel()]) for start, end in ends]
    return Graph.from_edges(n_rows * n_columns, np.concatenate(edges))


def surface_diagrams(values: ArrayLike) -> SurfaceDiagrams:
    """Compute the persistence diagrams of both merge trees of a surface.

    Parameters
    ----------
    values : (n_rows, n_columns) array of real numbers
        Losses at the points of a grid.

    Returns
    -------
    SurfaceDiagrams

    Raises
    ------
    InputError
        Unless there are two axes and all values are finite.
    """
    grid = np.asarray(values)
    if grid.ndim != 2:
        raise InputError(
            f"values: are no surface: expected two axes, got shape {grid.shape}. Give a grid."
        )
    join, split = both_persistence_pairs(grid_graph(*grid.shape), grid.ravel())
    return SurfaceDiagrams(diagram_of(join, tree="join"), diagram_of(split, tree="split"))
