"""The stages of a study: graphs, training with the diagrams beside it, series, report.

Every stage skips what is done: a file that is whole and was made of the very same inputs. A
finished study is found finished without Ray being started.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, NamedTuple

from lltopo.analysis import current_metadata, write_field_diagrams
from lltopo.data import load_data
from lltopo.errors import InputError
from lltopo.fanout import Call, cluster_total, fan_out, ray_session, shared
from lltopo.graph_files import MadeGraph
from lltopo.graphs import check_k, known_graphs, study_splits, write_new_graph
from lltopo.ingestion import given_fields, losses_folder, record_given_losses
from lltopo.progress import Notify
from lltopo.reduction import Findings, series_is_current, write_series
from lltopo.storage import (
    Place,
    exists,
    files_below,
    read_bytes,
    remove,
    remove_partial_files,
    write_bytes,
)
from lltopo.study import SPLITS, LossesData, Study, changed_keys
from lltopo.study_files import parsed_study, study_yaml
from lltopo.tables import Field, complete_epochs, is_complete, metrics_file, read_table

Futures = Mapping[str, "Future[None]"]

_TRAIN_STATE = ".train"
_TICK_SECONDS = 0.5


class Session(NamedTuple):
    """A study being worked on: where its results go, and whom to tell of the progress."""

    study: Study
    out: Place
    notify: Notify


def run_stages(session: Session, stages: Sequence[str]) -> list[str]:
    """Carry out some of graph, train, analyze and report, resuming whatever is done.

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
    open_results(study, out)
    to_train = unfinished_runs(study, out) if "train" in stages else []
    graphs = _prepared(session, to_train, needs_graphs=bool({"graph", "analyze"} & set(stages)))
    problems: list[str] = []
    findings = None
    if "analyze" in stages:
        findings = known_findings(session, graphs, to_train)
    if to_train or (findings and not series_is_current(session.out, study, findings)):
        try:
            problems = _with_ray(session, graphs, to_train, findings)
        finally:
            remove(out / _TRAIN_STATE)
    if "report" in stages:
        from lltopo.report import write_report

        write_report(study, out)
    return problems


def open_results(study: Study, out: Place) -> None:
    """Claim a folder for a study, or find it claimed by the same one.

    A claim holds as soon as there are losses or diagrams: before, nothing is there that another
    study would spoil (a graph says how it was made), and a wrong study may be mended.

    Raises
    ------
    InputError
        Where another study made the results there; names the keys that differ.
    """
    target = out / "study.yaml"
    content = study_yaml(study).encode()
    before = read_bytes(target) if exists(target) else None
    if before is not None and any(exists(out / made) for made in ("losses", "diagrams")):
        changed = changed_keys(parsed_study(before, str(target)), study)
        if changed:
            raise InputError(
                f"{target}: the results there were made by another study: {'; '.join(changed)}. "
                "Choose another --out, or set these back."
            )
    if before is not None:
        remove_partial_files(out)
    if before != content:
        write_bytes(target, content)


def _prepared(
    session: Session, to_train: Sequence[str], *, needs_graphs: bool
) -> dict[str, MadeGraph]:
    """The study's graphs where they are needed, made where they are not yet there.

    What would go wrong in every worker is found here first: wrong data, a model that does not fit.
    """
    study, out, notify = session
    splits = study_splits(study) if needs_graphs else []
    graphs = known_graphs(study, out, splits)
    missing = [split for split in splits if split not in graphs]
    fresh = [name for name in to_train if not complete_epochs(out, name, SPLITS)]
    data = None
    if not isinstance(study.data, LossesData) and (missing or fresh):
        data = load_data(study.data)
        check_k(study, {split: len(data.split(split).y) for split in missing})
        for name in fresh:
            from lltopo.loop import check_run

            check_run(study.runs[name], data)
    for split in missing:
        graphs[split] = write_new_graph(study, out, split, data, notify)
    return graphs


def unfinished_runs(study: Study, out: Place) -> list[str]:
    """The runs that lack an epoch's metrics or loss tables."""
    return [
        name
        for name, run in study.runs.items()
        if not complete_epochs(out, name, SPLITS) >= set(range(run.training.epochs + 1))
    ]


def known_findings(
    session: Session, graphs: Mapping[str, MadeGraph], to_train: Sequence[str]
) -> Findings:
    """The fields to analyze and, of those whose diagrams are there, the metadata."""
    study, out, notify = session
    if isinstance(study.data, LossesData):
        record_given_losses(study.data, out, lambda done, of: notify("losses", done, of, ""))
        fields = given_fields(study.data)
    else:
        fields = _trained_fields(study, out, to_train)
    losses = losses_folder(study, out)
    metadata = {}
    for field in fields:
        found = current_metadata(losses, out, field, graphs[field.split].digest)
        if found is not None:
            metadata[field] = found
    return Findings(fields, metadata, {})


