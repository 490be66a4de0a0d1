"""Candidates for nearest neighbours: the vertices with the smallest bounds of their distances.

Centred float32 features are multiplied block by block. A product gives a certified lower bound of
each squared distance (Higham 2002, section 3.1: a dot product of length d is wrong by at most
d u / (1 - d u) times the norms), in whatever order it was added up. Of each vertex the few others
with the smallest bounds are kept; all the rest lie at least as far as the last bound kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from lltopo.arrays import read_only

SPARE_CANDIDATES = 8  # beyond k: how many bounds are kept for the exact ranking
TILE = 2048  # rows and columns of a product: 16 MiB, which stays in a shared cache
CHUNK = 64  # products that are compared before any is looked at singly
COMPARISON_WORK = 64  # multiply-adds that take as long as comparing a product, with its traffic
N_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

Progress = Callable[[float], None]


class Candidates(NamedTuple):
    """For each of some vertices the smallest lower bounds so far, and whose they are.

    Attributes
    ----------
    bounds : (m, width) float32
        Halved squared distances, in the unit of `Centred`.
    ids : (m, width) int32
    limit : (m,) float32
        The largest bound of each row: no vertex that was seen and is not kept has a smaller one.
    """

    bounds: NDArray[np.float32]
    ids: NDArray[np.int32]
    limit: NDArray[np.float32]


class Centred(NamedTuple):
    """Features moved to their mean and scaled to at most 1, as the products take them.

    Attributes
    ----------
    rows : (n, d) float32
    half_norms : (n,) float32
        ``|row|^2 / 2`` less the rounding it may be blamed for, so that ``half_norms[u] +
        half_norms[v] - rows[u] @ rows[v]`` in float32 exceeds no halved squared distance.
    scale : float
        One unit of `rows` in raw values.
    """

    rows: NDArray[np.float32]
    half_norms: NDArray[np.float32]
    scale: float


def centred(rows: NDArray[Any]) -> Centred:
    """Centre and scale (n, d) features, with the norms that make every bound a lower one."""
    n, d = rows.shape
    mean = rows.mean(axis=0, dtype=np.float64)
    reach = float(max(np.max(rows.max(axis=0) - mean), np.max(mean - rows.min(axis=0))))
    scale = 2.0 ** math.ceil(math.log2(reach)) if reach > 0 else 1.0
    moved = np.empty((n, d), np.float32)
    norms = np.empty(n)
    for start in range(0, n, TILE):
        part = slice(start, start + TILE)
        moved[part] = (rows[part] - mean) / scale
        norms[part] = np.einsum("ij,ij->i", moved[part], moved[part], dtype=np.float64)
    # d roundings of the product; 16 for the cast, the norms and the sums; then what underflows
    blame = (d + 16) * float(np.finfo(np.float32).eps) / 2
    shrunk = norms * (1 - blame / max(1 - blame, 1e-9)) / 2 - d * np.finfo(np.float32).tiny
    return Centred(moved, read_only(shrunk.astype(np.float32)), scale)


def n_candidates(n_vertices: int, k: int) -> int:
    """How many candidates a vertex needs so that k neighbours are mostly decided by the bounds."""
    return min(k + SPARE_CANDIDATES, n_vertices - 1)


def search_work(n_rows: int, n_vertices: int, d: int) -> float:
    """How long it takes to find the candidates of some rows, in multiply-adds.

    Every product takes d of them, and comparing it as long as `COMPARISON_WORK` more.
    """
    return float(n_rows) * n_vertices * (d + COMPARISON_WORK)


def all_candidates(space: Centred, width: int, progress: Progress) -> Candidates:
    """Keep each vertex's `width` smallest bounds; every product serves its rows and columns.

    n^2 d / 2 multiply-adds on all cores.
    """
    n = len(space.rows)
    candidates = _no_candidates(n, width, n)
    products = np.empty((TILE, TILE), np.float32)
    for top in range(0, n, TILE):
        for left in range(top, n, TILE):
            product = _product(space, slice(top, top + TILE), slice(left, left + TILE), products)
            arguments = (space.half_norms, product, (top, left))
            n_rows, n_columns = product.shape
            for_parts(_offer_to_rows, n_rows, _part(candidates, top, n_rows), *arguments)
            if left > top:
                columns = _part(candidates, left, n_columns)
                for_parts(_offer_to_columns, n_columns, columns, *arguments)
        progress(1 - (max(n - top - TILE, 0) / n) ** 2)
    return candidates


def row_candidates(space: Centred, chosen: range, width: int) -> Candidates:
    """Keep the `width` smallest bounds of a block of vertices, on one core.

    ``len(chosen) * n * d`` multiply-adds; the products of other blocks are not needed.
    """
    n = len(space.rows)
    candidates = _no_candidates(len(chosen), width, n)
    products = np.empty((TILE, TILE), np.float32)
    for top in range(chosen.start, chosen.stop, TILE):
        stop = min(top + TILE, chosen.stop)
        rows = _part(candidates, top - chosen.start, stop - top)
        for left in range(0, n, TILE):
            product = _product(space, slice(top, stop), slice(left, left + TILE), products)
            _offer_to_rows(rows, space.half_norms, product, (top, left), 0, stop - top)
    return candidates


def for_parts(
    kernel: Callable[..., None], n_rows: int, *arguments: Any, n_threads: int = N_THREADS
) -> None:
    """Run ``kernel(*arguments, first, last)`` over all rows, a part of them on each thread."""
    ends = np.linspace(0, n_rows, min(n_threads, n_rows) + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(n_threads) as pool:
        tasks = [pool.submit(kernel, *arguments, first, last) for first, last in pairwise(ends)]
    for task in tasks:
        task.result()


def _no_candidates(n_rows: int, width: int, n_vertices: int) -> Candidates:
    return Candidates(
        np.full((n_rows, width), np.inf, np.float32),
        np.full((n_rows, width), n_vertices, np.int32),
        np.full(n_rows, np.inf, np.float32),
    )


def _part(candidates: Candidates, start: int, n_rows: int) -> Candidates:
    part = slice(start, start + n_rows)
    return Candidates(candidates.bounds[part], candidates.ids[part], candidates.limit[part])


def _product(
    space: Centred, rows: slice, columns: slice, products: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Multiply a block of rows with another, in memory that is there."""
    upper, lower = space.rows[rows], space.rows[columns]
    product = products.ravel()[: len(upper) * len(lower)].reshape(len(upper), len(lower))
    return np.matmul(upper, lower.T, out=product)


