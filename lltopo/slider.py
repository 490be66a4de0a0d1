"""The heatmaps of all epochs, compact enough to travel inside the page.

The page draws them itself, from the counts of the bins that are not empty; all epochs of one
tree and split share bins, axes and colours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from lltopo.figures import COLOUR_MAP
from lltopo.heatmaps import Scale, axis_ticks, common_scale, heatmap_counts
from lltopo.plates import Diagrams, heatmap_epochs
from lltopo.results import Results, epochs, milestones, topology_rows, training_rows
from lltopo.sections import SPLITS, Split
from lltopo.seeds import first_seeds
from lltopo.tables import TREES, Tree

LARGEST = 40_000  # rows of bins in a page, of some fifty bytes each
FACTS = (
    "epoch",
    "status",
    "reason",
    "n_pairs",
    "total_persistence",
    "wasserstein",
    "reference_epoch",
)


def shown_epochs(results: Results) -> list[int]:
    """The epochs that the slider has: all, or evenly thinned to what a page can carry.

    The first and last epoch and those around a change of the rate are always there.
    """
    every = epochs(results)
    heatmaps = len(SPLITS) * len(TREES) * len(first_seeds(results))
    room = max(2, LARGEST // (heatmaps * results.study.report.bins))
    if len(every) <= room:
        return every
    kept = {epoch for run in results.runs for epoch in heatmap_epochs(results, run)} & set(every)
    places = np.linspace(0, len(every) - 1, max(2, room - len(kept))).round().astype(int)
    return sorted(kept | {every[place] for place in places})


def slider_frame(results: Results) -> dict[str, Any]:
    """What all views of the slider share: runs, epochs, changes of the rate, colours."""
    stops = colormaps[COLOUR_MAP](np.linspace(0, 1, 32))
    return {
        "runs": first_seeds(results),
        "epochs": shown_epochs(results),
        "milestones": sorted({m for run in results.runs for m in milestones(results, run)}),
        "colours": [to_hex(stop) for stop in stops],
    }


def slider_view(results: Results, split: Split, tree: Tree, dgms: Diagrams) -> dict[str, Any]:
    """One tree's and split's heatmaps: the scale, and for each run, in order, its epochs.

    ``cells`` of an epoch lists, bin after bin in the order birth * bins + death, how far it lies
    behind the one before and how many points it has.
    """
    shown = shown_epochs(results)
    drawn = [dgm for (_, epoch), dgm in dgms.items() if epoch in shown and not isinstance(dgm, str)]
    scale = common_scale(drawn, results.study.report.bins)
    views = []
    for run in first_seeds(results):
        accuracy = {row["epoch"]: row["accuracy"] for row in training_rows(results, run, split)}
        views.append(
            [
                {name: _json_value(row[name]) for name in FACTS}
                | {
                    "accuracy": _json_value(accuracy.get(row["epoch"])),
                    "cells": _cells(dgms[run, row["epoch"]], scale),
                }
                for row in topology_rows(results, run, split, tree)
                if row["epoch"] in shown
            ]
        )
    return scale._asdict() | {"ticks": list(axis_ticks(scale).items()), "runs": views}


def _cells(dgm: NDArray[np.float64] | str, scale: Scale) -> list[int]:
    if isinstance(dgm, str):
        return []
    counts = heatmap_counts(dgm, scale).ravel()
    filled = np.flatnonzero(counts)
    gaps = np.diff(filled, prepend=0)
    flat: list[int] = np.column_stack([gaps, counts[filled]]).ravel().tolist()
    return flat


def _json_value(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
