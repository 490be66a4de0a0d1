"""The stages of a study: graphs, training with the diagrams beside it, series, report.

Every stage skips what is done: a file that is whole and was made of the very same inputs. A
finished study is found finished without Ray being started.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from lltopo.analysis import current_metadata, interned, write_field_diagrams
from lltopo.arrivals import Futures, arriving_fields
from lltopo.data import load_data
from lltopo.driver_folders import temporary_folder
from lltopo.errors import InputError
from lltopo.fanout import Call, fan_out, shared
from lltopo.faults import told_error
from lltopo.graph_files import MadeGraph
from lltopo.graphs import check_k, check_same_data, known_graphs, study_splits, write_new_graph
from lltopo.ingestion import given_fields, losses_folder, record_given_losses
from lltopo.opening import open_results
from lltopo.reduction import Findings, series_is_current, write_series
from lltopo.sections import SPLITS
from lltopo.session import Session, study_session
from lltopo.side_by_side import answers
from lltopo.storage import Place, place, remove_partial_files
from lltopo.study import Study
from lltopo.study_data import LossesData
from lltopo.tables import Field, complete_epochs, recorded_digest

Recorded = Mapping[str, set[int]]
"""The epochs of each run that are recorded, whole."""

_TICK_SECONDS = 0.5


def run_stages(session: Session, stages: Sequence[str]) -> list[str]:
    """Carry out some of graph, train, analyze, surface, jump and report, resuming what is done.

    Returns
    -------
    list of str
        What went wrong, a line for each run or epoch; the rest has been done all the same.

    Raises
    ------
    InputError
        For a study that cannot be carried out, or that differs from the one that made what is
        in the folder.
    """
    study, out, _ = session
    if set(stages) == {"train"} and isinstance(study.data, LossesData):
        raise InputError("data.source: losses are given: there is nothing to train. Use analyze.")
    open_results(study, out)
    if set(stages) != {"report"}:
        remove_partial_files(out)
    complete = recorded_runs(study, out) if {"train", "analyze"} & set(stages) else {}
    to_train = unfinished_runs(study, complete) if "train" in stages else []
    splits = study_splits(study) if {"graph", "analyze"} & set(stages) else []
    graphs = _prepared(session, to_train, splits)
    findings = None
    if "analyze" in stages:
        findings = known_findings(session, graphs, complete, to_train)
    problems: list[str] = []
    # started by the first stage that needs it, and kept for the next
    with ExitStack() as ray:
        if to_train or (findings and not series_is_current(session.out, study, findings)):
            ray.enter_context(study_session(study))
            problems += _with_ray(session, graphs, to_train, findings)
        if "surface" in stages and study.surface is not None:
            from lltopo.surfaces import make_surfaces

            problems += make_surfaces(session, ray)
        if "jump" in stages and study.jump is not None:
            from lltopo.jumps import make_jumps

            problems += make_jumps(session, ray)
    if "report" in stages:
        from lltopo.report import write_report

        try:
            write_report(study, out)
        except InputError as error:
            # what went wrong before may be why
            if not problems:
                raise
            problems.append(str(error))
    return problems


def _prepared(
    session: Session, to_train: Sequence[str], splits: Sequence[str]
) -> dict[str, MadeGraph]:
    """The graphs of some splits, made where they are not yet there.

    What would go wrong in every worker is found here first: data that are wrong or not those of
    the graphs, a model that does not fit.
    """
    study, out, notify = session
    graphs = known_graphs(study, out, splits)
    missing = [split for split in splits if split not in graphs]
    data = None
    if not isinstance(study.data, LossesData) and (missing or to_train):
        data = load_data(study.data)
        check_same_data(graphs, data)
        check_k(study, {split: len(data.split(split).y) for split in missing})
    if data is not None and to_train:
        from lltopo.loop import check_run

        for name in to_train:
            check_run(study.runs[name], data)
    for split in missing:
        graphs[split] = write_new_graph(study, out, split, data, notify)
    return graphs


def recorded_runs(study: Study, out: Place) -> Recorded:
    """The epochs of each run whose metrics and loss tables are there."""
    return {name: complete_epochs(out, name, SPLITS) for name in study.runs}


def unfinished_runs(study: Study, complete: Recorded) -> list[str]:
    """The runs that lack an epoch's metrics or loss tables."""
    return [run for run in study.runs if not complete[run] >= _epochs(study, run)]


def known_findings(
    session: Session,
    graphs: Mapping[str, MadeGraph],
    complete: Recorded,
    to_train: Sequence[str],
) -> Findings:
    """The fields to analyze and, of those whose diagrams are there, the metadata."""
    study, out, notify = session
    if isinstance(study.data, LossesData):
        record_given_losses(study.data, out, lambda done, of: notify("losses", done, of, ""))
        findings = Findings(given_fields(study.data), {}, {})
    else:
        findings = _trained_findings(session, complete, to_train)
    losses = losses_folder(study, out)

    def known(field: Field) -> dict[str, str] | None:
        return current_metadata(losses, out, field, graphs[field.split].digest)

    where = losses if out.is_local else out
    found = zip(findings.fields, answers(known, findings.fields, where), strict=True)
    metadata = {field: interned(of_field) for field, of_field in found if of_field is not None}
    return findings._replace(metadata=metadata)


