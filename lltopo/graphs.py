"""The graphs of a study: what they are made of, and making those that are not there yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltopo.candidates import Progress, search_work
from lltopo.data import DataSet, graph_features, samples_digest
from lltopo.errors import InputError
from lltopo.graph_files import (
    ExactSearch,
    MadeGraph,
    graph_file,
    made_graph,
    read_graph,
    write_graph,
)
from lltopo.ingestion import check_lengths, given_features, given_fields
from lltopo.neighbours import Neighbours, exact_neighbours
from lltopo.progress import Notify
from lltopo.sections import SPLITS
from lltopo.session import study_session
from lltopo.storage import Place, remove
from lltopo.study import Study
from lltopo.study_data import LossesData

LITTLE_WORK = 1e12  # multiply-adds that are done before torch or a cluster would have started


def study_splits(study: Study) -> list[str]:
    """Return the splits that a study has losses of."""
    if isinstance(study.data, LossesData):
        check_lengths(study.data)
        return sorted({field.split for field in given_fields(study.data)})
    return list(SPLITS)


def known_graphs(study: Study, out: Place, splits: Sequence[str]) -> dict[str, MadeGraph]:
    """Read the graphs that are there, whole, and made of what the study says."""
    found = {split: read_graph(graph_file(out, split)) for split in splits}
    return {
        split: made
        for split, made in found.items()
        if made is not None and _origin(study, split).items() <= made.made.items()
    }


def write_new_graph(
    study: Study, out: Place, split: str, data: DataSet | None, notify: Notify
) -> MadeGraph:
    """Make the graph of one split and write it.

    Parameters
    ----------
    data
        The study's data set; None where its features are given as files.
    """
    if isinstance(study.data, LossesData):
        features = given_features(study.data, split)
        check_k(study, {split: len(features)})
    else:
        assert data is not None
        features = graph_features(data.split(split).x, study.graph.features)
    origin = _origin(study, split)
    if data is not None:
        origin["samples"] = samples_digest(data.split(split))
    job = f"graph {split}"
    parts = out / f"graph/{split}.blocks"
    made = made_graph(
        features,
        study.graph.k,
        study.graph.method,
        origin,
        lambda done: notify(job, int(999 * done), 1000, ""),
        _exact_search(study, features, parts),
    )
    write_graph(graph_file(out, split), made)
    remove(parts)
    notify(job, 1000, 1000, f"{made.graph.n_edges:,} edges")
    return made


def _exact_search(study: Study, features: NDArray[Any], parts: Place) -> ExactSearch:
    """The exact search for here: on a GPU, else on a cluster, else, as for little, on this CPU."""
    n = len(features)
    if search_work(n, n, features.size // n) < LITTLE_WORK:
        return exact_neighbours
    from lltopo.graph_torch import gpu_device, torch_neighbours

    wanted = study.resources.device
    device = None if wanted == "cpu" else gpu_device()
    if device is not None:
        return partial(torch_neighbours, device=device)
    from lltopo.fanout import has_cluster

    if not has_cluster():
        return exact_neighbours

    def in_blocks(features: NDArray[Any], k: int, progress: Progress | None) -> Neighbours:
        from lltopo.neighbour_blocks import block_neighbours

        with study_session(study):
            return block_neighbours(features, k, progress, parts, wanted)

    return in_blocks


def check_same_data(graphs: Mapping[str, MadeGraph], data: DataSet) -> None:
    """Raise an InputError where a graph was made of other samples than these."""
    for split, made in graphs.items():
        if made.made.get("samples") != samples_digest(data.split(split)):
            raise InputError(
                f"data: the {split} samples have changed since the results there were made of "
                "them. Choose another --out, or bring the old ones back."
            )


def check_k(study: Study, n_samples: Mapping[str, int]) -> None:
    """Raise an InputError unless every split has more samples than neighbours are wanted."""
    for split, n in n_samples.items():
        if study.graph.k >= n:
            raise InputError(
                f"graph.k: is too large for the {split} split: expected less than its {n} "
                f"samples, got {study.graph.k}. Lower it."
            )


def _origin(study: Study, split: str) -> dict[str, Any]:
    """What a graph is made of, as it is kept beside it."""
    settings = study.graph.model_dump(mode="json")
    if isinstance(study.data, LossesData):
        features = np.ascontiguousarray(given_features(study.data, split))
        digest = hashlib.sha256(features.view(np.uint8)).hexdigest()
        return {"data": {"source": "losses", "features": digest}, **settings}
    return {"data": study.data.model_dump(mode="json", exclude={"mean", "std"}), **settings}
