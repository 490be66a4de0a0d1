"""The reducer: what the tasks found, gathered into one table each.

``series.parquet``, ``metrics.parquet``, ``correlations.parquet`` and, where the contour trees
were asked for, ``contours.parquet``. Some fields are first computed again by other people's
code (``verification.py``); nothing is written where that disagrees.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from lltopo import schemas, tables
from lltopo.analysis import (
    Row,
    contour_rows,
    failed_rows,
    field_rows,
    in_study_order,
    reference_diagrams,
    reference_epochs,
    series_digests,
)
from lltopo.correlations import correlation_rows
from lltopo.errors import InputError, VerificationError
from lltopo.fanout import Call, fan_out, shared
from lltopo.ingestion import losses_folder
from lltopo.matrices import distance_rows
from lltopo.recorder import split_metrics
from lltopo.side_by_side import answers
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
        and _as_text(_read(out / "metrics.parquet", schemas.METRICS))
        == _as_text(_metrics(out, study, findings))
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
    measured = _measured(out, analysis, findings, digests, failures)
    fields = sorted(findings.metadata.keys() - failures.keys())
    n_verified, problems = _verify(out, study, fields, measured, made)
    problems += [f"{f.run}, {f.split}, epoch {f.epoch}: {why}" for f, why in failures.items()]
    failed = (row for f, why in failures.items() for row in failed_rows(f, why, analysis))
    series = pa.concat_tables([measured, tables.as_columns(failed, schemas.SERIES)])
    series = in_study_order(series, runs)
    metrics = _metrics(out, study, findings)
    tables.write_columns(out / "metrics.parquet", metrics, {})
    correlations = _correlations(series, metrics, runs)
    tables.write_table(out / "correlations.parquet", correlations, schemas.CORRELATIONS)
    if analysis.contour:
        contours = tables.as_columns(contour_rows(findings.metadata), schemas.CONTOURS)
        tables.write_columns(out / "contours.parquet", in_study_order(contours, runs), {})
    if analysis.distance_matrix:
        ordered = sorted(findings.metadata, key=lambda field: (runs.index(field.run), field))
        metadata = {field: findings.metadata[field] for field in ordered}
        distances, lost = distance_rows(out, metadata, analysis)
        tables.write_table(out / "distances.parquet", distances, schemas.DISTANCES)
        problems += lost
        digests = {} if lost else digests
    failed_runs = {field.run for field in failures}
    kept = {run: digest for run, digest in digests.items() if run not in failed_runs}
    stamp = {"inputs": json.dumps(kept, sort_keys=True), "verified": str(n_verified)}
    tables.write_columns(out / "series.parquet", series, stamp)
    return problems


class _Stamp(NamedTuple):
    """What a series was made of, by run, and how many of its fields were verified."""

    inputs: dict[str, str]
    verified: int


def _stamp(out: Place) -> _Stamp:
    found = footer(out / "series.parquet") or {}
    return _Stamp(json.loads(found.get("inputs", "{}")), int(found.get("verified", "0")))


def _read(source: Place, schema: pa.Schema) -> pa.Table | None:
    return None if footer(source) is None else read_table(source, schema)


def _measured(
    out: Place,
    analysis: Analysis,
    findings: Findings,
    digests: Mapping[str, str],
    failures: dict[Field, str],
) -> pa.Table:
    """The series of all fields whose diagrams are there; adds to ``failures``."""
    before = _stamp(out).inputs
    known = [run for run, digest in digests.items() if before.get(run) == digest]
    references = reference_epochs(findings.metadata)
    fields = [field for field in findings.metadata if field.run not in known]

    def calls(run: str) -> list[Call]:
        found = []
        of_run = [field for field in fields if field.run == run]
        for split in dict.fromkeys(field.split for field in of_run):
            of_split = [field for field in of_run if field.split == split]
            reference = None
            if run in references:
                last = Field(run, split, references[run])
                try:
                    # read once, for all epochs
                    reference = shared(reference_diagrams(out, last, analysis))
                except InputError as error:
                    failures.update(dict.fromkeys(of_split, f"{type(error).__name__}: {error}"))
                    continue
            found += [Call(field, (out, field, reference, analysis)) for field in of_split]
        return found

    def rows() -> Iterator[Row]:
        # a batch for each run, so that the runs take turns
        batches = (calls(run) for run in dict.fromkeys(field.run for field in fields))
        for outcome in fan_out(field_rows, batches):
            if outcome.error is None:
                yield from outcome.value
            else:
                failures[outcome.key] = outcome.error

    new = tables.as_columns(rows(), schemas.SERIES)
    old = _read(out / "series.parquet", schemas.SERIES) if known else None
    return new if old is None else pa.concat_tables([_of_runs(old, known), new])


def _as_text(table: pa.Table | None) -> str:
    """A table's rows, to be compared: not a number is then the same as itself."""
    return "" if table is None else json.dumps(table.to_pylist())


