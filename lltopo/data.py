"""Data sets, whole and in memory: these sets are small, and a loader must never be waited for."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from lltopo.errors import InputError
from lltopo.image_shards import image_shards, unreadable
from lltopo.plugins import imported_function
from lltopo.study_data import (
    DigitsData,
    ImageData,
    NpzData,
    ParquetData,
    PythonData,
    TorchvisionData,
)

_LARGEST_LABEL = np.iinfo(np.int16).max
_NUMBERS = "biuf"


class Samples(NamedTuple):
    """One split.

    Attributes
    ----------
    x : (n, channels, height, width) or (n, d), uint8 or float32
    y : (n,) int64
        Classes from 0 on.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]


class DataSet(NamedTuple):
    """Training and validation samples of one task.

    Attributes
    ----------
    train, val : Samples
    n_classes : int
        One more than the largest label of the whole training set.
    mean, std : (channels,) or (d,) float32
        What a network's input is normalised with, in the units of ``x``.
    """

    train: Samples
    val: Samples
    n_classes: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])

    def split(self, name: str) -> Samples:
        """Return the samples of ``train`` or ``val``."""
        return self.train if name == "train" else self.val


class _Raw(NamedTuple):
    """Arrays as a source gives them, with where they came from (for errors)."""

    x: Any
    y: Any
    origin: str


def load_data(data: ImageData) -> DataSet:
    """Load the data set that a study names, whole.

    ``train_samples`` and ``val_samples`` then cut it; where the study does not give ``mean`` and
    ``std``, they are those of the training samples that are left.

    Raises
    ------
    InputError
        For a missing path or column, labels out of range, features that are not finite, or
        features and labels of different length.
    """
    raw = _raw_splits(data)
    train, val = map(_checked, raw)
    if train.x.shape[1:] != val.x.shape[1:]:
        raise InputError(
            f"{raw[1].origin}: x: has another shape than the training samples: expected "
            f"{train.x.shape[1:]}, got {val.x.shape[1:]}. Give both the same shape."
        )
    n_classes = int(train.y.max()) + 1
    if val.y.max() >= n_classes:
        raise InputError(
            f"{raw[1].origin}: label: is out of range: expected 0 to {n_classes - 1} as in the "
            f"training set, got {val.y.max()}. Mend the labels."
        )
    train, val = _first(train, data.train_samples), _first(val, data.val_samples)
    return DataSet(train, val, n_classes, *_normalisation(data, train.x))


def graph_features(x: NDArray[Any], features: str) -> NDArray[Any]:
    """Return the (n, d) array whose Euclidean distances make the graph.

    Parameters
    ----------
    x
        Samples of a split, see `Samples`.
    features
        ``pixels`` is every value as it is; ``grey28`` the grey centre crop of 28 x 28 (784
        values, ITU-R BT.601 luma rounded to uint8), the thesis's other reading.

    Raises
    ------
    InputError
        For ``grey28`` of what are no uint8 images of at least that size.
    """
    if features == "pixels":
        return x.reshape(len(x), -1)
    fits = x.ndim == 4 and min(x.shape[2:]) >= 28 and x.shape[1] in (1, 3) and x.dtype == np.uint8
    if not fits:
        raise InputError(
            "graph.features: grey28 does not fit: expected grey or RGB images of uint8, at least "
            f"28 x 28, got {x.dtype} of shape {x.shape[1:]}. Use pixels."
        )
    top, left = (x.shape[2] - 28) // 2, (x.shape[3] - 28) // 2
    crop = x[:, :, top : top + 28, left : left + 28].astype(np.float32)
    luma = np.array([0.299, 0.587, 0.114] if x.shape[1] == 3 else [1.0], dtype=np.float32)
    grey: NDArray[np.float32] = np.einsum("nchw,c->nhw", crop, luma)
    return np.rint(grey).astype(np.uint8).reshape(len(x), 28 * 28)


def samples_digest(samples: Samples) -> str:
    """Return the SHA-256 of a split's samples and labels."""
    digest = hashlib.sha256(str((samples.x.dtype, samples.x.shape)).encode())
    digest.update(np.ascontiguousarray(samples.x))
    digest.update(np.ascontiguousarray(samples.y))
    return digest.hexdigest()


def read_array(path: str, what: str) -> np.memmap[Any, Any]:
    """Open a .npy file of numbers as a read-only memory map; it is never unpickled.

    Parameters
    ----------
    path
        On a disk of this machine.
    what
        What it holds, for errors.

    Raises
    ------
    InputError
        Where there is no such file, or it holds something else.
    """
    try:
        array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise InputError(
            f"{path}: {what} cannot be read: {error.strerror or error}. "
            "Give the path of a .npy file."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path}: {what} cannot be read: it is no .npy file of plain numbers. "
            "Write it with numpy.save."
        ) from error
    if array.dtype.kind not in _NUMBERS:
        raise InputError(
            f"{path}: {what} are no numbers: expected integers or floats, got {array.dtype}. "
            "Write it with numpy.save."
        )
    return array


