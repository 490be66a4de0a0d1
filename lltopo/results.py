"""A finished study's tables, and what the report reads from them.

Every number that the report prints is a :class:`Number`: a value with the table, the column
and the row that it was read from, so that a reader (and a test) can look it up again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lltopo import schemas, tables
from lltopo.diagrams import PersistencePairs, diagram_of
from lltopo.errors import InputError
from lltopo.sections import Split
from lltopo.side_by_side import answers
from lltopo.storage import Place, exists
from lltopo.study import Study
from lltopo.tables import Tree

Row = dict[str, Any]


class Results(NamedTuple):
    """The tables below a study's ``--out`` as rows, with the study that made them.

    ``series`` and ``metrics``, which are long, are left as tables; the others hold a mapping a row,
    as the schemas of :mod:`lltopo.schemas` name their columns. ``runs`` is in the study's order.
    """

    study: Study
    out: Place
    runs: tuple[str, ...]
    series: pa.Table
    metrics: pa.Table
    correlations: list[Row]
    contours: list[Row]
    distances: list[Row]
    surfaces: list[Row]
    comparison: list[Row]
    jumps: list[Row]
    jump_diagrams: list[Row]
    jump_summary: list[Row]


class Curve(NamedTuple):
    """One measure by epoch: (n,) epochs, rising; (n,) values, NaN where there is none."""

    epoch: NDArray[np.int64]
    value: NDArray[np.float64]


class Number(NamedTuple):
    """A printed number, and the table, column and row that it comes from.

    ``table`` is ``derived`` where the number was computed from several rows; ``column`` then
    names the computation.
    """

    value: float | int | None
    table: str
    column: str
    key: Mapping[str, Any]


def read_results(study: Study, out: Place) -> Results:
    """The tables below ``out``.

    Raises
    ------
    InputError
        Where a table is absent or damaged, or the series is empty.
    """
    series = tables.read_table(out / "series.parquet", schemas.SERIES)
    if not len(series):
        raise InputError(
            f"{out / 'series.parquet'}: is empty: expected a row for each epoch, got none. "
            "Analyse the study first."
        )
    found = set(_distinct(series, "run"))
    return Results(
        study=study,
        out=out,
        runs=(*(run for run in study.runs if run in found), *sorted(found - study.runs.keys())),
        series=series,
        metrics=tables.read_table(out / "metrics.parquet", schemas.METRICS),
        correlations=tables.read_table(
            out / "correlations.parquet", schemas.CORRELATIONS
        ).to_pylist(),
        contours=_optional_rows(out / "contours.parquet", schemas.CONTOURS),
        distances=_optional_rows(out / "distances.parquet", schemas.DISTANCES),
        surfaces=_optional_rows(out / "surfaces.parquet", schemas.SURFACES),
        comparison=_optional_rows(out / "comparison.parquet", schemas.COMPARISON),
        jumps=_optional_rows(out / "jump.parquet", schemas.JUMP),
        jump_diagrams=_optional_rows(out / "jump_diagrams.parquet", schemas.JUMP_DIAGRAMS),
        jump_summary=_optional_rows(out / "jump_summary.parquet", schemas.JUMP_SUMMARY),
    )


def _optional_rows(source: Place, schema: pa.Schema) -> list[Row]:
    """The rows of a table that not every study has."""
    return tables.read_table(source, schema).to_pylist() if exists(source) else []


def read_diagrams(
    results: Results, run: str, split: Split, tree: Tree, epochs: Iterable[int]
) -> dict[int, NDArray[np.float64] | str]:
    """By epoch, the persistence diagram of a run's field and tree, or why there is none."""
    rows = {row["epoch"]: row for row in topology_rows(results, run, split, tree)}
    wanted = list(epochs)

    def read(epoch: int) -> NDArray[np.float64] | str:
        row = rows.get(epoch)
        return f"no epoch {epoch}" if row is None else _read_diagram(results, row)

    return dict(zip(wanted, answers(read, wanted, results.out), strict=True))


def _read_diagram(results: Results, row: Row) -> NDArray[np.float64] | str:
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason'] or 'no reason given'}"
    field = tables.Field(row["run"], row["split"], row["epoch"])
    source = tables.diagram_file(results.out, field, row["tree"])
    columns = tables.read_table(source, schemas.DIAGRAM)
    pairs = PersistencePairs(*(columns[name].to_numpy() for name in schemas.DIAGRAM.names))
    return diagram_of(pairs, results.study.analysis.essential, row["tree"])


