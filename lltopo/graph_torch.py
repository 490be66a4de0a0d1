"""The exact nearest-neighbour search with its matrix products on a torch device.

The device multiplies, bounds and keeps the smallest bounds (`candidates.py` says what they prove);
the ranking by true distances, and the search again where the bounds do not decide, are
`neighbours.py`'s own. So the answer has the bits of the search without torch. For that the products
must really be float32 ones: TF32 would round every factor to 10 bits of mantissa.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from lltopo.candidates import Candidates, Centred, Progress
from lltopo.neighbours import Neighbours, exact_neighbours

LARGEST_TILE = 16384  # rows and columns of a product: wide enough to keep a large GPU busy
TILE_SHARE = 0.25  # of the free memory, for a tile's products, their bounds and the sorting
BYTES_A_PRODUCT = 16
FEATURES_SHARE = 0.5  # of the free memory, which the features may take
UNASKED_BYTES = 2**30  # taken to be free where a device does not tell


class _Resident(NamedTuple):
    """Centred features as tensors, on the device if they fit, else still on the host."""

    rows: torch.Tensor  # (n, d) float32
    half_norms: torch.Tensor  # (n,) float32


def gpu_device() -> str | None:
    """Return torch's name of the GPU of this machine, None where there is none."""
    return "cuda" if torch.cuda.is_available() else None


def torch_neighbours(
    features: ArrayLike, k: int, progress: Progress | None, device: str
) -> Neighbours:
    """Find every vertex's k nearest others exactly, as `exact_neighbours`, bit for bit.

    Parameters
    ----------
    features, k, progress
        As for `lltopo.graph.knn_graph`, whose errors are raised.
    device : str
        Torch's name of where to multiply: n^2 d multiply-adds in float32, in tiles that fit into
        its free memory.
    """

    def find(space: Centred, width: int, report: Progress) -> Candidates:
        return torch_candidates(space, range(len(space.rows)), width, device, report)

    return exact_neighbours(features, k, progress, find)


def torch_candidates(
    space: Centred,
    chosen: range,
    width: int,
    device: str,
    progress: Progress | None = None,
) -> Candidates:
    """Keep the `width` smallest bounds of a block of vertices, as `row_candidates` does."""
    tile = _tile(device, len(space.rows))
    parts = []
    with torch.inference_mode(), _float32_products():
        resident = _resident(space, device)
        for first in range(chosen.start, chosen.stop, tile):
            rows = range(first, min(first + tile, chosen.stop))
            parts.append(_tile_candidates(resident, rows, width, tile, device))
            if progress is not None:
                progress((rows.stop - chosen.start) / len(chosen))
    return Candidates(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _tile_candidates(
    resident: _Resident, rows: range, width: int, tile: int, device: str
) -> Candidates:
    """Multiply some rows with all others, a tile at a time, and keep the smallest bounds."""
    n = len(resident.rows)
    upper = resident.rows[rows.start : rows.stop].to(device)
    upper_half = resident.half_norms[rows.start : rows.stop].to(device)
    bounds = torch.full((len(rows), width), torch.inf, device=device)
    ids = torch.full((len(rows), width), n, dtype=torch.int32, device=device)
    for left in range(0, n, tile):
        lower = resident.rows[left : left + tile].to(device)
        lower_half = resident.half_norms[left : left + tile].to(device)
        # the very sum whose rounding the half norms have been lessened by
        found = upper_half[:, None] + lower_half
        found -= upper @ lower.T
        found.diagonal(rows.start - left).fill_(torch.inf)  # oneself
        smallest, columns = found.topk(min(width, found.shape[1]), largest=False, sorted=False)
        bounds = torch.cat([bounds, smallest], dim=1)
        ids = torch.cat([ids, (columns + left).to(torch.int32)], dim=1)
        bounds, kept = bounds.topk(width, largest=False, sorted=False)
        ids = ids.gather(1, kept)
    limit = bounds.amax(dim=1)
    return Candidates(bounds.cpu().numpy(), ids.cpu().numpy(), limit.cpu().numpy())


def _resident(space: Centred, device: str) -> _Resident:
    fits = space.rows.nbytes < FEATURES_SHARE * _free_bytes(device)
    where = device if fits else "cpu"
    return _Resident(*(torch.tensor(part, device=where) for part in space[:2]))


def _tile(device: str, n: int) -> int:
    """The side of a square tile whose products take their share of the free memory."""
    side = int((TILE_SHARE * _free_bytes(device) / BYTES_A_PRODUCT) ** 0.5)
    return max(1, min(side, LARGEST_TILE, n))


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return UNASKED_BYTES


@contextmanager
def _float32_products() -> Iterator[None]:
    """Products of float32 in full, for as long as the block lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
