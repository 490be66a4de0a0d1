"""The jump stage: trajectories under Ray Train, then one embedding a run and its topology.

The points of an embedding are the weights after each epoch of retraining, 1 to the last. (The
published code takes the jump itself and leaves the last epoch out: as many points.) Of the jumps
themselves the losses alone are in the table; the optimum is placed in the finished plane and has no
part in the topology, nor has a point whose loss is not finite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import wait
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from lltopo import schemas, tables
from lltopo.diagrams import total_persistence
from lltopo.driver_folders import temporary_folder
from lltopo.errors import InputError
from lltopo.fanout import Call, fan_out
from lltopo.faults import told_error
from lltopo.jump_files import (
    Row,
    Trajectory,
    n_recorded,
    points_digest,
    points_file,
    recorded_points,
    run_trajectories,
    weight_blocks,
    weights_file,
)
from lltopo.jump_topology import (
    FEWEST_POINTS,
    Classes,
    check_phate,
    cosine_distances,
    extended_points,
    persistent_entropy,
    phate_embedding,
    potential_graph,
    principal_scores,
    sublevel_components,
    sublevel_loops,
)
from lltopo.sections import SPLITS
from lltopo.session import Session, study_session
from lltopo.side_by_side import answers
from lltopo.storage import Place, place
from lltopo.study import Study, jump_epochs

_TICK_SECONDS = 1.0
_STORE_TICK_SECONDS = 5.0  # a look at a store is paid for
_FIRST_EPOCH = 1  # of a trajectory's embedded points


class RunTopology(NamedTuple):
    """What is computed of one run's trajectories: rows of the three tables of jumps."""

    points: list[Row]
    diagrams: list[Row]
    summary: list[Row]


def make_jumps(session: Session, ray: ExitStack) -> list[str]:
    """Sample the trajectories that are not there, and make the tables of all of them.

    Parameters
    ----------
    session
        The study, where its results go, and whom to tell of the progress.
    ray
        Gets the study's Ray session where there is something to compute.

    Returns
    -------
    list of str
        A line for each run that could not be sampled or analysed.

    Raises
    ------
    InputError
        For a study that asks for too few points, or where PHATE is not installed.
    """
    study, out, _ = session
    check_jump(study)
    digests, problems = _digests(study, out)
    whole = _whole(out, digests)
    for run in dict.fromkeys(trajectory.run for trajectory in digests):
        pending = [t for t in digests if t.run == run and t not in whole]
        if pending:
            check_phate()
            ray.enter_context(study_session(study))
            failed = _sampled(session, pending)
            whole |= _whole(out, {t: digests[t] for t in pending})
            lacking = [t for t in pending if t not in whole]
            if lacking and not failed:
                failed = [
                    f"run {run}: jump: {len(lacking)} trajectories are not whole in {out}: "
                    "expected a folder that all nodes share. Give such a one, or a store's URI, as "
                    "--out."
                ]
            problems += failed
    return problems + _with_tables(session, _whole_runs(study, whole), ray)


def check_jump(study: Study) -> None:
    """Raise an InputError where a study's jumps give too few points for an embedding."""
    jump = study.jump
    assert jump is not None
    n_points = len(jump.seeds) * len(jump.steps) * jump.epochs
    if n_points < FEWEST_POINTS:
        raise InputError(
            f"jump: gives too few points: expected {FEWEST_POINTS} or more, got {n_points}, the "
            "product of seeds, steps and epochs. Ask for more of them."
        )


def run_topology(out: Place, trajectories: Sequence[Trajectory], k: int) -> RunTopology:
    """Embed a run's points and compute the persistence of the loss over them.

    Parameters
    ----------
    out
        Where the trajectories lie, whole.
    trajectories
        Of one run, the optimum first.
    k
        Neighbours of each point in the graph of the potentials.

    Returns
    -------
    RunTopology

    Raises
    ------
    InputError
        Where fewer than four points have a finite loss.
    """
    rows = [
        {"run": t.run, "seed": t.seed, "step": t.step, "x": None, "y": None, **point}
        for t in trajectories
        for point in tables.read_table(points_file(out, t)).to_pylist()[: t.epochs + 1]
    ]
    finite = [row for row in rows if all(math.isfinite(row[f"{s}_loss"]) for s in SPLITS)]
    embedded = [row for row in finite if row["epoch"] >= _FIRST_EPOCH]
    if len(embedded) < FEWEST_POINTS:
        raise InputError(
            "trajectories: too few points have a finite loss: expected "
            f"{FEWEST_POINTS} or more, got {len(embedded)}. Take smaller steps or a smaller rate."
        )
    placed = [row for row in finite if row["step"] == 0.0]
    n = len(embedded)
    files = [weights_file(out, _trajectory_of(row), row["epoch"]) for row in embedded + placed]
    distances = cosine_distances(principal_scores(weight_blocks(files), n))
    embedding = phate_embedding(distances[:n, :n])
    positions = [embedding.points, extended_points(distances[n:, :n], embedding.points)]
    for row, (x, y) in zip(embedded + placed, np.concatenate(positions).tolist(), strict=True):
        row |= {"x": x, "y": y}
    graph = potential_graph(embedding.potential, k)
    topology = RunTopology(rows, [], [])
    for split in SPLITS:
        losses = np.array([row[f"{split}_loss"] for row in embedded])
        found = (sublevel_components(graph, losses), sublevel_loops(graph, losses))
        for dimension, classes in enumerate(found):
            key = {"run": trajectories[0].run, "split": split, "dimension": dimension}
            topology.diagrams.extend(key | row for row in _diagram_rows(classes))
            topology.summary.append(key | {"n_points": n} | _summary(classes))
    return topology


