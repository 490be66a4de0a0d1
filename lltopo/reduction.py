"""The reducer: what the tasks found, gathered into one table each.

``series.parquet``, ``metrics.parquet``, ``correlations.parquet`` and, where the contour trees
were asked for, ``contours.parquet``. Some fields are first computed again by other people's
code (``verification.py``); nothing is written where that disagrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lltopo import tables
from lltopo.analysis import (
    Row,
    contour_rows,
    failed_rows,
    field_rows,
    in_study_order,
    reference_epochs,
    series_digest,
)
from lltopo.correlations import correlation_rows
from lltopo.errors import VerificationError
from lltopo.fanout import Call, cluster_total, fan_out
from lltopo.ingestion import losses_folder
from lltopo.matrices import distance_rows
from lltopo.recorder import split_metrics
from lltopo.storage import Place, exists
from lltopo.study import Study
from lltopo.tables import Field, footer, metrics_file, read_losses, read_table
from lltopo.verification import chosen_fields, disagreements


class Findings(NamedTuple):
    """What is known of a study's fields: the metadata of those whose diagrams are there, the
    reasons of those that failed."""

    fields: list[Field]
    metadata: Mapping[Field, Mapping[str, str]]
    failures: Mapping[Field, str]


def series_is_current(out: Place, study: Study, findings: Findings) -> bool:
    """Whether all tables are there and were made of just these diagrams and settings."""
    stamp = footer(out / "series.parquet")
    names = ["metrics", "correlations"]
    names += ["contours"] if study.analysis.contour else []
    names += ["distances"] if study.analysis.distance_matrix else []
    others = [footer(out / f"{name}.parquet") for name in names]
    return (
        stamp is not None
        and None not in others
        and len(findings.metadata) == len(findings.fields)
        and stamp.get("inputs") == series_digest(findings.metadata, study.analysis)
        and int(stamp.get("verified", 0)) >= min(study.analysis.verify, len(findings.fields))
    )


def write_series(
    out: Place, study: Study, findings: Findings, made: Mapping[str, Any]
) -> list[str]:
    """Measure the diagrams, verify some, and write the tables.

    Parameters
    ----------
    made
        For each split its :class:`~lltopo.graph_files.MadeGraph`, shared with the tasks.

    Returns
    -------
    list of str
        What failed, a line each; those fields are tried again by the next run.

    Raises
    ------
    VerificationError
        Where other people's code disagrees; nothing is then written.
    """
    analysis = study.analysis
    failures = dict(findings.failures)
    rows: list[Row] = []
    references = reference_epochs(findings.metadata)
    calls = [
        Call(field, (out, field, references.get((field.run, field.split)), analysis))
        for field in findings.metadata
    ]
    for outcome in fan_out(field_rows, iter([calls]), _in_flight()):
        if outcome.error is None:
            rows += outcome.value
        else:
            failures[outcome.key] = outcome.error
    verified = chosen_fields(sorted(findings.metadata), analysis.verify)
    wrong = list(_disagreements(out, study, verified, rows, made))
    if wrong:
        raise VerificationError("verification: " + "; ".join(wrong))
    for field, reason in failures.items():
        rows += failed_rows(field, reason, analysis)
    runs = list(dict.fromkeys([*study.runs, *(field.run for field in findings.fields)]))
    rows = in_study_order(rows, runs)
    metrics = in_study_order(_metrics(out, study, findings.fields), runs)
    contours = in_study_order(contour_rows(findings.metadata), runs)
    tables.write_table(out / "metrics.parquet", metrics, tables.METRICS)
    correlations = correlation_rows(rows, metrics)
    tables.write_table(out / "correlations.parquet", correlations, tables.CORRELATIONS)
    if analysis.contour:
        tables.write_table(out / "contours.parquet", contours, tables.CONTOURS)
    if analysis.distance_matrix:
        ordered = {field: findings.metadata[field] for field in _in_study_order(findings, runs)}
        distances = distance_rows(out, ordered, analysis)
        tables.write_table(out / "distances.parquet", distances, tables.DISTANCES)
    stamp = {"verified": str(len(verified))}
    if not failures:
        stamp["inputs"] = series_digest(findings.metadata, analysis)
    tables.write_table(out / "series.parquet", rows, tables.SERIES, stamp)
    return [
        f"{field.run}, {field.split}, epoch {field.epoch}: {reason}"
        for field, reason in sorted(failures.items())
    ]


def _disagreements(
    out: Place, study: Study, fields: list[Field], rows: list[Row], made: Mapping[str, Any]
) -> Iterator[str]:
    losses = losses_folder(study, out)
    calls = [
        Call(
            field,
            (
                losses,
                out,
                field,
                made[field.split],
                [row for row in rows if (row["run"], row["split"], row["epoch"]) == field],
            ),
        )
        for field in fields
    ]
    for outcome in fan_out(disagreements, iter([calls]), _in_flight()):
        if outcome.error is not None:
            yield f"{outcome.key}: {outcome.error}"
        yield from outcome.value or ()


def _metrics(out: Place, study: Study, fields: list[Field]) -> Iterator[Row]:
    """The rows of ``metrics.parquet``; from the loss tables where nobody wrote metrics."""
    losses = losses_folder(study, out)
    for run, epoch in dict.fromkeys((field.run, field.epoch) for field in fields):
        part = metrics_file(out, run, epoch)
        if exists(part):
            found = read_table(part).to_pylist()
        else:
            splits = [f.split for f in fields if (f.run, f.epoch) == (run, epoch)]
            found = [
                split_metrics(split, read_losses(losses, Field(run, split, epoch)))
                for split in splits
            ]
        for row in found:
            yield {"run": run, "epoch": epoch, **row}


def _in_study_order(findings: Findings, runs: Sequence[str]) -> list[Field]:
    return sorted(findings.metadata, key=lambda field: (runs.index(field.run), field))


def _in_flight() -> int:
    return 2 * int(cluster_total("CPU"))
