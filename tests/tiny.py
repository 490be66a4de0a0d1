"""Data and studies so small that a test trains on them in a moment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lltopo.study import Study
from lltopo.study_files import resolved_study

N_TRAIN, N_VAL, N_CLASSES = 60, 25, 3


def tiny_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Images of 1 x 8 x 8 whose class shows in their brightness."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", N_TRAIN), ("val", N_VAL)):
        y = np.arange(n) % N_CLASSES
        noise = rng.integers(0, 120, (n, 1, 8, 8))
        arrays[f"x_{split}"] = (noise + 60 * y[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = y
    return arrays


def tiny_npz(folder: Path, **changed: np.ndarray) -> Path:
    """An .npz of `tiny_arrays`, some of them changed."""
    path = folder / "tiny.npz"
    np.savez(path, **(tiny_arrays() | changed))
    return path


def tiny_raw(folder: Path) -> dict[str, Any]:
    """A study on `tiny_npz` with one run of a small perceptron, as its file would have it."""
    return {
        "data": {"source": "npz", "path": str(tiny_npz(folder))},
        "graph": {"k": 4},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"epochs": 3, "batch_size": 16, "lr": 0.05, "eval_batch_size": 20},
        "runs": {"only": {}},
    }


def tiny_study(folder: Path, **training: Any) -> Study:
    """The study of `tiny_raw`, with some of its training changed."""
    raw = tiny_raw(folder)
    raw["training"] |= training
    return resolved_study(raw, "tiny")


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """An image file of some pixels, perhaps converted."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, images: list[bytes | None], labels: list[int | None]) -> None:
    """One shard; the columns in another order than they are asked for."""
    cells = [None if image is None else {"bytes": image, "path": None} for image in images]
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"note": pa.array(["x"] * len(cells)), "label": pa.array(labels, pa.int64())}
    pq.write_table(pa.table(table | {"img": pa.array(cells, struct_type)}), path, row_group_size=7)
