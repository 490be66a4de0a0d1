"""A finished study's folder with planted results: no network is trained, no tree is computed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lltopo import schemas, tables
from lltopo.sections import SPLITS
from lltopo.storage import Place, place
from lltopo.study import Study
from lltopo.study_files import resolved_study
from lltopo.tables import TREES


def falling(run: str, split: str, tree: str, epoch: int) -> float:
    """Total persistence that falls, lower in the run of the larger rate."""
    return (80.0 if run == "large" else 140.0) * 0.9**epoch + (3.0 if tree == "join" else 2.0)


def rising(run: str, split: str, epoch: int) -> float:
    """Accuracy that rises, higher in the run of the larger rate."""
    return (0.97 if run == "large" else 0.9) - 0.5 * 0.8**epoch


class Plan(NamedTuple):
    """What is planted."""

    rates: Mapping[str, float] = {"large": 0.1, "small": 0.01}
    epochs: range = range(13)
    milestones: tuple[int, ...] = (4, 8, 10)
    persistence: Callable[[str, str, str, int], float] = falling
    accuracy: Callable[[str, str, int], float | None] = rising
    correlation: Callable[[str, str, str, bool], float | None] = lambda *_: -0.8
    lost: Mapping[tuple[str, str, int], tuple[str, str]] = {}
    trained: bool = True
    order: tuple[float, ...] = (1.0,)
    title: str = "Planted"
    settings: Mapping[str, dict] = {}
    n_pairs: int = 60


def planted_study(plan: Plan, folder: Path) -> tuple[Study, Place]:
    """Write the tables and diagrams of ``plan`` below a folder."""
    out = place(folder)
    series = [
        row for run in plan.rates for split in SPLITS for row in _series(plan, out, run, split)
    ]
    tables.write_table(out / "series.parquet", series, schemas.SERIES)
    metrics = [
        {
            "run": run,
            "split": split,
            "epoch": epoch,
            "loss": 2.3 * 0.8**epoch + 0.01,
            "accuracy": plan.accuracy(run, split, epoch),
            "learning_rate": _rate(plan, run, epoch) if plan.trained else None,
            "seconds": 1.5,
        }
        for run in plan.rates
        for epoch in plan.epochs
        for split in SPLITS
    ]
    tables.write_table(out / "metrics.parquet", metrics, schemas.METRICS)
    correlations = [
        {
            "run": run,
            "split": split,
            "tree": tree,
            "measure": measure,
            "target": target,
            "differenced": differenced,
            "pearson": rho,
            "spearman": rho,
            "n": len(plan.epochs) - 2,
        }
        for run in plan.rates
        for split in SPLITS
        for tree in TREES
        for measure in ("total_persistence", *(f"wasserstein_{order:g}" for order in plan.order))
        for target in ("train_accuracy", "val_accuracy", "val_loss")
        for differenced in (False, True)
        for rho in [plan.correlation(run, split, tree, differenced)]
    ]
    tables.write_table(out / "correlations.parquet", correlations, schemas.CORRELATIONS)
    return _study(plan), out


def _series(plan: Plan, out: Place, run: str, split: str) -> list[dict]:
    rows = []
    for tree in TREES:
        for epoch in plan.epochs:
            status, reason = plan.lost.get((run, split, epoch), ("ok", None))
            points = _diagram(plan, run, split, tree, epoch, ok=status == "ok")
            persistence = np.abs(points["birth"] - points["death"])
            field = tables.Field(run, split, epoch)
            table = pa.table(points, schema=schemas.DIAGRAM)
            tables.write_columns(tables.diagram_file(out, field, tree), table, {})
            for order in plan.order:
                ok = status == "ok"
                rows.append(
                    {
                        "run": run,
                        "split": split,
                        "tree": tree,
                        "epoch": epoch,
                        "reference_epoch": plan.epochs[-1],
                        "order": order,
                        "degree": 1.0,
                        "essential": "cap",
                        "n_pairs": len(persistence) if ok else None,
                        "total_persistence": float(persistence.sum()) if ok else None,
                        "max_persistence": float(persistence.max()) if ok else None,
                        "wasserstein": (plan.epochs[-1] - epoch) / 3 / order if ok else None,
                        "n_nonfinite": 0 if ok else 7,
                        "status": status,
                        "reason": reason,
                    }
                )
    return rows


def _diagram(
    plan: Plan, run: str, split: str, tree: str, epoch: int, *, ok: bool
) -> dict[str, np.ndarray]:
    m = plan.n_pairs if ok else 0
    rng = np.random.default_rng(zlib.crc32(f"{run} {split} {tree} {epoch}".encode()))
    persistence = rng.exponential(size=m)
    persistence *= plan.persistence(run, split, tree, epoch) / max(persistence.sum(), 1)
    low = rng.exponential(0.5, size=m)
    high = low + persistence
    birth, death = (high, low) if tree == "join" else (low, high)
    samples = np.arange(m, dtype=np.int32)
    essential = samples == 0
    return {
        "birth": birth,
        "death": death,
        "birth_sample": samples,
        "death_sample": samples,
        "essential": essential,
    }


def _rate(plan: Plan, run: str, epoch: int) -> float:
    return plan.rates[run] * 0.2 ** sum(milestone <= epoch for milestone in plan.milestones)


def _study(plan: Plan) -> Study:
    analysis = {"order": list(plan.order)}
    report = {"title": plan.title, "bins": 20}
    if not plan.trained:
        data = {"source": "losses", "losses": "/nowhere", "features": {"train": "/nowhere.npy"}}
        return resolved_study({"data": data, "analysis": analysis, "report": report}, "planted")
    training = {
        "epochs": plan.epochs[-1],
        "lr": 0.1,
        "milestones": list(plan.milestones),
        "gamma": 0.2,
    }
    runs = {
        run: {"training": {"lr": rate} | plan.settings.get(run, {})}
        for run, rate in plan.rates.items()
    }
    raw = {
        "data": {"source": "digits"},
        "model": {"name": "mlp"},
        "training": training,
        "runs": runs,
        "analysis": analysis,
        "report": report,
    }
    return resolved_study(raw, "planted")
