"""Data sets, whole and in memory: these sets are small, and a loader must never be waited for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lltopo.errors import InputError
from lltopo.plugins import imported_function
from lltopo.study import (
    DigitsData,
    ImageData,
    NpzData,
    ParquetData,
    PythonData,
    TorchvisionData,
)

_MOST_CLASSES = np.iinfo(np.int16).max


class Samples(NamedTuple):
    """One split: ``x`` uint8 or float32 of (n, channels, height, width) or (n, d); ``y`` (n,)."""

    x: NDArray[Any]
    y: NDArray[np.int64]


class DataSet(NamedTuple):
    """Training and validation samples of one task with ``n_classes`` classes.

    ``mean`` and ``std`` (float32, one a channel) are what a network's input is normalised with,
    in the units of ``x``.
    """

    train: Samples
    val: Samples
    n_classes: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.x.shape[1:])

    def split(self, name: str) -> Samples:
        """The samples of ``train`` or ``val``."""
        return self.train if name == "train" else self.val


class _Raw(NamedTuple):
    """Arrays as a source gives them, with where each came from (for errors)."""

    x: Any
    y: Any
    origin: str


def load_data(data: ImageData) -> DataSet:
    """The data set that a study names.

    Raises
    ------
    InputError
        For a missing path or column, labels out of range, features that are not finite, or
        features and labels of different length.
    """
    train, val = _raw_splits(data)
    samples = [
        _checked(raw, limit)
        for raw, limit in ((train, data.train_samples), (val, data.val_samples))
    ]
    if samples[0].x.shape[1:] != samples[1].x.shape[1:]:
        raise InputError(
            f"{val.origin}: x: has another shape than the training samples: expected "
            f"{samples[0].x.shape[1:]}, got {samples[1].x.shape[1:]}. Give both the same shape."
        )
    n_classes = int(samples[0].y.max()) + 1
    if samples[1].y.max() >= n_classes:
        raise InputError(
            f"{val.origin}: label: is out of range: expected 0 to {n_classes - 1} as in the "
            f"training set, got {samples[1].y.max()}. Mend the labels."
        )
    mean, std = _normalisation(data, samples[0].x)
    return DataSet(samples[0], samples[1], n_classes, mean, std)


def graph_features(x: NDArray[Any], features: str) -> NDArray[Any]:
    """The (n, d) array whose Euclidean distances make the graph.

    ``pixels`` is every value as it is; ``grey28`` the grey centre crop of 28 x 28 (784 values,
    ITU-R 601 luma rounded to uint8), the thesis's other reading.
    """
    if features == "pixels":
        return x.reshape(len(x), -1)
    if x.ndim != 4 or min(x.shape[2:]) < 28 or x.shape[1] not in (1, 3):
        raise InputError(
            f"graph.features: grey28 does not fit: expected grey or RGB images of at least "
            f"28 x 28, got samples of shape {x.shape[1:]}. Use pixels."
        )
    top, left = (x.shape[2] - 28) // 2, (x.shape[3] - 28) // 2
    crop = x[:, :, top : top + 28, left : left + 28].astype(np.float32)
    luma = np.array([0.299, 0.587, 0.114] if x.shape[1] == 3 else [1.0], dtype=np.float32)
    grey = np.einsum("nchw,c->nhw", crop, luma)
    return np.rint(grey).astype(np.uint8).reshape(len(x), -1)


def read_array(path: str, what: str) -> NDArray[Any]:
    """A .npy file as a read-only memory map; never unpickled."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"{path}: {what} cannot be read: {error.strerror or error}. Give the path of a .npy file."
        ) from error
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path}: {what} cannot be read: it is no .npy file of plain numbers. "
            "Write it with numpy.save."
        ) from error
    return array


def _raw_splits(data: ImageData) -> tuple[_Raw, _Raw]:
    match data:
        case DigitsData():
            return _digits()
        case ParquetData():
            return _parquet(data, ("train",)), _parquet(data, ("test", "validation"))
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
        with np.load(data.path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise InputError(
                    f"{data.path}: {missing[0]}: no such array: expected {', '.join(names)}, "
                    f"got {', '.join(file.files)}. Write it with numpy.savez."
                )
            arrays = [file[name] for name in names]
    except OSError as error:
        raise _unreadable(data.path, error) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{data.path}: cannot be read: it is no .npz file of plain numbers. "
            "Write it with numpy.savez."
        ) from error
    return _Raw(arrays[0], arrays[1], data.path), _Raw(arrays[2], arrays[3], data.path)


