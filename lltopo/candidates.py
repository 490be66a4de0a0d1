"""Candidates for nearest neighbours: the vertices with the smallest bounds of their distances.

Centred float32 features are multiplied block by block. A product gives a certified lower bound of
each squared distance (Higham 2002, section 3.1: a dot product of length d is wrong by at most
d u / (1 - d u) times the norms), in whatever order it was added up. Of each vertex the few others
with the smallest bounds are kept; all the rest lie at least as far as the last bound kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lltopo.arrays import read_only
from lltopo.threads import N_THREADS, on_threads, single_threaded_products

SPARE_CANDIDATES = 8  # beyond k: how many bounds are kept for the exact ranking
TILE = 1024  # rows and columns of a product: 4 MiB a thread, which stay in a cache
CHUNK = 64  # products that are compared before any is looked at singly
COMPARISON_WORK = 64  # multiply-adds that take as long as comparing a product, with its traffic

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

    n^2 d / 2 multiply-adds, on all cores where there are several blocks for each.
    """
    n = len(space.rows)
    candidates = _no_candidates(n, width, n)
    blocks = _blocks(range(n))
    kept = [_part(candidates, block) for block in blocks]
    closed = [Lock() for _ in blocks]
    memory = [np.empty((TILE, TILE), np.float32) for _ in range(N_THREADS)]

    def offer(a: int, b: int) -> None:
        products = memory.pop()
        product = _product(space, blocks[a], blocks[b], products)
        corner = blocks[a].start, blocks[b].start
        with closed[a]:
            if a == b:
                _offer(kept[a], _full(product.shape[1]), space.half_norms, product, corner)
            else:
                with closed[b]:
                    _offer(kept[a], kept[b], space.half_norms, product, corner)
        memory.append(products)

    n_pairs = len(blocks) * (len(blocks) + 1) // 2
    with single_threaded_products():
        for done, _ in enumerate(on_threads(offer, _pairs(len(blocks)), N_THREADS), start=1):
            if done % len(blocks) == 0:
                progress(done / n_pairs)
    return candidates


def row_candidates(space: Centred, chosen: range, width: int) -> Candidates:
    """Keep the `width` smallest bounds of a block of vertices, on one core.

    ``len(chosen) * n * d`` multiply-adds; the products of other blocks are not needed.
    """
    n = len(space.rows)
    candidates = _no_candidates(len(chosen), width, n)
    products = np.empty((TILE, TILE), np.float32)
    for rows in _blocks(chosen):
        kept = _part(candidates, range(rows.start - chosen.start, rows.stop - chosen.start))
        for columns in _blocks(range(n)):
            product = _product(space, rows, columns, products)
            corner = rows.start, columns.start
            _offer(kept, _full(len(columns)), space.half_norms, product, corner)
    return candidates


def _pairs(n_blocks: int) -> Iterator[tuple[int, int]]:
    """Every pair of blocks once, and each with itself, in rounds in which no block is in two pairs.

    So hardly a thread waits for a block that another holds.
    """
    for total in range(n_blocks):
        for a in range(n_blocks):
            b = (total - a) % n_blocks
            if a <= b:
                yield a, b


def _blocks(rows: range) -> list[range]:
    """Cut rows into blocks of `TILE`, the last one perhaps smaller."""
    return [rows[first : first + TILE] for first in range(0, len(rows), TILE)]


def _no_candidates(n_rows: int, width: int, n_vertices: int) -> Candidates:
    return Candidates(
        np.full((n_rows, width), np.inf, np.float32),
        np.full((n_rows, width), n_vertices, np.int32),
        np.full(n_rows, np.inf, np.float32),
    )


def _full(n_rows: int) -> Candidates:
    """Candidates of vertices that take no more."""
    nobody = _no_candidates(n_rows, 1, 0)
    nobody.limit[:] = -np.inf
    return nobody


def _part(candidates: Candidates, rows: range) -> Candidates:
    part = slice(rows.start, rows.stop)
    return Candidates(candidates.bounds[part], candidates.ids[part], candidates.limit[part])


def _product(
    space: Centred, rows: range, columns: range, products: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Multiply a block of rows with another, in memory that is there."""
    upper = space.rows[rows.start : rows.stop]
    lower = space.rows[columns.start : columns.stop]
    product = products.ravel()[: len(upper) * len(lower)].reshape(len(upper), len(lower))
    return np.matmul(upper, lower.T, out=product)


@njit(cache=True, nogil=True)
def _offer(rows, columns, half_norms, product, corner):  # type: ignore[no-untyped-def]
    """Offer the columns of a product as neighbours to its rows, and the rows to its columns."""
    top, left = corner
    n_rows, n_columns = product.shape
    column_norms = half_norms[left : left + n_columns]
    for i in range(n_rows):
        half_norm = half_norms[top + i]
        products = product[i]
        limit = rows.limit[i]
        for start in range(0, n_columns, CHUNK):
            stop = min(start + CHUNK, n_columns)
            part = np.uint64(start), np.uint64(stop)
            if not _any_below(half_norm, column_norms, products, limit, columns.limit, part):
                continue
            for j in range(start, stop):
                bound = half_norm + (column_norms[j] - products[j])
                if bound < limit and left + j != top + i:
                    insert(rows.bounds[i], rows.ids[i], bound, left + j)
                    limit = rows.bounds[i, -1]
                if bound < columns.limit[j]:
                    insert(columns.bounds[j], columns.ids[j], bound, top + i)
                    columns.limit[j] = columns.bounds[j, -1]
        rows.limit[i] = limit


# one bit, unsigned places and no slice: only so are several compared in one instruction
@njit(cache=True, nogil=True)
def _any_below(half_norm, half_norms, products, limit, limits, part):  # type: ignore[no-untyped-def]
    """Say whether some bounds lie below their row's or their column's limit."""
    below = False
    for j in range(*part):
        bound = half_norm + (half_norms[j] - products[j])
        below |= (bound < limit) | (bound < limits[j])
    return below


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