def _digests(study: Study, out: Place) -> tuple[dict[Trajectory, str], list[str]]:
    """What each trajectory is to be made by, and a line for each run without its weights."""
    from lltopo.jump import made_by, optimum

    digests: dict[Trajectory, str] = {}
    problems = []
    for run in study.runs:
        if not jump_epochs(study, run):
            continue
        try:
            source = optimum(study, out, run)
        except InputError as error:
            problems.append(f"run {run}: jump: {error}")
        else:
            digests |= {t: made_by(source, t) for t in run_trajectories(study, run)}
    return digests, problems


def _whole(out: Place, digests: Mapping[Trajectory, str]) -> set[Trajectory]:
    """Those that are there to their last epoch."""

    def is_whole(trajectory: Trajectory) -> bool:
        return len(recorded_points(out, trajectory, digests[trajectory])) > trajectory.epochs

    return set(itertools.compress(digests, answers(is_whole, digests, out)))


def _whole_runs(study: Study, whole: Set[Trajectory]) -> dict[str, list[Trajectory]]:
    """The trajectories of the runs that have all of them."""
    runs = {run: run_trajectories(study, run) for run in study.runs}
    return {run: found for run, found in runs.items() if set(found) <= whole}


def _sampled(session: Session, pending: Sequence[Trajectory]) -> list[str]:
    """Sample trajectories of one run; what went wrong."""
    from lltopo.training import sampled_trajectories, waited_for

    study, out, notify = session
    run = pending[0].run
    n_points = sum(trajectory.epochs + 1 for trajectory in run_trajectories(study, run))
    tick = _TICK_SECONDS if out.is_local else _STORE_TICK_SECONDS
    with (
        temporary_folder() as notes,
        sampled_trajectories(study, out, pending, place(notes)) as future,
    ):
        ended = False
        while not ended:
            ended = not wait([future], tick).not_done
            n_done = min(n_recorded(out, run), n_points)
            notify(f"jump {run}", n_done, n_points, waited_for(study, 1) or "points")
    error = future.exception()
    if isinstance(error, InputError):
        raise error
    return [f"run {run}: jump failed: {told_error(error)}"] if error else []


def _with_tables(
    session: Session, runs: Mapping[str, Sequence[Trajectory]], ray: ExitStack
) -> list[str]:
    """Make the tables of some runs' jumps, unless they are there; what went wrong."""
    study, out, notify = session
    jump = study.jump
    assert jump is not None
    made_of = _made_of(out, runs, jump.k)
    # written last, it tells of all three
    found = tables.footer(out / "jump.parquet")
    if not runs or (found is not None and found.get("made_of") == made_of):
        return []
    check_phate()
    ray.enter_context(study_session(study))
    calls = [Call(run, (out, trajectories, jump.k)) for run, trajectories in runs.items()]
    results, problems = {}, []
    for outcome in fan_out(run_topology, iter([calls])):
        if outcome.error is None:
            results[outcome.key] = outcome.value
        else:
            problems.append(f"run {outcome.key}: jump: {outcome.error}")
        notify("jump topology", len(results) + len(problems), len(calls), "runs")
    ordered = [results[run] for run in runs if run in results]
    for name, schema, part in (
        ("jump_diagrams", schemas.JUMP_DIAGRAMS, "diagrams"),
        ("jump_summary", schemas.JUMP_SUMMARY, "summary"),
        ("jump", schemas.JUMP, "points"),
    ):
        rows = [row for topology in ordered for row in getattr(topology, part)]
        content = [{column: row[column] for column in schema.names} for row in rows]
        # a run that failed is tried again
        metadata = {} if problems else {"made_of": made_of}
        tables.write_table(out / f"{name}.parquet", content, schema, metadata)
    return problems


def _made_of(out: Place, runs: Mapping[str, Sequence[Trajectory]], k: int) -> str:
    content: list[Row] = [{"k": k}]
    trajectories = list(itertools.chain.from_iterable(runs.values()))
    files = [points_file(out, trajectory) for trajectory in trajectories]
    for trajectory, points in zip(
        trajectories, answers(tables.read_table, files, out), strict=True
    ):
        content += [trajectory._asdict(), *points.to_pylist()]
    return points_digest(content)


def _trajectory_of(row: Row) -> Trajectory:
    return Trajectory(row["run"], row["seed"], row["step"], row["epoch"])


def _diagram_rows(classes: Classes) -> list[Row]:
    columns = (values.tolist() for values in classes)
    return [dict(zip(Classes._fields, row, strict=True)) for row in zip(*columns, strict=True)]


def _summary(classes: Classes) -> Row:
    persistence = classes.death - classes.birth
    return {
        "n_pairs": len(persistence),
        "n_essential": int(classes.essential.sum()),
        "total_persistence": total_persistence(classes.diagram),
        "max_persistence": float(persistence.max(initial=0.0)),
        "persistent_entropy": persistent_entropy(classes.diagram),
    }
