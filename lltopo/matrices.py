"""The distances between all epochs of all runs, on one split and tree at a time.

Each pair once: a row of the upper triangle is one task, which finds all diagrams in shared memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lltopo.analysis import Row, read_points
from lltopo.distances import wasserstein_distance
from lltopo.fanout import Call, fan_out, shared
from lltopo.sections import SPLITS
from lltopo.side_by_side import answers
from lltopo.storage import Place
from lltopo.study import Analysis
from lltopo.tables import TREES, Field, Tree


def distance_rows(
    out: Place, metadata: Mapping[Field, Mapping[str, str]], analysis: Analysis
) -> tuple[list[Row], list[str]]:
    """Compute the rows of ``distances.parquet``; epochs that are not ok are left out.

    Parameters
    ----------
    out
        Where the diagrams are.
    metadata
        Of the fields whose diagrams are there, in the order in which they are to be compared.
    analysis
        Gives the orders and what becomes of essential pairs.

    Returns
    -------
    rows, problems
        A line for each epoch whose distances could not be computed.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for split, tree in itertools.product(SPLITS, TREES):
        fields = [
            f for f, found in metadata.items() if f.split == split and found["status"] == "ok"
        ]
        points = partial(_points, out, tree, analysis)
        diagrams = shared(list(answers(points, fields, out)))
        calls = [
            Call((i, order), (diagrams, i, order))
            for order in analysis.order
            for i in range(len(fields) - 1)
        ]
        found = {}
        for outcome in fan_out(distances_to_later, iter([calls])):
            if outcome.error is None:
                found[outcome.key] = outcome.value
            else:
                problems.append(f"distances of {fields[outcome.key[0]]}: {outcome.error}")
        for i, order in sorted(found, key=lambda key: (key[1], key[0])):
            common = {"split": split, "tree": tree, "order": order}
            rows += (common | pair for pair in _pairs(fields, i, found[i, order]))
    return rows, problems


def distances_to_later(
    diagrams: Sequence[NDArray[np.float64]], i: int, order: float
) -> NDArray[np.float64]:
    """Compute W_p of the i-th diagram to each one behind it."""
    return np.array(
        [wasserstein_distance(diagrams[i], later, order) for later in diagrams[i + 1 :]]
    )


def _points(out: Place, tree: Tree, analysis: Analysis, field: Field) -> NDArray[np.float64]:
    return read_points(out, field, tree, analysis)


def _pairs(fields: Sequence[Field], i: int, distances: NDArray[np.float64]) -> Iterator[Row]:
    for later, distance in zip(fields[i + 1 :], distances.tolist(), strict=True):
        yield {
            "run_a": fields[i].run,
            "epoch_a": fields[i].epoch,
            "run_b": later.run,
            "epoch_b": later.epoch,
            "distance": distance,
        }
