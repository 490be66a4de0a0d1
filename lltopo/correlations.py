"""How each topological series goes with losses, accuracies and the gaps between the splits.

On the values, and on their first differences (from one epoch to the next, never across a gap),
because two trends always correlate. Epoch 0 and
the reference epoch are left out: the one is no training, the other's distance is 0 by definition.
There are no p-values: the epochs of one run are not independent draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Row = dict[str, Any]
Values = NDArray[np.float64]

TARGETS = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "gap", "accuracy_gap")
_FEWEST = 3


def correlation_rows(series: Sequence[Row], metrics: Sequence[Row]) -> list[Row]:
    """Correlate each measure of the topology with each target.

    Parameters
    ----------
    series, metrics
        Rows of ``series.parquet`` and ``metrics.parquet``.

    Returns
    -------
    list
        Rows of ``correlations.parquet``. A measure is ``n_pairs``, ``total_persistence``,
        ``max_persistence`` or ``wasserstein_<order>``; a coefficient is None where fewer than
        three epochs have both values or one of them does not change.
    """
    targets = _targets(metrics)
    grouped: dict[tuple[str, str, str], dict[str, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in series:
        if row["status"] == "ok" and row["epoch"] not in (0, row["reference_epoch"]):
            measures = grouped[row["run"], row["split"], row["tree"]]
            for name in ("n_pairs", "total_persistence", "max_persistence"):
                measures[name][row["epoch"]] = row[name]
            measures[f"wasserstein_{row['order']:g}"][row["epoch"]] = row["wasserstein"]
    return [
        {"run": run, "split": split, "tree": tree, "measure": measure, **found}
        for (run, split, tree), measures in grouped.items()
        for measure, by_epoch in measures.items()
        for found in _against_targets(by_epoch, targets.get(run, {}))
    ]


def pearson(x: Values, y: Values) -> float | None:
    """Compute Pearson's coefficient of two series of equal length.

    Returns
    -------
    float or None
        In [-1, 1]; None where one of them does not change, or has a value that is not finite.
    """
    if not (_changes(x) and _changes(y)):
        return None
    # scaled first, so that no square overflows or vanishes
    x, y = (z / np.abs(z).max() for z in (x - x.mean(), y - y.mean()))
    norm = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / norm))


def spearman(x: Values, y: Values) -> float | None:
    """Compute Spearman's coefficient: Pearson's on the ranks, ties sharing their mean rank."""
    return pearson(rankdata(x), rankdata(y)) if np.isfinite([x, y]).all() else None


def _changes(x: Values) -> bool:
    # not by its deviations from the mean: those of equal values need not be zero
    return bool(np.isfinite(x).all()) and len(x) > 0 and bool((x != x[0]).any())


def _against_targets(
    measure: dict[int, float], targets: dict[str, dict[int, float]]
) -> Iterator[Row]:
    for target in TARGETS:
        by_epoch = targets.get(target, {})
        epochs = sorted(e for e in measure.keys() & by_epoch.keys() if by_epoch[e] is not None)
        x = np.array([measure[e] for e in epochs], dtype=np.float64)
        y = np.array([by_epoch[e] for e in epochs], dtype=np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        consecutive = np.diff(np.array(epochs, dtype=np.int64)[finite]) == 1
        for differenced in (False, True):
            if differenced:
                x, y = np.diff(x)[consecutive], np.diff(y)[consecutive]
            yield {
                "target": target,
                "differenced": differenced,
                "pearson": _defined(pearson, x, y),
                "spearman": _defined(spearman, x, y),
                "n": len(x),
            }


def _defined(
    coefficient: Callable[[Values, Values], float | None], x: Values, y: Values
) -> float | None:
    return coefficient(x, y) if len(x) >= _FEWEST else None


def _targets(metrics: Sequence[Row]) -> dict[str, dict[str, dict[int, float]]]:
    """run -> target -> epoch -> value; targets that are not known are left out."""
    values: dict[tuple[str, int], dict[str, float | None]] = defaultdict(dict)
    for row in metrics:
        for name in ("loss", "accuracy"):
            values[row["run"], row["epoch"]][f"{row['split']}_{name}"] = row[name]
    targets: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for (run, epoch), found in values.items():
        for gap, name in (("gap", "loss"), ("accuracy_gap", "accuracy")):
            val, train = found.get(f"val_{name}"), found.get(f"train_{name}")
            found[gap] = None if val is None or train is None else val - train
        for target in TARGETS:
            value = found.get(target)
            if value is not None:
                targets[run][target][epoch] = value
    return targets