def _parquet(data: ParquetData, prefixes: tuple[str, ...]) -> _Raw:
    folder = Path(data.path)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: data.path is missing: expected a folder of Parquet files. Mend data.path."
        )
    shards = next((found for p in prefixes if (found := sorted(folder.glob(f"{p}-*.parquet")))), [])
    if not shards:
        names = " or ".join(f"{prefix}-*.parquet" for prefix in prefixes)
        raise InputError(f"{folder}: holds no {names}. Give the folder with both splits.")
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[Any]] = []
    for shard in shards:
        x, y = _parquet_shard(shard, data)
        images += x
        labels.append(y)
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise InputError(
            f"{folder}: images differ in shape: expected one, got {sorted(shapes)[:3]}. "
            "Resize them first."
        )
    return _Raw(np.stack(images), np.concatenate(labels), str(folder))


def _parquet_shard(shard: Path, data: ParquetData) -> tuple[list[NDArray[np.uint8]], NDArray[Any]]:
    try:
        file = pq.ParquetFile(shard)
        image_column = data.image_column or _image_column(shard, file.schema_arrow)
        for column in (image_column, data.label_column):
            if column not in file.schema_arrow.names:
                raise InputError(
                    f"{shard}: {column}: no such column: expected one of "
                    f"{file.schema_arrow.names}. Set data.image_column or data.label_column."
                )
        images: list[NDArray[np.uint8]] = []
        labels = []
        for batch in file.iter_batches(1024, columns=[image_column, data.label_column]):
            images += [_pixels(cell["bytes"], shard) for cell in batch[0].to_pylist()]
            labels.append(batch[1].to_numpy(zero_copy_only=False))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(str(shard), error) from error
    return images, np.concatenate(labels) if labels else np.empty(0, np.int64)


def _image_column(shard: Path, schema: pa.Schema) -> str:
    for column in schema:
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            return str(column.name)
    raise InputError(
        f"{shard}: no image column: expected a struct with 'bytes', got {schema.names}. "
        "Set data.image_column."
    )


def _pixels(content: bytes, shard: Path) -> NDArray[np.uint8]:
    try:
        image = np.asarray(Image.open(io.BytesIO(content)), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise InputError(f"{shard}: holds bytes that are no image. Mend the file.") from error
    return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))


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


def _checked(raw: _Raw, limit: int | None) -> Samples:
    x, y = np.asarray(raw.x)[:limit], np.asarray(raw.y)[:limit]
    if x.ndim not in (2, 4) or len(x) < 2:
        raise InputError(
            f"{raw.origin}: x: has a wrong shape: expected (n, d) or (n, channels, height, width) "
            f"with n >= 2, got {x.shape}. Reshape it."
        )
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise InputError(
            f"{raw.origin}: label: does not fit the samples: expected {len(x)} integers, got "
            f"{y.dtype} of shape {y.shape}. Give one label a sample."
        )
    if y.min() < 0 or y.max() > _MOST_CLASSES:
        worst = int(y.min() if y.min() < 0 else y.max())
        raise InputError(
            f"{raw.origin}: label: is out of range: expected 0 to {_MOST_CLASSES}, got {worst}. "
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
    mean = np.asarray(data.mean) if data.mean is not None else _channel_means(x, np.zeros(1), 1)
    spread = _channel_means(x, mean, 2) if data.std is None and len(mean) == n_channels else None
    std = np.asarray(data.std) if spread is None else np.sqrt(spread)
    for key, values in (("data.mean", mean), ("data.std", std)):
        if values.shape != (n_channels,):
            raise InputError(
                f"{key}: has a wrong length: expected {n_channels} numbers, one a channel, got "
                f"{len(values)}. Mend the study."
            )
    return mean.astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)


def _channel_means(x: NDArray[Any], center: NDArray[Any], power: int) -> NDArray[np.float64]:
    """The mean of (x - center)^power over each channel, in float64, a block at a time."""
    total = np.zeros(x.shape[1])
    shape = (1, -1, *[1] * (x.ndim - 2))
    for start in range(0, len(x), 1024):
        block = x[start : start + 1024].astype(np.float64) - center.reshape(shape)
        total += (block**power).sum(axis=(0, *range(2, x.ndim)))
    return total / (x.size / x.shape[1])


def _unreadable(path: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return InputError(f"{path}: cannot be read: {reason}. Mend data.path.")
