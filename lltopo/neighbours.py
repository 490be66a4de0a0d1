"""Nearest neighbours, as exact as brute force at the price of half a matrix product.

Exact search keeps the few vertices with the smallest certified bounds (`candidates.py`) and ranks
them again by their true distances on the raw values; where the last bound kept does not lie
beyond the k-th true distance, the row is searched again without bounds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from lltopo.arrays import read_only
from lltopo.candidates import (
    Candidates,
    Centred,
    Progress,
    all_candidates,
    centred,
    insert,
    n_candidates,
    search_work,
)
from lltopo.errors import InputError
from lltopo.threads import N_THREADS, for_parts

EXACT_WITHIN = 3e14  # work up to which "auto" searches exactly: half an hour or so on two cores
LARGEST_FEATURE = 1e150  # beyond it a squared distance may overflow


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
        `neighbour_recall` measures what it missed. ``auto``: exact until the work exceeds
        `EXACT_WITHIN` (n of some 300,000 for 3,072 features, 1.5 million for 64).

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
    rows = feature_rows(features, k)
    report = progress or _no_progress
    if search_method(rows.shape, method) == "exact":
        return exact_neighbours(rows, k, report)
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
        return "exact" if search_work(n, n, d) <= EXACT_WITHIN else "nndescent"
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
    rows = feature_rows(features, k)
    n = len(rows)
    drawn = np.random.default_rng(seed).choice(n, size=min(n_rows, n), replace=False)
    truth = _search_rows(rows, drawn, k).indices
    return float(
        np.mean([np.isin(t, indices[v]).mean() for t, v in zip(truth, drawn, strict=True)])
    )


def feature_rows(features: ArrayLike, k: int) -> NDArray[Any]:
    """Return the features as a contiguous, read-only (n, d) array of uint8, float32 or float64.

    Raises
    ------
    InputError
        As for `knn_graph`.
    """
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


def exact_neighbours(
    features: ArrayLike,
    k: int,
    progress: Progress | None = None,
    find_candidates: Callable[[Centred, int, Progress], Candidates] = all_candidates,
) -> Neighbours:
    """Find every vertex's k nearest others exactly: candidates by their bounds, then ranked.

    Parameters
    ----------
    features, k, progress
        As for `knn_graph`, whose errors are raised.
    find_candidates
        Keeps each vertex's smallest bounds, so many as it is told; whichever way it does so, the
        answer is the same bit for bit.
    """
    rows = feature_rows(features, k)
    report = progress or _no_progress
    space = centred(rows)
    candidates = find_candidates(space, n_candidates(len(rows), k), report)
    found = certified_neighbours(rows, np.arange(len(rows)), candidates, space.scale, k)
    report(1.0)
    return found


def certified_neighbours(
    rows: NDArray[Any],
    chosen: NDArray[np.int64],
    candidates: Candidates,
    scale: float,
    k: int,
    n_threads: int = N_THREADS,
) -> Neighbours:
    """Rank the candidates of some vertices exactly, and search again where they do not suffice.

    Parameters
    ----------
    rows : (n, d) array
        Of `feature_rows`.
    chosen : (m,) int64
        The vertices, one a row of `candidates`.
    scale : float
        Of the `Centred` features that the candidates come from.

    Returns
    -------
    Neighbours
        Of the chosen vertices, one a row.
    """
    d = rows.shape[1]
    found = _ranked(rows, chosen, candidates.ids, k, n_threads)
    farthest = found.distances[:, -1] ** 2 * (1 + (d + 8) * np.finfo(np.float64).eps)
    doubtful = np.flatnonzero(~(farthest / (2 * scale**2) < candidates.limit))
    _search_again(found, rows, chosen, doubtful, n_threads)
    return found


# -- ranking by true distances --------------------------------------------------------------


def _ranked(
    rows: NDArray[Any],
    chosen: NDArray[np.int64],
    candidates: NDArray[np.int32],
    k: int,
    n_threads: int,
) -> Neighbours:
    """Rank the candidates of each chosen vertex by their true distances and keep k."""
    found = _nobody(len(chosen), k, len(rows))
    arguments = (rows, read_only(chosen), read_only(candidates), found)
    for_parts(_rank_candidates, len(chosen), *arguments, n_threads=n_threads)
    return found


def _search_again(
    found: Neighbours,
    rows: NDArray[Any],
    chosen: NDArray[np.int64],
    doubtful: NDArray[np.int64],
    n_threads: int,
) -> None:
    """Replace what was found for some of the chosen by the result of an exhaustive search."""
    if len(doubtful):
        truth = _search_rows(rows, chosen[doubtful], found.indices.shape[1], n_threads)
        found.indices[doubtful] = truth.indices
        found.distances[doubtful] = truth.distances


def _search_rows(
    rows: NDArray[Any], chosen: NDArray[np.int64], k: int, n_threads: int = N_THREADS
) -> Neighbours:
    """Rank all vertices for each of the chosen ones: n d additions in float64 a row."""
    found = _nobody(len(chosen), k, len(rows))
    arguments = (rows, read_only(chosen), found)
    for_parts(_rank_all, len(chosen), *arguments, n_threads=n_threads)
    return found


def _nobody(n_rows: int, k: int, n_vertices: int) -> Neighbours:
    return Neighbours(np.full((n_rows, k), n_vertices, np.int32), np.full((n_rows, k), np.inf))


@njit(cache=True, nogil=True)
def _rank_candidates(rows, chosen, candidates, found, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        for u in candidates[i]:
            _rank(rows, chosen[i], u, found.distances[i], found.indices[i])
        for j in range(found.distances.shape[1]):
            found.distances[i, j] = math.sqrt(found.distances[i, j])


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
        insert(squared, ids, distance, u)


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

    width = n_candidates(len(rows), 2 * k)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
        index = NNDescent(centred(rows).rows, n_neighbors=width + 1, random_state=0)
        candidates = np.ascontiguousarray(index.neighbor_graph[0], np.int32)
    progress(0.9)
    everyone = np.arange(len(rows))
    found = _ranked(rows, everyone, candidates, k, N_THREADS)
    left_short = np.flatnonzero((candidates < 0).any(axis=1))
    _search_again(found, rows, everyone, left_short, N_THREADS)
    progress(1.0)
    return found