def _raw_splits(data: ImageData) -> tuple[_Raw, _Raw]:
    match data:
        case DigitsData():
            return _digits()
        case ParquetData():
            return _shards(data, ("train",)), _shards(data, ("test", "validation"))
        case NpzData():
            return _npz(data)
        case TorchvisionData():
            return _torchvision(data, train=True), _torchvision(data, train=False)
        case PythonData():
            return _python(data)


def _digits() -> tuple[_Raw, _Raw]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, None]
    x_train, x_val, y_train, y_val = train_test_split(
        x, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    return _Raw(x_train, y_train, "digits"), _Raw(x_val, y_val, "digits")


def _npz(data: NpzData) -> tuple[_Raw, _Raw]:
    names = ("x_train", "y_train", "x_val", "y_val")
    try:
        with open(data.path, "rb") as file, NpzFile(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names if name in arrays}
            given = arrays.files
    except OSError as error:
        raise unreadable(data.path, error) from error
    except (ValueError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"{data.path}: cannot be read: it is no .npz file of plain numbers. "
            "Write it with numpy.savez."
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{data.path}: {missing[0]}: no such array: expected {', '.join(names)}, "
            f"got {', '.join(given)}. Write it with numpy.savez."
        )
    x_train, y_train, x_val, y_val = found.values()
    return _Raw(x_train, y_train, data.path), _Raw(x_val, y_val, data.path)


def _shards(data: ParquetData, prefixes: tuple[str, ...]) -> _Raw:
    return _Raw(*image_shards(data, prefixes), data.path)


def _torchvision(data: TorchvisionData, *, train: bool) -> _Raw:
    from torchvision import datasets

    split = {"split": "train" if train else "test"} if data.name == "SVHN" else {"train": train}
    try:
        found = getattr(datasets, data.name)(data.root, download=data.download, **split)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{data.root}: {data.name} cannot be had: {str(error).splitlines()[0]} "
            "Set data.download: true or put its files there."
        ) from error
    x = np.asarray(found.data)
    y = np.asarray(found.labels if data.name == "SVHN" else found.targets)
    if data.name in ("CIFAR10", "CIFAR100"):
        x = x.transpose(0, 3, 1, 2)
    return _Raw(x[:, None] if x.ndim == 3 else x, y, f"{data.root} ({data.name})")


def _python(data: PythonData) -> tuple[_Raw, _Raw]:
    splits = imported_function(data.python, "data.python")(**data.options)
    try:
        (x_train, y_train), (x_val, y_val) = splits["train"], splits["val"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"data.python: {data.python} gave no data set: expected "
            "{'train': (x, y), 'val': (x, y)}. Mend the function."
        ) from error
    return _Raw(x_train, y_train, data.python), _Raw(x_val, y_val, data.python)


def _first(samples: Samples, limit: int | None) -> Samples:
    return Samples(samples.x[:limit], samples.y[:limit])


def _checked(raw: _Raw) -> Samples:
    x, y = np.asarray(raw.x), np.asarray(raw.y)
    if x.ndim not in (2, 4) or len(x) < 2 or 0 in x.shape:
        raise InputError(
            f"{raw.origin}: x: has a wrong shape: expected (n, d) or (n, channels, height, width) "
            f"with n >= 2, got {x.shape}. Reshape it."
        )
    if x.dtype.kind not in _NUMBERS:
        raise InputError(
            f"{raw.origin}: x: has a wrong type: expected integers or floats, got {x.dtype}. "
            "Convert it."
        )
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise InputError(
            f"{raw.origin}: label: does not fit the samples: expected {len(x)} integers, got "
            f"{y.dtype} of shape {y.shape}. Give one label a sample."
        )
    if y.min() < 0 or y.max() > _LARGEST_LABEL:
        worst = int(y.min() if y.min() < 0 else y.max())
        raise InputError(
            f"{raw.origin}: label: is out of range: expected 0 to {_LARGEST_LABEL}, got {worst}. "
            "Mend the labels."
        )
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise InputError(
                f"{raw.origin}: x: is not finite: expected numbers, got NaN or infinity. "
                "Drop or fill those samples."
            )
    return Samples(np.ascontiguousarray(x), y.astype(np.int64))


def _normalisation(
    data: ImageData, x: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    n_channels = x.shape[1]
    for key, given in (("data.mean", data.mean), ("data.std", data.std)):
        if given is not None and len(given) != n_channels:
            raise InputError(
                f"{key}: has a wrong length: expected {n_channels} numbers, one a channel, got "
                f"{len(given)}. Mend the study."
            )
    mean = _channel_means(x, np.zeros(1), 1) if data.mean is None else np.asarray(data.mean)
    std = np.sqrt(_channel_means(x, mean, 2)) if data.std is None else np.asarray(data.std)
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)


def _channel_means(x: NDArray[Any], center: NDArray[Any], power: int) -> NDArray[np.float64]:
    """The mean of (x - center)^power over each channel, in float64, a block at a time."""
    total = np.zeros(x.shape[1])
    shape = (1, -1, *[1] * (x.ndim - 2))
    axes = (0, *range(2, x.ndim))
    for start in range(0, len(x), 1024):
        block = x[start : start + 1024].astype(np.float64) - center.reshape(shape)
        total += (block**power).sum(axis=axes)
    means: NDArray[np.float64] = total / (x.size / x.shape[1])
    return means
