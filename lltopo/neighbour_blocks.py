"""The exact nearest-neighbour search of many samples as Ray tasks, a block of rows each.

A task multiplies its rows with all others, so that it needs no other task's products: twice the
multiply-adds of one process, which uses each product for its row and its column, but on all cores
and GPUs of a cluster. Blocks that are done are kept as files until the graph is: after a lost
driver only the rest is searched. The answer is `exact_neighbours`', bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.candidates import (
    Centred,
    Progress,
    centred,
    n_candidates,
    row_candidates,
    search_work,
)
from lltopo.fanout import Call, Need, Outcome, cluster_total, fan_out, shared
from lltopo.neighbours import Neighbours, certified_neighbours, feature_rows
from lltopo.storage import Place, read_bytes, write_bytes

TASK_WORK = 1e12  # multiply-adds: half a minute of a core;
GPU_TASK_WORK = 1e14  # more for a GPU, to which all features go first
FEWEST_ROWS = 256  # of a block: fewer would read all features for little work


def block_neighbours(
    features: ArrayLike, k: int, progress: Progress | None, parts: Place, device: str = "auto"
) -> Neighbours:
    """Find every vertex's k nearest others exactly, on the Ray cluster that is there.

    Parameters
    ----------
    features, k, progress
        As for `lltopo.graph.knn_graph`, whose errors are raised.
    parts
        The folder of the blocks that are done; those of these features and k are not done again.
        Whoever has kept the answer removes it.
    device
        ``cpu`` leaves the cluster's GPUs, where it has any now, to others.

    Raises
    ------
    RuntimeError
        Where a block failed; the others are in the folder.

    Notes
    -----
    n^2 d multiply-adds. The driver holds the features twice (raw, and centred in float32, each
    once a node too) and the answer; a task needs some 10 MB besides.
    """
    rows = feature_rows(features, k)
    n, d = rows.shape
    products = "cuda" if device != "cpu" and cluster_total("GPU") >= 1 else None
    blocks = row_blocks(n, d, TASK_WORK if products is None else GPU_TASK_WORK)
    digest = hashlib.sha256(f"{k} {n} {rows.dtype}".encode())
    digest.update(rows.data)
    files = {
        block: parts / f"{digest.hexdigest()}/{block.start}-{block.stop}.npz" for block in blocks
    }
    found = Neighbours(np.empty((n, k), np.int32), np.empty((n, k)))
    missing, failures = [], []
    for block, file in files.items():
        part = _read_part(file)
        if part is None:
            missing.append(block)
        else:
            _put(found, block, part)
    report = progress or (lambda done: None)
    for outcome in _searched(rows, missing, k, products):
        if outcome.error is not None:
            failures.append(f"neighbours of {outcome.key}: {outcome.error}")
            continue
        _write_part(files[outcome.key], outcome.value)
        _put(found, outcome.key, outcome.value)
        missing.remove(outcome.key)
        report(1 - len(missing) / len(blocks))
    if failures:
        raise RuntimeError(failures[0])
    return found


def row_blocks(n: int, d: int, task_work: float) -> list[range]:
    """Cut n rows of d features into blocks of about equal size, each of about so much work."""
    n_rows = max(task_work / search_work(1, n, d), FEWEST_ROWS)
    ends = np.linspace(0, n, math.ceil(n / n_rows) + 1).astype(np.int64).tolist()
    return [range(first, stop) for first, stop in pairwise(ends)]


def searched_block(
    rows: NDArray[Any], space: Centred, block: range, k: int, device: str | None
) -> Neighbours:
    """Find the k nearest others of a block of rows, on one core or with its products on a device.

    Parameters
    ----------
    rows, space
        All features: raw ones of `feature_rows`, and centred.
    device
        Torch's name of it; None multiplies with numpy.
    """
    width = n_candidates(len(rows), k)
    if device is None:
        candidates = row_candidates(space, block, width)
    else:
        from lltopo.graph_torch import torch_candidates

        candidates = torch_candidates(space, block, width, device)
    chosen = np.arange(block.start, block.stop)
    return certified_neighbours(rows, chosen, candidates, space.scale, k, n_threads=1)


def _searched(
    rows: NDArray[Any], blocks: Sequence[range], k: int, device: str | None
) -> Iterator[Outcome]:
    if not blocks:
        return
    arguments = shared(rows), shared(centred(rows))
    calls = [Call(block, (*arguments, block, k, device)) for block in blocks]
    need = Need() if device is None else Need(gpus=1)
    yield from fan_out(searched_block, iter([calls]), need)


def _put(found: Neighbours, block: range, part: Neighbours) -> None:
    found.indices[block.start : block.stop] = part.indices
    found.distances[block.start : block.stop] = part.distances


def _write_part(target: Place, part: Neighbours) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **part._asdict())
    write_bytes(target, buffer.getvalue())


def _read_part(source: Place) -> Neighbours | None:
    """Read a block; None where it is absent or damaged."""
    try:
        with np.load(io.BytesIO(read_bytes(source)), allow_pickle=False) as file:
            return Neighbours(file["indices"], file["distances"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
