"""Topological analysis of neural-network loss landscapes, sample by sample.

At fixed weights the loss of each single sample is a scalar field on a k-nearest-neighbour
graph of the samples. lltopo computes that field's merge trees, persistence diagrams and
their distances, epoch by epoch.

Importing this package loads neither Ray, torch nor numba: each name below brings its module
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lltopo.diagrams import (
        as_ascending,
        persistence_diagram,
        persistence_pairs,
        total_persistence,
    )
    from lltopo.distances import (
        bottleneck_distance,
        distance_matrix,
        dual_potentials,
        optimal_matching,
        wasserstein_distance,
    )
    from lltopo.errors import InputError
    from lltopo.graph import Graph, knn_graph
    from lltopo.recorder import LossRecorder
    from lltopo.surface import filter_normalised_direction, loss_surface
    from lltopo.trees import contour_tree, join_tree, split_tree

__version__ = "0.1.0"

_HOME = {
    "Graph": "graph",
    "InputError": "errors",
    "LossRecorder": "recorder",
    "as_ascending": "diagrams",
    "bottleneck_distance": "distances",
    "contour_tree": "trees",
    "distance_matrix": "distances",
    "dual_potentials": "distances",
    "filter_normalised_direction": "surface",
    "join_tree": "trees",
    "knn_graph": "graph",
    "loss_surface": "surface",
    "optimal_matching": "distances",
    "persistence_diagram": "diagrams",
    "persistence_pairs": "diagrams",
    "split_tree": "trees",
    "total_persistence": "diagrams",
    "wasserstein_distance": "distances",
}

__all__ = [
    "Graph",
    "InputError",
    "LossRecorder",
    "as_ascending",
    "bottleneck_distance",
    "contour_tree",
    "distance_matrix",
    "dual_potentials",
    "filter_normalised_direction",
    "join_tree",
    "knn_graph",
    "loss_surface",
    "optimal_matching",
    "persistence_diagram",
    "persistence_pairs",
    "split_tree",
    "total_persistence",
    "wasserstein_distance",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lltopo' has no attribute {name!r}")
    return getattr(import_module(f"lltopo.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