def selected(table: pa.Table, **key: Any) -> pa.Table:
    """The rows of a table whose columns have the values of ``key``, in order."""
    for name, value in key.items():
        table = table.filter(pc.equal(table[name], value))
    return table


def _as_rows(table: pa.Table) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    return rows


def _distinct(table: pa.Table, column: str) -> list[Any]:
    """The values of a column, rising."""
    return sorted(pc.unique(table[column]).to_pylist())


def matching(rows: Iterable[Row], **key: Any) -> list[Row]:
    """The rows whose columns have the values of ``key``, in order."""
    return [row for row in rows if all(row[name] == value for name, value in key.items())]


def curve(rows: Sequence[Row], column: str) -> Curve:
    """A column of rows that differ by epoch alone; null and non-finite values become NaN."""
    pairs = sorted((row["epoch"], row[column]) for row in rows)
    value = np.array([math.nan if v is None else v for _, v in pairs], dtype=np.float64)
    value[~np.isfinite(value)] = math.nan
    return Curve(np.array([epoch for epoch, _ in pairs], dtype=np.int64), value)


def topology_rows(
    results: Results, run: str, split: Split, tree: Tree, order: float | None = None
) -> list[Row]:
    """The series of one run, split and tree; ``order`` defaults to the study's first."""
    chosen = order if order is not None else orders(results)[0]
    rows = selected(results.series, run=run, split=split, tree=tree, order=chosen)
    return _as_rows(rows)


def training_rows(results: Results, run: str, split: Split) -> list[Row]:
    """The metrics of one run on one split."""
    return _as_rows(selected(results.metrics, run=run, split=split))


def orders(results: Results) -> list[float]:
    """The orders of the Wasserstein distances, the study's first one first."""
    found = _distinct(results.series, "order")
    return sorted(found, key=lambda order: order != results.study.analysis.order[0])


def epochs(results: Results, run: str | None = None) -> list[int]:
    """Every epoch of a run, or of all runs, rising."""
    series = results.series if run is None else selected(results.series, run=run)
    return _distinct(series, "epoch")


def milestones(results: Results, run: str) -> list[int]:
    """The epochs from which on a run's learning rate is another than before.

    Taken from the study where it trained the run, else from the recorded rates; only epochs
    that the run reached.
    """
    reached = epochs(results, run)[-1:]
    if run in results.study.runs:
        planned = results.study.runs[run].training.milestones
        return [epoch for epoch in planned if [epoch] <= reached]
    rates = _rates(results, run)
    return [epoch for (_, before), (epoch, after) in itertools.pairwise(rates) if before != after]


def initial_rate(results: Results, run: str) -> float | None:
    """The learning rate that a run began with; None where it is not known."""
    if run in results.study.runs:
        return results.study.runs[run].training.lr
    return next((rate for _, rate in _rates(results, run)), None)


def not_ok(results: Results) -> list[Row]:
    """One row of the series for each (run, split, epoch) that is not ``ok``."""
    rows = _as_rows(results.series.filter(pc.not_equal(results.series["status"], "ok")))
    found = {(row["run"], row["epoch"], row["split"]): row for row in rows}
    return [found[key] for key in sorted(found)]


def number(rows: Sequence[Row], table: str, column: str, **key: Any) -> Number:
    """The value of ``column`` in the one row that ``key`` names; no value where there is none."""
    found = matching(rows, **key)
    return Number(found[0][column] if found else None, table, column, key)


def topology_number(
    results: Results, column: str, run: str, split: Split, tree: Tree, epoch: int
) -> Number:
    """A number of the series, of the study's first order."""
    key = {"run": run, "split": split, "tree": tree, "epoch": epoch, "order": orders(results)[0]}
    return number(topology_rows(results, run, split, tree), "series", column, **key)


def training_number(results: Results, column: str, run: str, split: Split, epoch: int) -> Number:
    """A number of the metrics."""
    rows = training_rows(results, run, split)
    return number(rows, "metrics", column, run=run, split=split, epoch=epoch)


def _rates(results: Results, run: str) -> list[tuple[int, float]]:
    found = {
        row["epoch"]: row["learning_rate"]
        for row in _as_rows(selected(results.metrics, run=run))
        if row["epoch"] > 0 and row["learning_rate"] is not None
    }
    return sorted(found.items())