def _with_ray(
    session: Session,
    graphs: Mapping[str, MadeGraph],
    to_train: Sequence[str],
    findings: Findings | None,
) -> list[str]:
    """Train and analyze what is to be trained and analyzed; what went wrong."""
    study, out, _ = session
    with ExitStack() as stack:
        futures: Futures = {}
        if to_train:
            from lltopo.training import training_runs

            # they hold nothing: our tables and checkpoints are the record
            notes = place(stack.enter_context(temporary_folder()))
            futures = stack.enter_context(training_runs(study, out, to_train, notes))
        if findings is None:
            for _ in arriving_fields(session, [], futures, partial(_waited_for, study)):
                time.sleep(_TICK_SECONDS)
            return _training_problems(session, futures, recorded_runs(study, out))
        made = {split: shared(graph) for split, graph in graphs.items()}
        findings = _with_diagrams(session, made, findings, futures)
        # trained again elsewhere, an epoch may have other bits than when its diagrams were made
        fresh = _without_stale(session, findings, to_train)
        if fresh.metadata.keys() != findings.metadata.keys():
            findings = _with_diagrams(session, made, fresh, {})
        seen: dict[str, set[int]] = {}
        for field in findings.fields:
            seen.setdefault(field.run, set()).add(field.epoch)
        problems = _training_problems(session, futures, seen)
        return problems + write_series(out, study, findings, made)


def _with_diagrams(
    session: Session, made: Mapping[str, Any], findings: Findings, futures: Futures
) -> Findings:
    """The findings with the diagrams of all fields that have arrived, while training goes on."""
    study, out, notify = session
    losses = losses_folder(study, out)
    metadata, failures = dict(findings.metadata), dict(findings.failures)
    n_fields = len(findings.fields)
    pending = [f for f in findings.fields if f not in metadata and f not in failures]

    def calls(ready: Sequence[Field]) -> list[Call]:
        return [
            Call(field, (losses, out, field, made[field.split], study.analysis)) for field in ready
        ]

    # a batch for each run, so that the runs take turns
    arriving = arriving_fields(session, pending, futures, partial(_waited_for, study))
    batches = (calls(ready) for ready in arriving)
    notify("diagrams", len(metadata), n_fields, "")
    for outcome in fan_out(write_field_diagrams, batches):
        if outcome.error is None:
            metadata[outcome.key] = interned(outcome.value)
        else:
            failures[outcome.key] = outcome.error
        notify("diagrams", len(metadata) + len(failures), n_fields, "")
    return Findings(sorted(metadata.keys() | failures.keys()), metadata, failures)


def _without_stale(session: Session, findings: Findings, runs: Iterable[str]) -> Findings:
    """The findings less the diagrams of ``runs`` whose losses were recorded otherwise since."""
    losses = losses_folder(session.study, session.out)
    trained = [field for field in findings.metadata if field.run in runs]
    digests = answers(lambda field: recorded_digest(losses, field), trained, losses)
    stale = {
        field
        for field, digest in zip(trained, digests, strict=True)
        if digest != findings.metadata[field]["losses"]
    }
    kept = {field: found for field, found in findings.metadata.items() if field not in stale}
    return findings._replace(metadata=kept)


def _training_problems(session: Session, futures: Futures, seen: Recorded) -> list[str]:
    """A line for each run that failed or whose tables are not here; a wrong input is raised."""
    problems = []
    for run, future in futures.items():
        error = future.exception()
        if isinstance(error, InputError):
            raise error
        if error is not None:
            problems.append(f"run {run}: training failed: {told_error(error)}")
        elif unseen := _epochs(session.study, run) - seen.get(run, set()):
            problems.append(
                f"run {run}: was trained, but {len(unseen)} of its epochs, {min(unseen)} the first "
                f"of them, are not whole in {session.out}: expected a folder that all nodes share. "
                "Give such a one, or a store's URI, as --out, and delete what is damaged there."
            )
    return problems


def _waited_for(study: Study, run: str) -> str | None:
    """What a run in training still waits for."""
    from lltopo.training import waited_for

    return waited_for(study, study.runs[run].training.workers)


def _epochs(study: Study, run: str) -> set[int]:
    return set(range(study.runs[run].training.epochs + 1))


def _trained_findings(session: Session, recorded: Recorded, to_train: Sequence[str]) -> Findings:
    """All fields of the runs that are being trained, and those of the others up to their last.

    An epoch whose table is lost counts as failed; a run without any is told of.
    """
    study, out, notify = session
    fields: list[Field] = []
    lost: dict[Field, str] = {}
    for name, run in study.runs.items():
        complete = recorded[name]
        last = run.training.epochs if name in to_train else max(complete, default=-1)
        if last < run.training.epochs:
            notify(f"run {name}", last + 1, run.training.epochs + 1, "epochs trained so far")
        for epoch in range(last + 1):
            found = [Field(name, split, epoch) for split in SPLITS]
            fields += found
            if name not in to_train and epoch not in complete:
                lost |= dict.fromkeys(found, "its loss table is missing or damaged: train again")
    if not fields:
        raise InputError(
            f"{out}: holds no losses of this study yet. Train it first: lltopo train or lltopo run."
        )
    return Findings(fields, {}, lost)
