"""Somebody else's losses, brought into our own tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltopo.data import read_array
from lltopo.errors import InputError
from lltopo.recorder import LossRecorder
from lltopo.sections import SPLITS
from lltopo.storage import Place, place, safe_name
from lltopo.study import Study
from lltopo.study_data import LossesData
from lltopo.tables import (
    Field,
    fields_in,
    is_complete,
    losses_digest,
    losses_file,
    read_losses,
    recorded_digest,
)

_BLOCK = 4096


def losses_folder(study: Study, out: Place) -> Place:
    """Return where the study's loss tables are: its own, or the folder that it names."""
    data = study.data
    if isinstance(data, LossesData) and isinstance(data.losses, str):
        return place(data.losses, study.storage.retry_s)
    return out / "losses"


def given_features(data: LossesData, split: str) -> NDArray[np.generic]:
    """Open the features of a split.

    Returns
    -------
    (samples, d) array
        A read-only map of the file, flattened behind the first axis.

    Raises
    ------
    InputError
        Where the study names none of this split, or the file holds no rows of finite numbers.
    """
    features = _open_features(data, split)
    for start in range(0, len(features) if features.dtype.kind == "f" else 0, _BLOCK):
        if not np.isfinite(features[start : start + _BLOCK]).all():
            last = min(start + _BLOCK, len(features)) - 1
            raise InputError(
                f"{features.filename}: features of {split} are not finite: expected numbers, got "
                f"NaN or infinity in rows {start} to {last}. Drop or fill those samples."
            )
    return features.reshape(len(features), -1)


def given_fields(data: LossesData) -> list[Field]:
    """List the fields that the given losses hold, sorted.

    Raises
    ------
    InputError
        Where there are none, a run's name is not safe, or an array has not the shape
        (epochs, samples).
    """
    if isinstance(data.losses, str):
        fields = [field for field in fields_in(place(data.losses)) if field.split in SPLITS]
        if not fields:
            raise InputError(
                f"{data.losses}: holds no loss table: expected "
                "run=R/split=S/epoch=00001/part-0.parquet below it. Give a losses folder."
            )
        for field in fields:
            safe_name(field.run, f"{data.losses}: run")
        return fields
    return sorted(
        Field(run, split, data.first_epoch + i)
        for run, splits in data.losses.items()
        for split, path in splits.items()
        for i in range(len(_given_losses(path)))
    )


def check_lengths(data: LossesData) -> None:
    """Raise an InputError unless there are as many losses as features of every split.

    Of a folder's tables the first of each run and split is looked at.
    """
    for origin, split, n in _given_lengths(data):
        features = _open_features(data, split)
        if n != len(features):
            raise InputError(
                f"{origin}: losses do not fit the features: expected {len(features)} samples as "
                f"in {features.filename}, got {n}. Give both for the same samples."
            )


def record_given_losses(data: LossesData, out: Place, progress: Callable[[int, int], None]) -> None:
    """Write the given arrays as loss tables and metrics, those that are not yet there.

    Parameters
    ----------
    data
        Tables in a folder stay where they are.
    out
        The folder of the results.
    progress
        Told how many epochs are done, and of how many.
    """
    if isinstance(data.losses, str):
        return
    n_done, n_all = 0, len({(field.run, field.epoch) for field in given_fields(data)})
    for run, splits in data.losses.items():
        recorder = LossRecorder(out, run)
        arrays = {split: _given_losses(path) for split, path in splits.items()}
        for i in range(max(map(len, arrays.values()))):
            epoch = data.first_epoch + i
            rows: dict[str, Any] = {
                split: losses[i] for split, losses in arrays.items() if i < len(losses)
            }
            if not _are_recorded(rows, out, run, epoch):
                for split, loss in rows.items():
                    recorder.update(loss, np.arange(len(loss)), split, epoch)
                recorder.close_epoch(epoch)
            n_done += 1
            progress(n_done, n_all)


def _open_features(data: LossesData, split: str) -> np.memmap[Any, Any]:
    files = {str(name): path for name, path in data.features.items()}
    if split not in files:
        raise InputError(
            f"features: {split} is missing: there are losses of it. "
            f"Add --features {split}=FILE.npy."
        )
    features = read_array(files[split], f"features of {split}")
    if features.ndim < 2:
        raise InputError(
            f"{files[split]}: features of {split} have a wrong shape: expected (samples, ...), "
            f"got {features.shape}. Give one row a sample."
        )
    return features


def _are_recorded(rows: Mapping[str, NDArray[Any]], out: Place, run: str, epoch: int) -> bool:
    return is_complete(out, run, epoch, tuple(rows)) and all(
        recorded_digest(out / "losses", Field(run, split, epoch))
        == losses_digest(loss.astype(np.float32))
        for split, loss in rows.items()
    )


def _given_lengths(data: LossesData) -> Iterator[tuple[str, str, int]]:
    """Yield where losses are, their split, and how many samples they have."""
    if isinstance(data.losses, str):
        folder = place(data.losses)
        first = {(field.run, field.split): field for field in reversed(given_fields(data))}
        for field in first.values():
            loss = read_losses(folder, field).loss
            yield str(losses_file(folder, field)), field.split, len(loss)
        return
    for splits in data.losses.values():
        for split, path in splits.items():
            yield path, split, _given_losses(path).shape[1]


def _given_losses(path: str) -> NDArray[np.generic]:
    losses = read_array(path, "losses")
    if losses.ndim != 2 or losses.dtype.kind != "f" or 0 in losses.shape:
        raise InputError(
            f"{path}: losses have a wrong shape: expected floats of (epochs, samples), got "
            f"{losses.dtype} of {losses.shape}. Save them as such."
        )
    return losses
