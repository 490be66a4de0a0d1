"""What a study's surfaces hold, as rows of ``surfaces.parquet``.

The losses around the trained weights, summed up plane by plane, and how rough each surface is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lltopo.diagrams import total_persistence
from lltopo.schemas import SURFACES
from lltopo.storage import Place
from lltopo.surface_files import (
    Grid,
    PlaneKey,
    file_digest,
    read_surface,
    surface_attributes,
    surface_file,
)
from lltopo.surface_topology import surface_diagrams
from lltopo.tables import footer, write_table

Row = dict[str, Any]


def write_surface_table(out: Place, keys: Sequence[PlaneKey]) -> None:
    """Write the table of these surfaces, unless it is there and of the very same files."""
    digests = {key: file_digest(surface_file(out, key)) for key in keys}
    inputs = json.dumps([[*key, digest] for key, digest in digests.items()])
    target = out / "surfaces.parquet"
    if (footer(target) or {}).get("inputs") == inputs:
        return
    rows = [row for key, digest in digests.items() for row in _rows(out, key, digest)]
    write_table(target, rows, SURFACES, {"inputs": inputs})


def surface_summary(grid: Grid) -> Row:
    """Sum up the losses of one split on a plane.

    Parameters
    ----------
    grid : (n_y, n_x) float64
        Both odd: the trained weights are the middle point.

    Returns
    -------
    dict
        The columns of ``surfaces.parquet`` from ``n_points`` to ``total_persistence_split``.
        Extremes and quartiles are of the finite losses; where one is not finite there is no total
        persistence.
    """
    finite = grid[np.isfinite(grid)]
    names = ("min", "q25", "median", "q75", "max")
    quantiles = np.quantile(finite, np.linspace(0, 1, 5)).tolist() if len(finite) else [None] * 5
    centre = float(grid[grid.shape[0] // 2, grid.shape[1] // 2])
    row: Row = {
        "n_points": grid.size,
        "n_nonfinite": grid.size - len(finite),
        "centre": centre if np.isfinite(centre) else None,
        **dict(zip(names, quantiles, strict=True)),
    }
    if len(finite) == grid.size:
        for tree, dgm in surface_diagrams(grid)._asdict().items():
            row[f"total_persistence_{tree}"] = total_persistence(dgm)
    return row


def _rows(out: Place, key: PlaneKey, digest: str) -> Iterator[Row]:
    source = surface_file(out, key)
    made = surface_attributes(source) or {}
    cosine = made.get("cosine")
    for split, grid in read_surface(source).loss.items():
        common = {**key._asdict(), "split": split, "cosine": cosine, "digest": digest}
        yield common | surface_summary(grid)
