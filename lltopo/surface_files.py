"""A loss surface as an HDF5 file, with the keys that tomgoldstein/loss-landscape writes.

``xcoordinates`` and ``ycoordinates``; ``train_loss``, ``train_acc``, ``test_loss``, ``test_acc``
of shape (y, x), so that its plots read ours: test means validation, an accuracy is in percent.
Its own scripts may leave out the test set; a point that they have not computed holds -1. How a
surface was made is told by attributes of the file. The same surface makes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lltopo.errors import InputError
from lltopo.sections import SPLITS, Split
from lltopo.storage import Place, exists, read_bytes, write_bytes

Grid = NDArray[np.float64]

_PREFIXES: dict[Split, str] = {"train": "train", "val": "test"}
_UNFINISHED = -1.0
_NUMBERS = "fiu"


class PlaneKey(NamedTuple):
    """Name a plane: a run's weights after an epoch, and the seed of its two directions."""

    run: str
    epoch: int
    seed: int


class Surface(NamedTuple):
    """Mean losses and accuracies on a grid of a plane through a network's weights.

    Attributes
    ----------
    x : (n_x,) float64
        Coordinates along the first direction, in lengths of that direction; 0 is the network.
    y : (n_y,) float64
        Along the second direction.
    loss : mapping of split to (n_y, n_x) float64
        Mean loss of the split's samples, NaN where it was never computed.
    accuracy : mapping of split to (n_y, n_x) float64
        Fraction of samples told right, NaN where it is not known.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    loss: Mapping[Split, Grid]
    accuracy: Mapping[Split, Grid]


def surface_file(out: Place, key: PlaneKey) -> Place:
    """Return where the surface on a plane lies."""
    return out / f"surfaces/run={key.run}/epoch={key.epoch:05d}/seed={key.seed}/surface.h5"


def surface_bytes(surface: Surface, attributes: Mapping[str, str | int | float]) -> bytes:
    """Return a surface as the content of an HDF5 file.

    Parameters
    ----------
    surface
    attributes
        How it was made; kept as attributes of the file.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        file.create_dataset("xcoordinates", data=surface.x)
        file.create_dataset("ycoordinates", data=surface.y)
        for split, grid in surface.loss.items():
            file.create_dataset(f"{_PREFIXES[split]}_loss", data=grid)
            percent = 100.0 * surface.accuracy[split]
            file.create_dataset(f"{_PREFIXES[split]}_acc", data=percent)
    return buffer.getvalue()


def write_surface(
    target: Place, surface: Surface, attributes: Mapping[str, str | int | float]
) -> None:
    """Write a surface, whole or not at all; parameters as in `surface_bytes`."""
    write_bytes(target, surface_bytes(surface, attributes))


def read_surface(source: Place) -> Surface:
    """Read a surface, ours or one of loss-landscape's.

    Returns
    -------
    Surface
        With the splits that the file has.

    Raises
    ------
    InputError
        Where the file is absent or damaged, lacks an axis or any losses, or its arrays do not fit
        together.
    """
    with _opened(source) as file:
        x, y = (_numbers(source, file, f"{axis}coordinates") for axis in "xy")
        if x.ndim != 1 or y.ndim != 1:
            raise _misfit(
                source, "xcoordinates and ycoordinates", "two axes", f"{x.shape, y.shape}"
            )
        loss, accuracy = {}, {}
        for split in SPLITS:
            name = _PREFIXES[split]
            if f"{name}_loss" not in file:
                continue
            loss[split] = _grid(source, file, f"{name}_loss", x, y)
            if f"{name}_acc" in file:
                accuracy[split] = _grid(source, file, f"{name}_acc", x, y) / 100.0
            else:
                accuracy[split] = np.full_like(loss[split], np.nan)
    if not loss:
        raise _misfit(source, "train_loss", "train_loss or test_loss", "neither")
    return Surface(x, y, loss, accuracy)


def surface_attributes(source: Place) -> dict[str, str | int | float] | None:
    """Return how a surface was made, by its file's attributes; None where it is absent or damaged.

    A foreign file's attributes of other kinds than text and numbers are left out.
    """
    if not exists(source):
        return None
    try:
        with _opened(source) as file:
            found = {name: _plain(value) for name, value in file.attrs.items()}
    except InputError:
        return None
    return {name: value for name, value in found.items() if value is not None}


def file_digest(source: Place) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(read_bytes(source)).hexdigest()


def _opened(source: Place) -> h5py.File:
    try:
        return h5py.File(io.BytesIO(read_bytes(source)), "r")
    except FileNotFoundError as error:
        raise InputError(f"{source}: is missing. Compute it with lltopo surface.") from error
    except OSError as error:
        raise InputError(
            f"{source}: is damaged or no HDF5 file: {str(error).splitlines()[0]}. Delete it and "
            "compute it again with lltopo surface."
        ) from error


def _numbers(source: Place, file: h5py.File, name: str) -> NDArray[np.float64]:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise _misfit(source, name, "an array of numbers", "none")
    if found.dtype.kind not in _NUMBERS:
        raise _misfit(source, name, "an array of numbers", f"one of {found.dtype}")
    numbers: NDArray[np.float64] = found[...].astype(np.float64)
    return numbers


def _grid(
    source: Place, file: h5py.File, name: str, x: NDArray[np.float64], y: NDArray[np.float64]
) -> Grid:
    found = _numbers(source, file, name)
    # of unequal axes loss-landscape declares (x, y), but fills it in the order of (y, x)
    if found.shape not in {(len(y), len(x)), (len(x), len(y))}:
        raise _misfit(source, name, f"shape {(len(y), len(x))}", f"{found.shape}")
    grid = found.reshape(len(y), len(x))
    return np.where(grid == _UNFINISHED, np.nan, grid)


def _misfit(source: Place, name: str, expected: str, got: str) -> InputError:
    return InputError(
        f"{source}: {name}: does not make a surface: expected {expected}, got {got}. Give a file "
        "of lltopo surface or of loss-landscape's plot_surface.py."
    )


def _plain(value: object) -> str | int | float | None:
    if isinstance(value, str):
        return value
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else None
