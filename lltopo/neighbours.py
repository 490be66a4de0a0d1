"""Nearest neighbours, as exact as brute force at the price of half a matrix product.

Exact search multiplies blocks of centred float32 features, each pair of blocks once. A product
gives a certified lower bound of each squared distance (Higham 2002, section 3.1: a dot product
of length d is wrong by at most d u / (1 - d u) times the norms). The few vertices with the
smallest bounds are ranked again by their true distances on the raw values; where the last
bound kept does not lie beyond the k-th true distance, the row is searched again without bounds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from lltopo.arrays import read_only
from lltopo.errors import InputError

SPARE_CANDIDATES = 8  # beyond k: how many bounds are kept for the exact ranking
TILE = 2048  # rows and columns of a product: 16 MiB, which stays in a shared cache
CHUNK = 64  # products that are compared before any is looked at singly
EXACT_WITHIN = 3e14  # n * n * d up to which "auto" searches exactly: half an hour on two cores
LARGEST_FEATURE = 1e150  # beyond it a squared distance may overflow

Progress = Callable[[float], None]


class Neighbours(NamedTuple):
    """Each vertex's k nearest others, by ascending (distance, index).

    Attributes
    ----------
    indices : (n, k) int32
    distances : (n, k) float64
        Euclidean, on the raw values.
    """

    indices: NDArray[np.int32]
    distances: NDArray[np.float64]


def nearest_neighbours(
    features: ArrayLike, k: int = 20, method: str = "auto", progress: Progress | None = None
) -> Neighbours:
    """Find every vertex's k nearest others; the vertex itself is excluded, ties go by index.

    Parameters
    ----------
    features, k, progress
        As for `knn_graph`.
    method : {"auto", "exact", "nndescent"}
        ``exact``: n^2 d / 2 multiply-adds in float32 and 4 n d bytes. ``nndescent``: Dong,
        Moses and Li (2011) by pynndescent, seeded, its candidates ranked by true distance;
        `neighbour_recall` measures what it missed. ``auto``: exact until n^2 d exceeds
        `EXACT_WITHIN` (n of some 300,000 for 3,072 features).

    Returns
    -------
    Neighbours
        For float features a distance is a float64 sum in the order that the compiler chose,
        and two distances within its rounding may come in either order.

    Raises
    ------
    InputError
        As for `knn_graph`.
    """
    rows = _feature_rows(features, k)
    report = progress or _no_progress
    if search_method(rows.shape, method) == "exact":
        return _exact_neighbours(rows, k, report)
    return _descent_neighbours(rows, k, report)


def search_method(shape: tuple[int, ...], method: str) -> str:
    """Return the search, ``exact`` or ``nndescent``, that `method` means for (n, d) features.

    Raises
    ------
    InputError
        If the method is none of auto, exact and nndescent.
    """
    n, d = shape
    if method not in ("auto", "exact", "nndescent"):
        raise InputError(
            f"method: unknown: expected auto, exact or nndescent, got {method!r}. Name one of them."
        )
    if method == "auto":
        return "exact" if float(n) * n * d <= EXACT_WITHIN else "nndescent"
    return method


def neighbour_recall(
    features: ArrayLike, indices: NDArray[np.integer[Any]], n_rows: int = 500, seed: int = 0
) -> float:
    """Measure which fraction of the true nearest neighbours a search has found.

    Parameters
    ----------
    features : (n, ...) array
        As for `knn_graph`.
    indices : (n, k) array of integers
        The neighbours found.
    n_rows : int
        So many rows, drawn without repetition with `seed`, are searched exactly.

    Returns
    -------
    float
        From 0 to 1, over all k neighbours of the rows drawn.
    """
    k = indices.shape[1]
    rows = _feature_rows(features, k)
    n = len(rows)
    drawn = np.random.default_rng(seed).choice(n, size=min(n_rows, n), replace=False)
    truth = _search_rows(rows, drawn, k).indices
    return float(
        np.mean([np.isin(t, indices[v]).mean() for t, v in zip(truth, drawn, strict=True)])
    )


def _feature_rows(features: ArrayLike, k: int) -> NDArray[Any]:
    """Return the features as a contiguous, read-only (n, d) array of uint8, float32 or float64."""
    array = np.asarray(features)
    if array.ndim < 2 or array.size == 0 or array.dtype.kind not in "buif":
        raise InputError(
            "features: wrong array: expected real numbers of shape (n, d), neither of them 0, "
            f"got shape {array.shape} of {array.dtype}. Give one row a sample."
        )
    n = len(array)
    if not 1 <= k < n:
        raise InputError(
            f"k: out of range: expected 1 to {n - 1} for {n} samples, got {k}. "
            "Ask for fewer neighbours than there are other samples."
        )
    if array.dtype in (np.bool_, np.uint8):
        dtype: type = np.uint8
    elif array.dtype in (np.float32, np.float16, np.int8, np.int16, np.uint16):
        dtype = np.float32
    else:
        dtype = np.float64
    rows: NDArray[Any] = np.ascontiguousarray(array.reshape(n, -1), dtype)
    if dtype != np.uint8:
        largest = max(-float(rows.min()), float(rows.max()))  # NaN if there is one
        if not largest < LARGEST_FEATURE:
            raise InputError(
                f"features: not finite or too large: expected |x| < {LARGEST_FEATURE:g}, "
                f"got {largest}. Clean or scale the features."
            )
    return read_only(rows)


def _no_progress(fraction: float) -> None:
    """Report to nobody."""


# -- exact search ---------------------------------------------------------------------------


class _Candidates(NamedTuple):
    """For each vertex the smallest lower bounds so far, ascending, and whose they are."""

    bounds: NDArray[np.float32]  # (n, width): halved squared distances, scaled
    ids: NDArray[np.int32]  # (n, width)
    limit: NDArray[np.float32]  # (n,): the last bound of each row, side by side


class _Centred(NamedTuple):
    """Features moved to their mean and scaled to at most 1, as the products take them."""

    rows: NDArray[np.float32]  # (n, d)
    half_norms: NDArray[np.float32]  # (n,): |row|^2 / 2 less the rounding it may be blamed for
    scale: float  # one unit of `rows` in raw values


def _exact_neighbours(rows: NDArray[Any], k: int, progress: Progress) -> Neighbours:
    n, d = rows.shape
    centred = _centred(rows)
    candidates = _candidates(centred, min(k + SPARE_CANDIDATES, n - 1), progress)
    found = _ranked(rows, candidates.ids, k)
    farthest = found.distances[:, -1] ** 2 * (1 + (d + 8) * np.finfo(np.float64).eps)
    doubtful = np.flatnonzero(~(farthest / (2 * centred.scale**2) < candidates.limit))
    _search_again(found, rows, doubtful)
    progress(1.0)
    return found


def _centred(rows: NDArray[Any]) -> _Centred:
    """Centre and scale the features, with the norms that make every bound a lower one."""
    n, d = rows.shape
    mean = rows.mean(axis=0, dtype=np.float64)
    reach = float(max(np.max(rows.max(axis=0) - mean), np.max(mean - rows.min(axis=0))))
    scale = 2.0 ** math.ceil(math.log2(reach)) if reach > 0 else 1.0
    centred = np.empty((n, d), np.float32)
    norms = np.empty(n)
    for start in range(0, n, TILE):
        part = slice(start, start + TILE)
        centred[part] = (rows[part] - mean) / scale
        norms[part] = np.einsum("ij,ij->i", centred[part], centred[part], dtype=np.float64)
    # d roundings of the product; 16 for the cast, the norms and the sums; then what underflows
    blame = (d + 16) * float(np.finfo(np.float32).eps) / 2
    shrunk = norms * (1 - blame / max(1 - blame, 1e-9)) / 2 - d * np.finfo(np.float32).tiny
    return _Centred(centred, shrunk.astype(np.float32), scale)


def _candidates(centred: _Centred, width: int, progress: Progress) -> _Candidates:
    """Keep each vertex's `width` smallest bounds; every product serves its rows and columns."""
    n = len(centred.rows)
    candidates = _Candidates(
        np.full((n, width), np.inf, np.float32),
        np.full((n, width), n, np.int32),
        np.full(n, np.inf, np.float32),
    )
    products = np.empty((TILE, TILE), np.float32)
    for top in range(0, n, TILE):
        upper = centred.rows[top : top + TILE]
        for left in range(top, n, TILE):
            lower = centred.rows[left : left + TILE]
            product = products.ravel()[: len(upper) * len(lower)].reshape(len(upper), len(lower))
            np.matmul(upper, lower.T, out=product)
            corner = (top, left)
            _for_parts(_offer_to_rows, len(upper), candidates, centred.half_norms, product, corner)
            if left > top:
                _for_parts(
                    _offer_to_columns, len(lower), candidates, centred.half_norms, product, corner
                )
        progress(1 - (max(n - top - TILE, 0) / n) ** 2)
    return candidates