@njit(cache=True, nogil=True)
def _offer_to_rows(candidates, half_norms, product, corner, first, last):  # type: ignore[no-untyped-def]
    """Offer the columns of a product as neighbours to its rows ``first .. last - 1``."""
    top, left = corner
    column_norms = half_norms[left : left + product.shape[1]]
    for i in range(first, last):
        half_norm = half_norms[top + i]
        for start in range(0, product.shape[1], CHUNK):
            chunk = slice(start, start + CHUNK)
            lowest = _lowest_difference(column_norms[chunk], product[i, chunk])
            if half_norm + lowest >= candidates.limit[i]:
                continue
            for j in range(start, min(start + CHUNK, product.shape[1])):
                bound = half_norm + (column_norms[j] - product[i, j])
                if bound < candidates.limit[i] and left + j != top + i:
                    insert(candidates.bounds[i], candidates.ids[i], bound, left + j)
                    candidates.limit[i] = candidates.bounds[i, -1]


@njit(cache=True, nogil=True)
def _offer_to_columns(candidates, half_norms, product, corner, first, last):  # type: ignore[no-untyped-def]
    """Offer the rows of a product as neighbours to its columns ``first .. last - 1``."""
    top, left = corner
    column_norms = half_norms[left : left + product.shape[1]]
    for i in range(product.shape[0]):
        half_norm = half_norms[top + i]
        for start in range(first, last, CHUNK):
            chunk = slice(start, min(start + CHUNK, last))
            norms, products = column_norms[chunk], product[i, chunk]
            if _lowest_excess(half_norm, norms, products, candidates.limit[chunk]) >= 0:
                continue
            for j in range(start, min(start + CHUNK, last)):
                bound = half_norm + (column_norms[j] - product[i, j])
                if bound < candidates.limit[j]:
                    insert(candidates.bounds[j], candidates.ids[j], bound, top + i)
                    candidates.limit[j] = candidates.bounds[j, -1]


# without signed zeros and NaN a minimum is taken in wide registers
@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _lowest_difference(half_norms, products):  # type: ignore[no-untyped-def]
    """The smallest of some bounds, less the half norm that they share."""
    lowest = np.float32(np.inf)
    for j in range(len(products)):
        difference = half_norms[j] - products[j]
        lowest = difference if difference < lowest else lowest
    return lowest


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _lowest_excess(half_norm, half_norms, products, limits):  # type: ignore[no-untyped-def]
    """By how much some bounds exceed their limits, at least; negative where one is below."""
    lowest = np.float32(np.inf)
    for j in range(len(products)):
        excess = half_norm + (half_norms[j] - products[j]) - limits[j]
        lowest = excess if excess < lowest else lowest
    return lowest


@njit(cache=True, nogil=True)
def insert(keys, ids, key, vertex):  # type: ignore[no-untyped-def]
    """Insert into a row sorted by (key, id); its last entry falls out."""
    i = len(keys) - 1
    while i > 0 and (key < keys[i - 1] or (key == keys[i - 1] and vertex < ids[i - 1])):
        keys[i] = keys[i - 1]
        ids[i] = ids[i - 1]
        i -= 1
    keys[i] = key
    ids[i] = vertex