def _of_runs(table: pa.Table, runs: Sequence[str]) -> pa.Table:
    return table.filter(pc.is_in(table["run"], pa.array(runs, pa.string())))


def _correlations(series: pa.Table, metrics: pa.Table, runs: Sequence[str]) -> Iterator[Row]:
    for run in runs:
        of_run = [_of_runs(table, [run]).to_pylist() for table in (series, metrics)]
        yield from correlation_rows(*of_run)


def _verify(
    out: Place, study: Study, fields: Sequence[Field], series: pa.Table, made: Mapping[str, Any]
) -> tuple[int, list[str]]:
    """How many fields other people's code agrees with, and which it could not be asked for."""
    losses = losses_folder(study, out)
    calls = [
        Call(field, (losses, out, field, made[field.split], _rows_of(series, field)))
        for field in chosen_fields(fields, study.analysis.verify)
    ]
    wrong: list[str] = []
    problems = []
    for outcome in fan_out(disagreements, iter([calls] if calls else [])):
        if outcome.error is None:
            wrong += outcome.value
        else:
            problems.append(f"verification of {outcome.key}: {outcome.error}")
    if wrong:
        raise VerificationError("verification: " + "; ".join(wrong))
    return len(calls) - len(problems), problems


def _rows_of(series: pa.Table, field: Field) -> list[Row]:
    [run, split, epoch] = (pc.equal(series[name], value) for name, value in field._asdict().items())
    rows: list[Row] = series.filter(pc.and_(run, pc.and_(split, epoch))).to_pylist()
    return rows


def _metrics(out: Place, study: Study, findings: Findings) -> pa.Table:
    """``metrics.parquet``, in the study's order."""
    runs = list(dict.fromkeys([*study.runs, *(field.run for field in findings.fields)]))
    rows = _recorded_metrics(out, study, findings)
    return in_study_order(tables.as_columns(rows, schemas.METRICS), runs)


def _recorded_metrics(out: Place, study: Study, findings: Findings) -> Iterator[Row]:
    """Rows of the metrics written beside the losses, else of those of the losses alone."""
    losses = losses_folder(study, out)

    def epoch_of(field: Field) -> tuple[str, int]:
        return field.run, field.epoch

    def rows(of_epoch: Sequence[Field]) -> list[Row]:
        run, epoch = epoch_of(of_epoch[0])
        part = _read(metrics_file(losses.parent, run, epoch), schemas.METRICS_PART)
        found = [] if part is None else part.to_pylist()
        if part is None:
            unknown = {"learning_rate": None, "seconds": None}
            measured = (_measured_metrics(losses, field, findings) for field in of_epoch)
            found = [unknown | metrics for metrics in measured if metrics]
        return [{"run": run, "epoch": epoch} | row for row in found]

    fields = sorted(findings.fields, key=epoch_of)
    epochs = (list(of_epoch) for _, of_epoch in itertools.groupby(fields, epoch_of))
    yield from itertools.chain.from_iterable(answers(rows, epochs, losses))


def _measured_metrics(losses: Place, field: Field, findings: Findings) -> Row | None:
    """What was noted beside a field's diagrams, else read from its loss table where it is there."""
    noted = findings.metadata.get(field, {}).get("metrics")
    if noted is not None:
        metrics: Row = json.loads(noted)
        return metrics
    if footer(losses_file(losses, field)) is None:
        return None
    return split_metrics(field.split, read_losses(losses, field))
