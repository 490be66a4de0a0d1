"""Correlations of the series with the metrics, against scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lltopo.correlations import TARGETS, correlation_rows, pearson, spearman
from lltopo.schemas import CORRELATIONS

EPOCHS = range(12)
REFERENCE = 11
RNG = np.random.default_rng(8)


def walk(low: float, high: float) -> dict[int, float]:
    """Values by epoch."""
    return dict(zip(EPOCHS, RNG.uniform(low, high, len(EPOCHS)).tolist(), strict=True))


MEASURES = {name: walk(1, 9) for name in ("n_pairs", "total_persistence", "max_persistence")}
MEASURES |= {"wasserstein_1": walk(0, 3), "wasserstein_2": walk(0, 2)}
METRICS = {(split, name): walk(0, 1) for split in ("train", "val") for name in ("loss", "accuracy")}


def series(**changed: Any) -> list[dict[str, Any]]:
    """Rows of one run, split and tree."""
    return [
        {
            "run": "only",
            "split": "val",
            "tree": "join",
            "epoch": epoch,
            "reference_epoch": REFERENCE,
            "order": float(order),
            "wasserstein": MEASURES[f"wasserstein_{order}"][epoch],
            "status": "ok",
        }
        | {name: MEASURES[name][epoch] for name in list(MEASURES)[:3]}
        | changed
        for epoch in EPOCHS
        for order in (1, 2)
    ]


def metrics(run: str = "only") -> list[dict[str, Any]]:
    return [
        {"run": run, "split": split, "epoch": epoch}
        | {name: METRICS[split, name][epoch] for name in ("loss", "accuracy")}
        for epoch in EPOCHS
        for split in ("train", "val")
    ]


def found(rows: list[dict[str, Any]]) -> dict[tuple[str, str, bool], dict[str, Any]]:
    return {(row["measure"], row["target"], row["differenced"]): row for row in rows}


def targets() -> dict[str, np.ndarray]:
    values = {f"{split}_{name}": METRICS[split, name] for split, name in METRICS}
    arrays = {name: np.array([by_epoch[e] for e in EPOCHS]) for name, by_epoch in values.items()}
    arrays["gap"] = arrays["val_loss"] - arrays["train_loss"]
    arrays["accuracy_gap"] = arrays["val_accuracy"] - arrays["train_accuracy"]
    return arrays


def test_every_measure_goes_with_every_target_as_scipy_says() -> None:
    rows = correlation_rows(series(), metrics())
    assert len(rows) == 5 * 6 * 2
    assert all(set(row) == set(CORRELATIONS.names) for row in rows)
    by_key = found(rows)
    assert set(TARGETS) == set(targets())
    for measure, by_epoch in MEASURES.items():
        for target, y in targets().items():
            # without epoch 0 and the reference
            pair = np.array([list(by_epoch.values()), y])[:, 1:REFERENCE]
            for differenced, (x, y_) in ((False, pair), (True, np.diff(pair))):
                row = by_key[measure, target, differenced]
                assert row["n"] == len(x) == 10 - differenced
                assert row["pearson"] == pytest.approx(stats.pearsonr(x, y_)[0], abs=1e-12)
                assert row["spearman"] == pytest.approx(stats.spearmanr(x, y_)[0], abs=1e-12)


def test_rows_of_epoch_0_and_the_reference_change_nothing() -> None:
    rows = series()
    for row in rows:
        if row["epoch"] in (0, REFERENCE):
            row |= {"total_persistence": 1e6, "wasserstein": 1e6, "n_pairs": 10**6}
    assert correlation_rows(rows, metrics()) == correlation_rows(series(), metrics())


def test_each_run_split_and_tree_is_its_own() -> None:
    other = series(run="other", tree="split", total_persistence=3.0)
    rows = correlation_rows([*series(), *other], [*metrics(), *metrics("other")])
    assert [row for row in rows if row["run"] == "only"] == correlation_rows(series(), metrics())
    assert {(row["run"], row["split"], row["tree"]) for row in rows} == {
        ("only", "val", "join"),
        ("other", "val", "split"),
    }


def test_epochs_that_are_not_ok_are_left_out() -> None:
    rows = series()
    for row in rows:
        if row["epoch"] >= 9:
            row |= {"status": "diverged", "reference_epoch": None, "total_persistence": None}
            row |= {"n_pairs": None, "max_persistence": None, "wasserstein": None}
        else:
            row["reference_epoch"] = 8
    by_key = found(correlation_rows(rows, metrics()))
    row = by_key["total_persistence", "val_loss", False]
    x = [MEASURES["total_persistence"][epoch] for epoch in range(1, 8)]
    y = targets()["val_loss"][1:8]
    assert row["n"] == 7
    assert row["pearson"] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)


def test_infinite_values_are_left_out() -> None:
    rows = series()
    for row in rows:
        if row["epoch"] == 4:
            row |= {"total_persistence": math.inf}
    by_key = found(correlation_rows(rows, metrics()))
    assert by_key["total_persistence", "val_loss", False]["n"] == 9
    assert by_key["n_pairs", "val_loss", False]["n"] == 10


def test_differences_never_reach_across_a_gap() -> None:
    epochs = (1, 2, 3, 7, 8)
    rows = [row | {"reference_epoch": 99} for row in series() if row["epoch"] in epochs]
    by_key = found(correlation_rows(rows, metrics()))
    assert by_key["n_pairs", "val_loss", False]["n"] == 5
    row = by_key["n_pairs", "val_loss", True]
    steps = [(1, 2), (2, 3), (7, 8)]
    x = [MEASURES["n_pairs"][b] - MEASURES["n_pairs"][a] for a, b in steps]
    y = [METRICS["val", "loss"][b] - METRICS["val", "loss"][a] for a, b in steps]
    assert row["n"] == 3
    assert row["pearson"] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert row["spearman"] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)


def test_unknown_accuracy_makes_no_coefficient() -> None:
    unknown = [row | {"accuracy": None} for row in metrics()]
    by_key = found(correlation_rows(series(), unknown))
    for target in ("train_accuracy", "val_accuracy", "accuracy_gap"):
        row = by_key["n_pairs", target, False]
        assert (row["pearson"], row["spearman"], row["n"]) == (None, None, 0)
    assert by_key["n_pairs", "gap", False]["pearson"] is not None
    # a split of which nothing is known
    train_only = [row for row in metrics() if row["split"] == "train"]
    by_key = found(correlation_rows(series(), train_only))
    assert by_key["n_pairs", "gap", True]["n"] == 0
    assert by_key["n_pairs", "train_loss", True]["n"] == 9


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.0, 0.0, 1e300])
def test_what_does_not_change_goes_with_nothing(value: float) -> None:
    # 0.1 added up ten times and divided by ten is not 0.1
    rows = correlation_rows(series(total_persistence=value), metrics())
    for row in rows:
        if row["measure"] == "total_persistence":
            assert row["pearson"] is None
            assert row["spearman"] is None
        else:
            assert row["pearson"] is not None


def test_fewer_than_three_epochs_make_no_coefficient() -> None:
    for n_epochs, pearsons in ((4, (True, False)), (3, (False, False))):
        rows = [row | {"reference_epoch": n_epochs} for row in series() if row["epoch"] < n_epochs]
        by_key = found(correlation_rows(rows, metrics()))
        for differenced, expected in zip((False, True), pearsons, strict=True):
            row = by_key["n_pairs", "val_loss", differenced]
            assert row["n"] == n_epochs - 1 - differenced
            assert (row["pearson"] is not None) is expected
            assert (row["spearman"] is not None) is expected


def test_nothing_comes_of_nothing() -> None:
    assert correlation_rows([], metrics()) == []


values = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=3, max_size=12)


@given(values, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_coefficients_are_scipys(x: list[float], random: Any) -> None:
    y = [random.choice([-1, 1]) * value + random.randint(-5, 5) for value in x]
    a, b = np.array(x), np.array(y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert pearson(a, b) is None
        assert spearman(a, b) is None
    elif min(np.ptp(a), np.ptp(b)) > 1e-6 * max(np.abs(a).max(), np.abs(b).max()):
        assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-9)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-9)


def test_coefficients_do_not_overflow_and_stay_in_range() -> None:
    x = np.array([1.0, 2.0, 3.0])
    assert pearson(x * 1e200, x * 1e-200) == pytest.approx(1.0)
    assert -1.0 <= pearson(x, -x) <= -1 + 1e-15
    assert 1 - 1e-15 <= spearman(x, np.exp(5 * x)) <= 1.0
    assert pearson(np.array([1.0, np.nan, 2.0]), x) is None
    assert spearman(np.array([1.0, np.inf, 2.0]), x) is None
