"""The surface stage: planes through a study's trained weights, a task for each row of a grid.

A row that is done lies as a small file beside the surface's place; once all are there they are
gathered into one HDF5 file and removed. So a job that is killed loses only the rows at work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lltopo import schemas, tables
from lltopo.checkpoints import Checkpoint, checkpoint_file, read_checkpoint
from lltopo.data import DataSet, Samples, load_data
from lltopo.errors import InputError
from lltopo.fanout import Call, Need, fan_out, shared, takes_gpu, unmet_need
from lltopo.sections import SPLITS
from lltopo.session import Session, study_session
from lltopo.side_by_side import answers
from lltopo.storage import Place, exists, remove
from lltopo.study import Run, Study, run_digest, surface_epochs
from lltopo.study_data import LossesData
from lltopo.surface_comparison import write_comparison
from lltopo.surface_files import (
    PlaneKey,
    Surface,
    file_digest,
    surface_attributes,
    surface_file,
    write_surface,
)
from lltopo.surface_tables import write_surface_table


class PlannedSurface(NamedTuple):
    """A surface that a study asks for.

    Attributes
    ----------
    key : PlaneKey
        The weights, and the seed of the directions.
    target : Place
        The surface's file.
    axis : (points,) float64
        The grid's coordinates on both axes.
    trained : str
        The digest of the run's settings, which its checkpoint must have.
    checkpoint : Place or None
        None where there is no checkpoint of the epoch.
    made_of : mapping
        Digests of the settings and, where it is there, of the checkpoint.
    """

    key: PlaneKey
    target: Place
    axis: NDArray[np.float64]
    trained: str
    checkpoint: Place | None
    made_of: Mapping[str, str]


def make_surfaces(session: Session, ray: ExitStack) -> list[str]:
    """Compute the surfaces that the study asks for and that are not there, and their tables.

    Parameters
    ----------
    session
        The study, where its results go, and whom to tell of the progress.
    ray
        Gets the study's Ray session where there is something to compute.

    Returns
    -------
    list of str
        A line for each run's epoch without a checkpoint and for each row that failed.

    Raises
    ------
    InputError
        Where a checkpoint was made with other settings than the study's.
    """
    study, out, _ = session
    planned = planned_surfaces(study, out)
    unfinished, problems = [], []
    for plan in planned:
        if is_current(plan):
            remove(_rows_folder(plan))
        elif (lacking := _lacking_checkpoint(plan)) is None:
            unfinished.append(plan)
        elif lacking not in problems:
            problems.append(lacking)
    missing = {plan.key: missing_rows(plan) for plan in unfinished}
    if any(missing.values()):
        ray.enter_context(study_session(study))
        problems += _with_rows(session, unfinished, missing)
    for plan in unfinished:
        if not missing[plan.key]:
            gather_rows(plan)
    made = [plan.key for plan in planned if is_current(plan)]
    if made:
        write_surface_table(out, made)
        problems += write_comparison(session, made, ray)
    return problems


def planned_surfaces(study: Study, out: Place) -> list[PlannedSurface]:
    """The surfaces that a study asks for, by run, epoch and seed in its own order."""
    surface = study.surface
    if surface is None:
        return []
    axis = np.linspace(-surface.extent, surface.extent, surface.points)
    axis[surface.points // 2] = 0.0  # rounding may not move the trained weights off the grid
    return [
        plan
        for run in study.runs
        for epoch in surface_epochs(study, run)
        for plan in _planes(study, out, run, epoch, axis)
    ]


def is_current(plan: PlannedSurface) -> bool:
    """Whether a surface is there, whole, and made of these settings and this checkpoint.

    One whose checkpoint has since been cleared away stays current.
    """
    found = surface_attributes(plan.target)
    return found is not None and plan.made_of.items() <= found.items()


def missing_rows(plan: PlannedSurface) -> list[int]:
    """The rows of a surface's grid that are not there, whole, of these settings and weights."""
    rows = range(len(plan.axis))
    found = answers(lambda row: tables.footer(_row_file(plan, row)) or {}, rows, plan.target)
    return [row for row, made_of in enumerate(found) if not plan.made_of.items() <= made_of.items()]


def write_row(plan: PlannedSurface, row: int, run: Run, data: DataSet) -> None:
    """Evaluate one row of a surface's grid and write it.

    Parameters
    ----------
    plan, row
        Which row: all x at ``plan.axis[row]`` on the second direction.
    run
        The settings of the run whose weights they are.
    data
        The samples to evaluate.
    """
    from lltopo.surface import trained_plane_losses

    y = float(plan.axis[row])
    points = [(float(x), y) for x in plan.axis]
    means, cosine = trained_plane_losses(run, data, _checkpoint(plan), plan.key.seed, points)
    content = [
        {"x": x, "y": y}
        | {
            f"{split}_{name}": value
            for split in SPLITS
            for name, value in mean[split]._asdict().items()
        }
        for (x, _), mean in zip(points, means, strict=True)
    ]
    sizes = {f"n_{split}": str(len(data.split(split).y)) for split in SPLITS}
    metadata = {**plan.made_of, "cosine": repr(cosine), **sizes}
    tables.write_table(_row_file(plan, row), content, schemas.SURFACE_ROW, metadata)


