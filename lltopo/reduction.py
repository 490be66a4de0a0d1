"""The reducer: what the tasks found, gathered into one table each.

``series.parquet``, ``metrics.parquet``, ``correlations.parquet`` and, where the contour trees
were asked for, ``contours.parquet``. Some fields are first computed again by other people's
code (``verification.py``); nothing is written where that disagrees.
"""

from __future__ import annotations

import json
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
    series_digests,
)
from lltopo.correlations import correlation_rows
from lltopo.errors import VerificationError
from lltopo.fanout import Call, fan_out
from lltopo.ingestion import losses_folder
from lltopo.matrices import distance_rows
from lltopo.recorder import split_metrics
from lltopo.storage import Place
from lltopo.study import Analysis, Study
from lltopo.tables import (
    Field,
    footer,
    losses_file,
    metrics_file,
    read_losses,
    read_table,
)
from lltopo.verification import chosen_fields, disagreements


class Findings(NamedTuple):
    """What is known of a study's fields: the metadata of those whose diagrams are there, the
    reasons of those that failed."""

    fields: list[Field]
    metadata: Mapping[Field, Mapping[str, str]]
    failures: Mapping[Field, str]


def series_is_current(out: Place, study: Study, findings: Findings) -> bool:
    """Whether all tables are there and were made of just these losses and settings.

    Returns
    -------
    bool
        Also false where fewer fields were verified than the study now asks for, or something
        failed.
    """
    analysis = study.analysis
    stamp = _stamp(out)
    files = ["correlations"]
    files += ["contours"] if analysis.contour else []
    files += ["distances"] if analysis.distance_matrix else []
    return (
        not findings.failures
        and len(findings.metadata) == len(findings.fields)
        and stamp.inputs == series_digests(findings.metadata, analysis)
        and stamp.verified >= min(analysis.verify, len(findings.fields))
        and all(footer(out / f"{name}.parquet") is not None for name in files)
        and _read_rows(out / "metrics.parquet") == _metrics(out, study, findings.fields)
    )


def write_series(
    out: Place, study: Study, findings: Findings, made: Mapping[str, Any]
) -> list[str]:
    """Measure the diagrams, verify some, and write the tables.

    What the old series says of a run whose inputs are still the same is kept.

    Parameters
    ----------
    made
        For each split its :class:`~lltopo.graph_files.MadeGraph`, shared with the tasks.

    Returns
    -------
    list of str
        What failed, a line each; it is tried again by the next run.

    Raises
    ------
    VerificationError
        Where other people's code disagrees; nothing is then written.
    """
    analysis = study.analysis
    failures = dict(findings.failures)
    digests = series_digests(findings.metadata, analysis)
    runs = list(dict.fromkeys([*study.runs, *(field.run for field in findings.fields)]))
    rows = _measured(out, analysis, findings, digests, failures)
    n_verified, problems = _verify(out, study, rows, findings, made)
    failed_runs = {field.run for field in failures}
    for field, reason in failures.items():
        rows += failed_rows(field, reason, analysis)
        problems.append(f"{field.run}, {field.split}, epoch {field.epoch}: {reason}")
    rows = in_study_order(rows, runs)
    metrics = _metrics(out, study, findings.fields)
    tables.write_table(out / "metrics.parquet", metrics, tables.METRICS)
    correlations = correlation_rows(rows, metrics)
    tables.write_table(out / "correlations.parquet", correlations, tables.CORRELATIONS)
    if analysis.contour:
        contours = in_study_order(contour_rows(findings.metadata), runs)
        tables.write_table(out / "contours.parquet", contours, tables.CONTOURS)
    if analysis.distance_matrix:
        ordered = sorted(findings.metadata, key=lambda field: (runs.index(field.run), field))
        metadata = {field: findings.metadata[field] for field in ordered}
        distances, lost = distance_rows(out, metadata, analysis)
        tables.write_table(out / "distances.parquet", distances, tables.DISTANCES)
        problems += lost
        digests = {} if lost else digests
    kept = {run: digest for run, digest in digests.items() if run not in failed_runs}
    stamp = {"inputs": json.dumps(kept, sort_keys=True), "verified": str(n_verified)}
    tables.write_table(out / "series.parquet", rows, tables.SERIES, stamp)
    return problems


class _Stamp(NamedTuple):
    """What a series was made of, by run, and how many of its fields were verified."""

    inputs: dict[str, str]
    verified: int


def _stamp(out: Place) -> _Stamp:
    found = footer(out / "series.parquet") or {}
    return _Stamp(json.loads(found.get("inputs", "{}")), int(found.get("verified", "0")))


def _read_rows(source: Place) -> list[Row] | None:
    return None if footer(source) is None else read_table(source).to_pylist()


def _measured(
    out: Place,
    analysis: Analysis,
    findings: Findings,
    digests: Mapping[str, str],
    failures: dict[Field, str],
) -> list[Row]:
    """The rows of all fields whose diagrams are there; adds to ``failures``."""
    before = _stamp(out).inputs
    known = {run for run, digest in digests.items() if before.get(run) == digest}
    rows = [row for row in _read_rows(out / "series.parquet") or [] if row["run"] in known]
    references = reference_epochs(findings.metadata)
    calls = [
        Call(field, (out, field, references.get(field.run), analysis))
        for field in findings.metadata
        if field.run not in known
    ]
    for outcome in fan_out(field_rows, iter([calls])):
        if outcome.error is None:
            rows += outcome.value
        else:
            failures[outcome.key] = outcome.error
    return rows


def _verify(
    out: Place, study: Study, rows: list[Row], findings: Findings, made: Mapping[str, Any]
) -> tuple[int, list[str]]:
    """How many fields other people's code agrees with, and which it could not be asked for."""
    losses = losses_folder(study, out)
    measured: dict[Field, list[Row]] = {}
    for row in rows:
        field = Field(row["run"], row["split"], row["epoch"])
        measured.setdefault(field, []).append(row)
    calls = [
        Call(field, (losses, out, field, made[field.split], measured[field]))
        for field in chosen_fields(sorted(measured), study.analysis.verify)
    ]
    wrong: list[str] = []
    problems = []
    for outcome in fan_out(disagreements, iter([calls])):
        if outcome.error is None:
            wrong += outcome.value
        else:
            problems.append(f"verification of {outcome.key}: {outcome.error}")
    if wrong:
        raise VerificationError("verification: " + "; ".join(wrong))
    return len(calls) - len(problems), problems


def _metrics(out: Place, study: Study, fields: Sequence[Field]) -> list[Row]:
    """The rows of ``metrics.parquet``, in the study's order."""
    runs = list(dict.fromkeys([*study.runs, *(field.run for field in fields)]))
    return in_study_order(_recorded_metrics(out, study, fields), runs)


def _recorded_metrics(out: Place, study: Study, fields: Sequence[Field]) -> Iterator[Row]:
    """Rows of the metrics written beside the losses, else made of the loss tables."""
    losses = losses_folder(study, out)
    beside = losses.parent
    for run, epoch in dict.fromkeys((field.run, field.epoch) for field in fields):
        part = metrics_file(beside, run, epoch)
        found = _read_rows(part)
        if found is None:
            splits = [f.split for f in fields if (f.run, f.epoch) == (run, epoch)]
            readable = [s for s in splits if footer(losses_file(losses, Field(run, s, epoch)))]
            found = [
                {"learning_rate": None, "seconds": None}
                | split_metrics(split, read_losses(losses, Field(run, split, epoch)))
                for split in readable
            ]
        for row in found:
            yield {"run": run, "epoch": epoch} | row
