"""Somebody else's losses, brought into our own tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lltopo.errors import InputError
from lltopo.recorder import LossRecorder
from lltopo.storage import Place, place
from lltopo.study import LossesData, Study
from lltopo.data import read_array
from lltopo.tables import Field, complete_epochs, fields_in


def losses_folder(study: Study, out: Place) -> Place:
    """Where the study's loss tables are: its own, or the folder that it names."""
    data = study.data
    if isinstance(data, LossesData) and isinstance(data.losses, str):
        return place(data.losses)
    return out / "losses"


def given_features(data: LossesData, split: str) -> NDArray[np.generic]:
    """The features of a split, (samples, ...)."""
    if split not in data.features:
        raise InputError(
            f"features: {split} is missing: there are losses of it. "
            f"Add --features {split}=FILE.npy."
        )
    features = read_array(data.features[split], f"features of {split}")
    if features.ndim < 2:
        raise InputError(
            f"{data.features[split]}: features have a wrong shape: expected (samples, ...), "
            f"got {features.shape}. Give one row a sample."
        )
    return features.reshape(len(features), -1)


def given_fields(data: LossesData) -> list[Field]:
    """The fields that the given losses hold, sorted.

    Raises
    ------
    InputError
        Where there are none, or an array has not the shape (epochs, samples).
    """
    if isinstance(data.losses, str):
        fields = [f for f in fields_in(place(data.losses)) if f.split in ("train", "val")]
        if not fields:
            raise InputError(
                f"{data.losses}: holds no loss table: expected "
                "run=R/split=S/epoch=00001/part-0.parquet below it. Give a losses folder."
            )
        return fields
    return sorted(
        Field(run, split, data.first_epoch + i)
        for run, splits in data.losses.items()
        for split, path in splits.items()
        for i in range(len(_given_losses(path)))
    )


def check_lengths(data: LossesData) -> None:
    """Raise an InputError unless every array of losses fits the features of its split."""
    for splits in data.losses.values() if isinstance(data.losses, dict) else ():
        for split, path in splits.items():
            n, n_features = _given_losses(path).shape[1], len(given_features(data, split))
            if n != n_features:
                raise InputError(
                    f"{path}: losses do not fit the features: expected {n_features} samples as in "
                    f"{data.features[split]}, got {n}. Give both for the same samples."
                )


def record_given_losses(data: LossesData, out: Place, progress: Callable[[int, int], None]) -> None:
    """Write the given arrays as loss tables and metrics, those not yet there."""
    if isinstance(data.losses, str):
        return
    n_done, n_all = 0, len({(f.run, f.epoch) for f in given_fields(data)})
    for run, splits in data.losses.items():
        recorder = LossRecorder(out, run)
        arrays = {split: _given_losses(path) for split, path in splits.items()}
        done = complete_epochs(out, run, tuple(arrays))
        for i in range(max(map(len, arrays.values()))):
            epoch = data.first_epoch + i
            if epoch not in done:
                for split, losses in arrays.items():
                    if i < len(losses):
                        recorder.update(losses[i], np.arange(losses.shape[1]), split, epoch)
                recorder.close_epoch(epoch)
            n_done += 1
            progress(n_done, n_all)


def _given_losses(path: str) -> NDArray[np.generic]:
    losses = read_array(path, "losses")
    if losses.ndim != 2 or losses.dtype.kind != "f" or 0 in losses.shape:
        raise InputError(
            f"{path}: losses have a wrong shape: expected floats of (epochs, samples), got "
            f"{losses.dtype} of {losses.shape}. Save them as such."
        )
    return losses