def _with_ray(
    session: Session,
    graphs: Mapping[str, MadeGraph],
    to_train: Sequence[str],
    findings: Findings | None,
) -> list[str]:
    """Train and analyze what is to be trained and analyzed; what went wrong."""
    study, out, _ = session
    with ExitStack() as stack:
        need = study.resources
        stack.enter_context(ray_session(need.local_cpus, need.object_store_mb))
        futures: Futures = {}
        if to_train:
            from lltopo.training import training_runs

            runs = training_runs(study, out, to_train, out / _TRAIN_STATE)
            futures = stack.enter_context(runs)
        if findings is None:
            for _ in arriving_fields(session, [], futures):
                time.sleep(_TICK_SECONDS)
            return _training_problems(futures)
        made = {split: shared(graph) for split, graph in graphs.items()}
        findings = _with_diagrams(session, made, findings, futures)
        problems = _training_problems(futures)
        return problems + write_series(session.out, study, findings, made)


def _with_diagrams(
    session: Session, made: Mapping[str, Any], findings: Findings, futures: Futures
) -> Findings:
    """The findings with the diagrams of all fields that have arrived, while training goes on."""
    study, out, notify = session
    losses = losses_folder(study, out)
    metadata, failures = dict(findings.metadata), {}
    contour = study.analysis.contour
    pending = [field for field in findings.fields if field not in metadata]
    calls = (
        [Call(field, (losses, out, field, made[field.split], contour)) for field in ready]
        for ready in arriving_fields(session, pending, futures)
    )
    n_fields = len(findings.fields)
    notify("diagrams", len(metadata), n_fields, "")
    for outcome in fan_out(write_field_diagrams, calls, 2 * int(cluster_total("CPU"))):
        if outcome.error is None:
            metadata[outcome.key] = outcome.value
        else:
            failures[outcome.key] = outcome.error
        notify("diagrams", len(metadata) + len(failures), n_fields, "")
    fields = sorted(metadata.keys() | failures.keys())
    return Findings(fields, metadata, failures)


def arriving_fields(
    session: Session, pending: Sequence[Field], futures: Futures
) -> Iterator[list[Field]]:
    """The pending fields as their tables become complete; tells of the training meanwhile.

    Ends when all have arrived, or when every training has ended.
    """
    out = session.out
    waiting = list(pending)
    told: dict[str, int] = {}
    next_look = 0.0
    while True:
        if time.monotonic() < next_look:
            yield []
            continue
        next_look = time.monotonic() + _TICK_SECONDS
        # asked before looking: what the last epoch wrote is then there
        ended = all(future.done() for future in futures.values())
        ready = waiting
        if futures:
            recorded = _recorded_epochs(out)
            _tell_of_training(session, futures, recorded, told)
            ready = [
                field
                for field in waiting
                if field.epoch in recorded.get(field.run, ())
                and is_complete(out, field.run, field.epoch, SPLITS)
            ]
        yield ready
        arrived = set(ready)
        waiting = [field for field in waiting if field not in arrived]
        if ended:
            return


def _recorded_epochs(out: Place) -> dict[str, set[int]]:
    recorded: dict[str, set[int]] = {}
    for name in files_below(out / "metrics"):
        run, epoch, *_ = (part.partition("=")[2] for part in name.split("/"))
        recorded.setdefault(run, set()).add(int(epoch))
    return recorded


def _tell_of_training(
    session: Session, futures: Futures, recorded: Mapping[str, set[int]], told: dict[str, int]
) -> None:
    for run in futures:
        epochs = recorded.get(run, set())
        if not epochs or told.get(run) == len(epochs):
            continue
        told[run] = len(epochs)
        latest = read_table(metrics_file(session.out, run, max(epochs))).to_pylist()
        note = ", ".join(
            f"{row['split']} loss {row['loss']:.3f} accuracy {row['accuracy']:.3f}"
            for row in latest
            if row["accuracy"] is not None
        )
        n_epochs = session.study.runs[run].training.epochs + 1
        session.notify(f"train {run}", len(epochs), n_epochs, note)


def _training_problems(futures: Futures) -> list[str]:
    """A line for each run that failed; a wrong input is raised."""
    problems = []
    for run, future in futures.items():
        error = future.exception()
        if isinstance(error, InputError):
            raise error
        if error is not None:
            reason = (str(error).splitlines() or [""])[0]
            problems.append(f"run {run}: training failed: {type(error).__name__}: {reason}")
    return problems


def _trained_fields(study: Study, out: Place, to_train: Sequence[str]) -> list[Field]:
    """All fields of the runs that are being trained, the complete ones of the others."""
    fields = [
        Field(name, split, epoch)
        for name, run in study.runs.items()
        for epoch in (
            range(run.training.epochs + 1)
            if name in to_train
            else sorted(complete_epochs(out, name, SPLITS))
        )
        for split in SPLITS
    ]
    if not fields:
        raise InputError(
            f"{out}: holds no losses of this study yet. Train it first: lltopo train or lltopo run."
        )
    return fields
