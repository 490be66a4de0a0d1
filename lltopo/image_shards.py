"""Image data sets in the layout of the Hugging Face hub: Parquet shards of encoded images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lltopo.errors import InputError
from lltopo.study_data import ParquetData

_MODES = ("L", "RGB", "RGBA")


def image_shards(
    data: ParquetData, prefixes: tuple[str, ...]
) -> tuple[NDArray[np.uint8], list[Any]]:
    """Read the images and labels of one split, all its shards in their order.

    Parameters
    ----------
    data
        Names the folder and its columns.
    prefixes
        Of the split's files; the first that there is any of.

    Returns
    -------
    images, labels
        (n, channels, height, width) uint8, and as many values of the label column.

    Raises
    ------
    InputError
        For a missing folder, file or column, a cell that is no image, images of several shapes.
    """
    folder = Path(data.path)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: data.path is missing: expected a folder of Parquet files. Mend data.path."
        )
    shards = next((found for p in prefixes if (found := sorted(folder.glob(f"{p}-*.parquet")))), [])
    if not shards:
        names = " or ".join(f"{prefix}-*.parquet" for prefix in prefixes)
        raise InputError(f"{folder}: holds no {names}. Give the folder with both splits.")
    n = sum(map(_n_rows, shards))
    if n == 0:
        raise InputError(f"{folder}: holds no images in {shards[0].name}. Add some.")
    # decoded into place: a list of all and its stack would need the memory twice
    images = np.empty((n, 0), np.uint8)
    labels = []
    rows = (row for shard in shards for row in _rows(shard, data))
    for i, (pixels, label) in enumerate(rows):
        if i == 0:
            images = np.empty((n, *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"{folder}: images differ in shape: expected one for all, got "
                f"{sorted([pixels.shape, images.shape[1:]])}. Resize them first."
            )
        images[i] = pixels
        labels.append(label)
    return images, labels


def _n_rows(shard: Path) -> int:
    try:
        return int(pq.read_metadata(shard).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(str(shard), error) from error


def _rows(shard: Path, data: ParquetData) -> Iterator[tuple[NDArray[np.uint8], Any]]:
    """Yield each image and its label."""
    try:
        file = pq.ParquetFile(shard)
        image_column = data.image_column or _image_column(shard, file.schema_arrow)
        columns = [image_column, data.label_column]
        for column in columns:
            if column not in file.schema_arrow.names:
                raise InputError(
                    f"{shard}: {column}: no such column: expected one of "
                    f"{file.schema_arrow.names}. Set data.image_column or data.label_column."
                )
        for batch in file.iter_batches(1024, columns=columns):
            for cell, label in zip(*(batch[name] for name in columns), strict=True):
                yield _pixels(cell.as_py(), shard), label.as_py()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(str(shard), error) from error


def _image_column(shard: Path, schema: pa.Schema) -> str:
    for column in schema:
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            return str(column.name)
    raise InputError(
        f"{shard}: no image column: expected a struct with 'bytes', got {schema.names}. "
        "Set data.image_column."
    )


def _pixels(cell: Any, shard: Path) -> NDArray[np.uint8]:
    try:
        image: Image.Image = Image.open(io.BytesIO(cell["bytes"]))
        if image.mode == "P":
            image = image.convert("RGB")
        if image.mode not in _MODES:
            raise InputError(
                f"{shard}: holds an image of mode {image.mode}: expected one of "
                f"{', '.join(_MODES)} or P, 8 bits a channel. Convert it first."
            )
        pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError, TypeError, SyntaxError) as error:
        raise InputError(f"{shard}: holds a cell that is no image. Mend the file.") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def unreadable(path: str, error: Exception) -> InputError:
    """Say that a data set's file cannot be read, and why."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return InputError(f"{path}: cannot be read: {reason}. Mend data.path.")