def _for_parts(kernel: Callable[..., None], n_rows: int, *arguments: Any) -> None:
    """Run ``kernel(*arguments, first, last)`` over all rows, a thread a core."""
    n_threads = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    ends = np.linspace(0, n_rows, min(n_threads, n_rows) + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(n_threads) as pool:
        tasks = [pool.submit(kernel, *arguments, first, last) for first, last in pairwise(ends)]
    for task in tasks:
        task.result()


@njit(cache=True, nogil=True)
def _offer_to_rows(candidates, half_norms, product, corner, first, last):  # type: ignore[no-untyped-def]
    """Offer the columns of a product as neighbours to its rows ``first .. last - 1``."""
    top, left = corner
    n_columns = product.shape[1]
    for i in range(first, last):
        v = top + i
        for start in range(0, n_columns, CHUNK):
            stop = min(start + CHUNK, n_columns)
            limit = candidates.limit[v]
            n_close = 0
            for j in range(start, stop):
                n_close += half_norms[v] + half_norms[left + j] - product[i, j] < limit
            if n_close == 0:
                continue
            for j in range(start, stop):
                bound = half_norms[v] + half_norms[left + j] - product[i, j]
                if bound < candidates.limit[v] and left + j != v:
                    _insert(candidates.bounds[v], candidates.ids[v], bound, left + j)
                    candidates.limit[v] = candidates.bounds[v, -1]


@njit(cache=True, nogil=True)
def _offer_to_columns(candidates, half_norms, product, corner, first, last):  # type: ignore[no-untyped-def]
    """Offer the rows of a product as neighbours to its columns ``first .. last - 1``."""
    top, left = corner
    for i in range(product.shape[0]):
        for start in range(first, last, CHUNK):
            stop = min(start + CHUNK, last)
            n_close = 0
            for j in range(start, stop):
                bound = half_norms[top + i] + half_norms[left + j] - product[i, j]
                n_close += bound < candidates.limit[left + j]
            if n_close == 0:
                continue
            for j in range(start, stop):
                v = left + j
                bound = half_norms[top + i] + half_norms[v] - product[i, j]
                if bound < candidates.limit[v]:
                    _insert(candidates.bounds[v], candidates.ids[v], bound, top + i)
                    candidates.limit[v] = candidates.bounds[v, -1]


@njit(cache=True, nogil=True)
def _insert(keys, ids, key, vertex):  # type: ignore[no-untyped-def]
    """Insert into a row sorted by (key, id); its last entry falls out."""
    i = len(keys) - 1
    while i > 0 and (key < keys[i - 1] or (key == keys[i - 1] and vertex < ids[i - 1])):
        keys[i] = keys[i - 1]
        ids[i] = ids[i - 1]
        i -= 1
    keys[i] = key
    ids[i] = vertex


# -- ranking by true distances --------------------------------------------------------------


def _ranked(rows: NDArray[Any], candidates: NDArray[np.int32], k: int) -> Neighbours:
    """Rank each row's candidates by their true distances and keep k."""
    n = len(rows)
    found = Neighbours(np.full((n, k), n, np.int32), np.full((n, k), np.inf))
    _for_parts(_rank_rows, n, rows, read_only(candidates), found)
    return found


def _search_again(found: Neighbours, rows: NDArray[Any], doubtful: NDArray[np.int64]) -> None:
    """Replace what was found for some rows by the result of an exhaustive search."""
    if len(doubtful):
        truth = _search_rows(rows, doubtful, found.indices.shape[1])
        found.indices[doubtful] = truth.indices
        found.distances[doubtful] = truth.distances


def _search_rows(rows: NDArray[Any], chosen: NDArray[np.int64], k: int) -> Neighbours:
    """Rank all vertices for each of the chosen ones: n d additions in float64 a row."""
    n = len(rows)
    found = Neighbours(np.full((len(chosen), k), n, np.int32), np.full((len(chosen), k), np.inf))
    _for_parts(_rank_all, len(chosen), rows, read_only(chosen), found)
    return found


@njit(cache=True, nogil=True)
def _rank_rows(rows, candidates, found, first, last):  # type: ignore[no-untyped-def]
    for v in range(first, last):
        for u in candidates[v]:
            _rank(rows, v, u, found.distances[v], found.indices[v])
        for j in range(found.distances.shape[1]):
            found.distances[v, j] = math.sqrt(found.distances[v, j])


@njit(cache=True, nogil=True)
def _rank_all(rows, chosen, found, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        for u in range(len(rows)):
            _rank(rows, chosen[i], u, found.distances[i], found.indices[i])
        for j in range(found.distances.shape[1]):
            found.distances[i, j] = math.sqrt(found.distances[i, j])


@njit(cache=True, nogil=True)
def _rank(rows, v, u, squared, ids):  # type: ignore[no-untyped-def]
    """Take u among the nearest of v if it is one: by squared distance, then by index."""
    if u == v:
        return
    distance = _squared_distance(rows[v], rows[u])
    if distance < squared[-1] or (distance == squared[-1] and u < ids[-1]):
        _insert(squared, ids, distance, u)


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _squared_distance(a, b):  # type: ignore[no-untyped-def]
    """Sum in float64, exact for integers; free order lets the compiler use wide registers."""
    total = 0.0
    for i in range(len(a)):
        difference = np.float64(a[i]) - np.float64(b[i])
        total += difference * difference
    return total


# -- approximate search ---------------------------------------------------------------------


def _descent_neighbours(rows: NDArray[Any], k: int, progress: Progress) -> Neighbours:
    """Take NN-descent's answer to a wider question, and rank that by true distances."""
    from pynndescent import NNDescent

    width = min(2 * k + SPARE_CANDIDATES, len(rows) - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
        index = NNDescent(_centred(rows).rows, n_neighbors=width + 1, random_state=0)
        candidates = np.ascontiguousarray(index.neighbor_graph[0], np.int32)
    progress(0.9)
    found = _ranked(rows, candidates, k)
    _search_again(found, rows, np.flatnonzero((candidates < 0).any(axis=1)))  # rows left short
    progress(1.0)
    return found