def gather_rows(plan: PlannedSurface) -> None:
    """Write a surface of its rows, which are all there, and remove them."""
    files = [_row_file(plan, row) for row in range(len(plan.axis))]
    rows = list(answers(tables.read_table, files, plan.target))
    metadata = tables.footer(_row_file(plan, 0)) or {}
    loss, accuracy = (
        {split: np.stack([row[f"{split}_{name}"].to_numpy() for row in rows]) for split in SPLITS}
        for name in ("loss", "accuracy")
    )
    attributes: dict[str, str | int | float] = {
        **plan.key._asdict(),
        "cosine": float(metadata["cosine"]),
        **{f"n_{split}": int(metadata[f"n_{split}"]) for split in SPLITS},
        **plan.made_of,
    }
    write_surface(plan.target, Surface(plan.axis, plan.axis, loss, accuracy), attributes)
    remove(_rows_folder(plan))


def _planes(
    study: Study, out: Place, run: str, epoch: int, axis: NDArray[np.float64]
) -> Iterator[PlannedSurface]:
    """The planes through one run's weights after one epoch."""
    surface = study.surface
    assert surface is not None
    trained = run_digest(study, run)
    checkpoint = _checkpoint_of(study, out, run, epoch)
    weights = {"checkpoint": file_digest(checkpoint)} if checkpoint is not None else {}
    settings = surface.model_dump(mode="json", exclude={"runs", "epochs", "seeds"})
    for seed in surface.seeds:
        content = json.dumps([settings, trained, epoch, seed], sort_keys=True)
        made_of = {"settings": hashlib.sha256(content.encode()).hexdigest()} | weights
        key = PlaneKey(run, epoch, seed)
        yield PlannedSurface(key, surface_file(out, key), axis, trained, checkpoint, made_of)


def _checkpoint_of(study: Study, out: Place, run: str, epoch: int) -> Place | None:
    """An epoch's own checkpoint; after the last epoch the run's last one will do."""
    places = [checkpoint_file(out, run, epoch)]
    if epoch == study.runs[run].training.epochs:
        places.append(checkpoint_file(out, run, None))
    return next((place for place in places if exists(place)), None)


def _lacking_checkpoint(plan: PlannedSurface) -> str | None:
    """What is wrong where the weights of a plane cannot be had."""
    if plan.checkpoint is not None:
        checkpoint = read_checkpoint(plan.checkpoint, plan.trained)
        if checkpoint is not None and checkpoint.epoch == plan.key.epoch:
            return None
    run, epoch, _ = plan.key
    return (
        f"surface of run {run}, epoch {epoch}: there is no whole checkpoint of that epoch. "
        "Train the run with the epoch in surface.epochs or training.keep_checkpoints, in another "
        "--out where it is trained already."
    )


def _checkpoint(plan: PlannedSurface) -> Checkpoint:
    found = plan.checkpoint and read_checkpoint(plan.checkpoint, plan.trained)
    if not found:
        raise InputError(f"{plan.checkpoint}: is gone or damaged. Train the run again.")
    return found


def _with_rows(
    session: Session, plans: Sequence[PlannedSurface], missing: Mapping[PlaneKey, list[int]]
) -> list[str]:
    """Evaluate the missing rows, taking them out of ``missing`` as they arrive; the problems."""
    study, _, notify = session
    data = shared(_evaluated_data(study))
    calls = [
        Call((plan.key, row), (plan, row, study.runs[plan.key.run], data))
        for plan in plans
        for row in missing[plan.key]
    ]
    n_rows = sum(len(plan.axis) for plan in plans)
    done = n_rows - len(calls)
    problems = []
    need = _need(study)
    lacking = unmet_need("GPU", need.gpus) if need.gpus else unmet_need("CPU", need.cpus)
    notify("surfaces", done, n_rows, lacking or "rows")
    for outcome in fan_out(write_row, iter([calls]), need):
        key, row = outcome.key
        if outcome.error is None:
            missing[key].remove(row)
        else:
            where = f"surface of run {key.run}, epoch {key.epoch}, seed {key.seed}, row {row}"
            problems.append(f"{where}: {outcome.error}")
        done += 1
        notify("surfaces", done, n_rows, "rows")
    return problems


def _evaluated_data(study: Study) -> DataSet:
    """The samples that are evaluated; normalised as all of them are."""
    surface = study.surface
    assert surface is not None
    assert not isinstance(study.data, LossesData)
    data = load_data(study.data)
    train, val = (
        Samples(samples.x[:limit], samples.y[:limit])
        for samples, limit in (
            (data.train, surface.train_samples),
            (data.val, surface.val_samples),
        )
    )
    return data._replace(train=train, val=val)


def _need(study: Study) -> Need:
    """What one task asks of the cluster: a GPU at most, or a part of one, where training does."""
    need = study.resources
    gpus = min(need.gpus_per_worker, 1.0) if takes_gpu(need.device) else 0.0
    return Need(need.cpus_per_worker, gpus)


def _rows_folder(plan: PlannedSurface) -> Place:
    return plan.target.parent / "rows"


def _row_file(plan: PlannedSurface, row: int) -> Place:
    return _rows_folder(plan) / f"row={row:05d}.parquet"
