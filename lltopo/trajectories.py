"""How each run moves through the space of diagrams, seen from its matrix of distances.

The matrix itself as a heatmap, and classical multidimensional scaling (Torgerson 1952): the plane
in which the epochs' mutual distances are kept best, in the sense of their doubly centred squares.
A Wasserstein space is not flat; how much of the squares a plane can hold is said beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lltopo.figures import COLOUR_MAP, COLOURS, LINES, MARKERS, new_figure, short_name
from lltopo.plates import FIELDS, SPLIT_NAMES, TREE_NAMES, Plate
from lltopo.results import Results, Row, matching, orders

Matrix = NDArray[np.float64]


class Scaling(NamedTuple):
    """Points of the plane, (n, 2), and the share of the positive eigenvalues that it holds."""

    points: Matrix
    share: float


def classical_scaling(distances: Matrix) -> Scaling:
    """Lay points out in the plane by their mutual distances.

    Parameters
    ----------
    distances : (n, n) float64
        Symmetric, zero on the diagonal.

    Returns
    -------
    Scaling
        Axes by falling share; the sign of each makes its largest coordinate positive.
    """
    n = len(distances)
    centring = np.eye(n) - 1.0 / max(n, 1)
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    largest = np.argsort(values)[::-1][:2]
    kept = np.maximum(values[largest], 0.0)
    points = np.zeros((n, 2))
    points[:, : len(largest)] = vectors[:, largest] * np.sqrt(kept)
    for axis in range(2 if n else 0):
        points[:, axis] *= np.sign(points[np.abs(points[:, axis]).argmax(), axis]) or 1.0
    total = float(np.maximum(values, 0.0).sum())
    return Scaling(points, float(kept.sum()) / total if total > 0 else 1.0)


def plot_distance_matrix(
    distances: Matrix, lengths: Mapping[str, int], *, ax: Axes | None = None
) -> Axes:
    """Draw a matrix of distances between epochs, run after run.

    Parameters
    ----------
    distances : (n, n) array
    lengths
        Each run's name and how many of the rows are its epochs, in order.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes
    """
    ax = ax if ax is not None else new_figure(5.6, 4.3).subplots()
    image = ax.imshow(distances, cmap=COLOUR_MAP, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="distance (loss)", shrink=0.8)
    ends = np.cumsum(list(lengths.values()))
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="white", linewidth=1.0)
        ax.axvline(end - 0.5, color="white", linewidth=1.0)
    middles = ends - np.array(list(lengths.values())) / 2 - 0.5
    names = [short_name(run) for run in lengths]
    ax.set_xticks(middles, names, parse_math=False)
    ax.set_yticks(middles, names, rotation=90, va="center", parse_math=False)
    ax.tick_params(length=0)
    return ax


def plot_trajectories(
    points: Matrix, epochs: Mapping[str, Sequence[int]], *, ax: Axes | None = None
) -> Axes:
    """Draw each run's way through the plane, its first and last epoch named.

    Parameters
    ----------
    points : (n, 2) array
        Of all runs' epochs, run after run.
    epochs
        Each run's name and epochs, in the order of the points.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes
    """
    ax = ax if ax is not None else new_figure(5.6, 4.3).subplots()
    start = 0
    for i, (run, shown) in enumerate(epochs.items()):
        way = points[start : start + len(shown)]
        start += len(shown)
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(
            *way.T,
            color=colour,
            linestyle=LINES[i % len(LINES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            label=short_name(run),
        )
        for at in {0, len(shown) - 1}:
            ax.annotate(
                str(shown[at]), way[at], xytext=(4, 4), textcoords="offset points", color=colour
            )
    ax.margins(0.1)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="first axis (loss)", ylabel="second axis (loss)")
    ax.grid(visible=True, color="0.9")
    for text in ax.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    return ax


def matrix_plates(results: Results) -> Iterator[Plate]:
    """Matrix and trajectories of each split and tree, where the study asked for distances."""
    for tree, split in FIELDS if results.distances else ():
        for order in orders(results):
            rows = matching(results.distances, split=split, tree=tree, order=order)
            if not rows:
                continue
            keys, distances = distance_matrix_of(rows)
            epochs: dict[str, list[int]] = {}
            for run, epoch in keys:
                epochs.setdefault(run, []).append(epoch)
            scaling = classical_scaling(distances)
            figure = new_figure(5.6, 8.6)
            above, below = figure.subplots(2)
            plot_distance_matrix(distances, {run: len(e) for run, e in epochs.items()}, ax=above)
            plot_trajectories(scaling.points, epochs, ax=below)
            above.set_title("epochs, run after run")
            below.set_title(f"the best plane ({scaling.share:.0%})")
            caption = (
                f"W{order:g} between all epochs of all runs, {TREE_NAMES[tree]}, "
                f"{SPLIT_NAMES[split]}; below: classical scaling, first and last epoch numbered."
            )
            yield Plate("", f"matrix-{split}-{tree}-{order:g}", caption, figure)


def distance_matrix_of(rows: Sequence[Row]) -> tuple[list[tuple[str, int]], Matrix]:
    """Read rows of ``distances.parquet`` of one split, tree and order as a symmetric matrix.

    Returns
    -------
    keys, distances
        (run, epoch) of each row of the matrix, and the (n, n) distances.
    """
    ends = [((r["run_a"], r["epoch_a"]), (r["run_b"], r["epoch_b"])) for r in rows]
    keys = list(dict.fromkeys([first for first, _ in ends] + [last for _, last in ends]))
    index = {key: i for i, key in enumerate(keys)}
    distances = np.zeros((len(keys), len(keys)))
    for (a, b), row in zip(ends, rows, strict=True):
        distances[index[a], index[b]] = distances[index[b], index[a]] = row["distance"]
    return keys, distances
