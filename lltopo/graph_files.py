"""The graphs of a study's splits, and how each was made: ``graph/train.npz``, ``graph/val.npz``."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lltopo.candidates import Progress
from lltopo.graph import Graph, neighbour_graph
from lltopo.neighbours import (
    Neighbours,
    exact_neighbours,
    nearest_neighbours,
    neighbour_recall,
    search_method,
)
from lltopo.storage import Place, exists, read_bytes, write_bytes

ExactSearch = Callable[[NDArray[Any], int, Progress | None], Neighbours]


class MadeGraph(NamedTuple):
    """A graph, how it was made (JSON values), and the SHA-256 of its arrays."""

    graph: Graph
    made: Mapping[str, Any]
    digest: str


def made_graph(
    features: NDArray[Any],
    k: int,
    method: str,
    origin: Mapping[str, Any],
    progress: Progress | None = None,
    find_exactly: ExactSearch = exact_neighbours,
) -> MadeGraph:
    """Make the k-nearest-neighbour graph of a split's features.

    Parameters
    ----------
    features : (n, d) array
    k, method
        As in `lltopo.graph.knn_graph`, whose errors are raised.
    origin
        Where the features come from; what was measured (the recall on some rows, 1 where the
        search is exact; the graph's sizes) is added to it.
    progress
        Told the fraction done.
    find_exactly
        Carries out an exact search; every one of them has the same answer.
    """
    search = search_method((len(features), math.prod(features.shape[1:])), method)
    exact = search == "exact"
    if exact:
        neighbours = find_exactly(features, k, progress)
    else:
        neighbours = nearest_neighbours(features, k, search, progress)
    graph = neighbour_graph(neighbours.indices)
    measured = {
        "search": search,
        "recall": 1.0 if exact else neighbour_recall(features, neighbours.indices),
        "n_vertices": graph.n_vertices,
        "n_edges": graph.n_edges,
        "n_components": graph.n_components,
    }
    return MadeGraph(graph, {**origin, **measured}, _digest(graph))


def graph_file(out: Place, split: str) -> Place:
    """Return where a split's graph lies."""
    return out / f"graph/{split}.npz"


def write_graph(target: Place, made: MadeGraph) -> None:
    """Write a graph as .npz: ``indptr``, ``indices`` and ``made`` (a JSON text)."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        indptr=made.graph.indptr,
        indices=made.graph.indices,
        made=np.array(json.dumps(made.made, sort_keys=True)),
    )
    write_bytes(target, buffer.getvalue())


def read_graph(source: Place) -> MadeGraph | None:
    """Read a graph; None where the file is absent or damaged."""
    if not exists(source):
        return None
    content = read_bytes(source)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            graph = Graph(file["indptr"], file["indices"])
            made = json.loads(str(file["made"]))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return MadeGraph(graph, made, _digest(graph))


def _digest(graph: Graph) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(graph.indptr, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(graph.indices, dtype="<i4").tobytes())
    return digest.hexdigest()
