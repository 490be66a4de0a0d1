"""Where jumps and retrained weights lie below ``--out``, and what says that they are whole.

``jump/run=R/seed=S/step=T/`` holds one trajectory: the weight vector after each epoch as a plain
``.npy`` file, the losses there in ``points.parquet``, and ``last.pt``, from which retraining goes
on. Of all weight vectors of a run only a few columns are in memory at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lltopo.errors import InputError
from lltopo.schemas import JUMP_POINTS
from lltopo.side_by_side import answers
from lltopo.storage import Place, file_size, files_below, read_part, write_bytes
from lltopo.study import Study
from lltopo.tables import footer, read_table, write_table

Row = dict[str, Any]

_BLOCK_BYTES = 1 << 27  # a store is asked once a vector and block
_HEAD_BYTES = 256  # a vector's header is shorter
_WEIGHTS = re.compile(r"seed=\d+/step=[^/]+/epoch=\d+\.npy")


class Trajectory(NamedTuple):
    """One jump away from a run's optimum, and the epochs of retraining from there.

    A step of 0 with no epochs is the optimum itself; its seed has no meaning.
    """

    run: str
    seed: int
    step: float
    epochs: int


def run_trajectories(study: Study, run: str) -> list[Trajectory]:
    """Return the trajectories that a study asks for around a run, the optimum first."""
    jump = study.jump
    assert jump is not None
    jumps = [Trajectory(run, seed, step, jump.epochs) for seed in jump.seeds for step in jump.steps]
    return [Trajectory(run, jump.seeds[0], 0.0, 0), *jumps]


def trajectory_folder(out: Place, trajectory: Trajectory) -> Place:
    """Return the folder that holds a trajectory."""
    run, seed, step, _ = trajectory
    return out / f"jump/run={run}/seed={seed}/step={step!r}"


def points_file(out: Place, trajectory: Trajectory) -> Place:
    """Return where a trajectory's losses lie, a row an epoch; epoch 0 is the jump itself."""
    return trajectory_folder(out, trajectory) / "points.parquet"


def weights_file(out: Place, trajectory: Trajectory, epoch: int) -> Place:
    """Return where the weight vector of one point lies."""
    return trajectory_folder(out, trajectory) / f"epoch={epoch:05d}.npy"


def write_weights(target: Place, vector: NDArray[np.float32]) -> str:
    """Write a weight vector and return the SHA-256 of its values."""
    values = np.ascontiguousarray(vector, dtype="<f4")
    buffer = io.BytesIO()
    npy.write_array(buffer, values, version=(1, 0), allow_pickle=False)
    write_bytes(target, buffer.getvalue())
    return hashlib.sha256(values.tobytes()).hexdigest()


def write_points(out: Place, trajectory: Trajectory, rows: Sequence[Row], made_by: str) -> None:
    """Write the rows of a trajectory's epochs 0, 1, ... so far, and what they were made by."""
    write_table(points_file(out, trajectory), rows, JUMP_POINTS, {"made_by": made_by})


def recorded_points(out: Place, trajectory: Trajectory, made_by: str) -> list[Row]:
    """Return the rows of a trajectory's epochs, as far as they and their weights are there.

    None of them where they were made by something else: from other weights or in another way.
    More epochs than are asked for are left out.
    """
    metadata = footer(points_file(out, trajectory))
    if metadata is None or metadata.get("made_by") != made_by:
        return []
    there = set(files_below(trajectory_folder(out, trajectory)))
    rows = []
    for row in read_table(points_file(out, trajectory), JUMP_POINTS).to_pylist():
        name = weights_file(out, trajectory, row["epoch"]).path.rpartition("/")[2]
        if name not in there or row["epoch"] > trajectory.epochs:
            break
        rows.append(row)
    return rows


def n_recorded(out: Place, run: str) -> int:
    """Count the weight vectors of a run that are there."""
    return sum(bool(_WEIGHTS.fullmatch(name)) for name in files_below(out / f"jump/run={run}"))


def points_digest(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of points: their weights and losses."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()


def weight_blocks(
    sources: Sequence[Place], block_bytes: int = _BLOCK_BYTES
) -> Iterator[NDArray[np.float32]]:
    """Read weight vectors side by side, some columns of all of them at a time.

    Parameters
    ----------
    sources
        The files of n vectors of one length.
    block_bytes
        How much of all of them together is read at a time.

    Yields
    ------
    (n, b) float32
        A block with b columns, as many as ``block_bytes`` hold, fewer in the last.

    Raises
    ------
    InputError
        Where a file is absent, damaged or of another length than the first one.
    """
    starts, n_values = zip(*answers(_layout, sources, sources[0]), strict=True)
    files = list(zip(sources, starts, strict=True))
    n_columns = max(1, block_bytes // (4 * len(sources)))
    for source, n in zip(sources, n_values, strict=True):
        if n != n_values[0]:
            raise _damaged(source, f"{n_values[0]} values as in {sources[0]}", str(n))
    for first in range(0, n_values[0], n_columns):
        width = min(n_columns, n_values[0] - first)
        parts = [(source, start + 4 * first, 4 * width) for source, start in files]
        block = np.empty((len(sources), width), np.float32)
        for row, part in zip(block, answers(_part, parts, sources[0]), strict=True):
            row[:] = np.frombuffer(part, "<f4")
        yield block


def _part(part: tuple[Place, int, int]) -> bytes:
    return read_part(*part)


def _layout(source: Place) -> tuple[int, int]:
    """Return where the values of a vector start in its file, and how many there are."""
    try:
        head, size = io.BytesIO(read_part(source, 0, _HEAD_BYTES)), file_size(source)
        npy.read_magic(head)
        shape, _, dtype = npy.read_array_header_1_0(head)
        start = head.tell()
    except FileNotFoundError as error:
        raise InputError(f"{source}: is missing. Run lltopo jump again.") from error
    except ValueError as error:
        raise _damaged(source, "a .npy file", str(error)) from error
    if dtype != np.dtype("<f4") or len(shape) != 1 or size != start + 4 * shape[0]:
        raise _damaged(source, "a whole vector of float32", f"{dtype} of shape {shape}")
    return start, shape[0]


def _damaged(source: Place, expected: str, got: str) -> InputError:
    return InputError(
        f"{source}: is damaged: expected {expected}, got {got}. Delete it and run lltopo jump "
        "again."
    )
