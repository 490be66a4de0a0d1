"""Arrays to figures: diagrams, heatmaps, series and correlations.

Every ``plot_*`` function draws into any matplotlib ``Axes`` and returns it. None touches pyplot,
so nothing is shown and no global state is left behind; :func:`png_bytes` turns a figure into the
same bytes every time.

The colours are Okabe and Ito's (2008), which the colour-blind can tell apart; line styles and
markers say the same once more.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from lltopo.diagrams import persistence_histogram

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLOUR_MAP = "viridis"
DECADES = 50.0  # a larger ratio of largest to smallest value gets a logarithmic axis


class Scale(NamedTuple):
    """What compared heatmaps share: bins a side, the range of both axes, the fullest bin."""

    bins: int
    low: float
    high: float
    fullest: int


def plot_diagram(dgm: ArrayLike, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the points of a persistence diagram and the diagonal.

    Parameters
    ----------
    dgm
        (m, 2) birth and death. Points of an infinite death are drawn as triangles at the edge.
    label
        Of the points, for a legend.
    ax
        Where to draw; a new figure's by default (``ax.figure.savefig`` writes it).
    """
    ax = ax if ax is not None else Figure(figsize=(4.2, 4), layout="constrained").subplots()
    points = np.asarray(dgm, dtype=np.float64).reshape(-1, 2)
    finite = np.isfinite(points).all(axis=1)
    (drawn,) = ax.plot(*points[finite].T, "o", markersize=4, alpha=0.6, label=label)
    low, high = _extent([points])
    for birth, death in points[~finite]:
        edge, marker = (high, "^") if death > 0 else (low, "v")
        ax.plot(birth, edge, marker, color=drawn.get_color(), markersize=7)
    ax.axline((low, low), slope=1, color="0.5", linewidth=0.8)
    ax.set(xlabel="birth (loss)", ylabel="death (loss)", aspect="equal")
    return ax


def plot_heatmap(
    dgm: ArrayLike, *, scale: Scale | None = None, colorbar: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw a persistence diagram as a 2-D histogram of its points, counts on a log scale.

    Parameters
    ----------
    dgm
        (m, 2) birth and death. Infinite points cannot be binned; the plot says how many.
    scale
        What compared heatmaps share, from :func:`common_scale`; this diagram's own by default.
    colorbar
        Whether to explain the colours beside the plot.
    ax
        Where to draw; a new figure's by default.
    """
    ax = ax if ax is not None else Figure(figsize=(4.8, 4), layout="constrained").subplots()
    scale = scale if scale is not None else common_scale([dgm])
    counts = heatmap_counts(dgm, scale)
    edges = np.linspace(scale.low, scale.high, scale.bins + 1)
    norm = LogNorm(1, max(scale.fullest, 2))
    image = ax.pcolormesh(
        edges, edges, np.ma.masked_equal(counts.T, 0), cmap=COLOUR_MAP, norm=norm, rasterized=True
    )
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="points in a bin")
    ax.axline((scale.low, scale.low), slope=1, color="0.5", linewidth=0.8)
    ax.set(
        xlabel="birth (loss)",
        ylabel="death (loss)",
        xlim=(scale.low, scale.high),
        ylim=(scale.low, scale.high),
        aspect="equal",
    )
    n_infinite = int((~np.isfinite(np.asarray(dgm, dtype=np.float64))).any(axis=-1).sum())
    if n_infinite:
        write_note(ax, f"{n_infinite} infinite not drawn", y=0.93)
    return ax


def plot_series(
    epoch: ArrayLike,
    value: ArrayLike,
    *,
    label: str | None = None,
    style: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw one measure by epoch as a line with markers; it breaks where the value is NaN.

    Parameters
    ----------
    epoch, value
        (n,) arrays.
    label
        For the legend.
    style
        Number of the colour, line style and marker: another one for each line of a plot.
    ax
        Where to draw; a new figure's by default.
    """
    ax = ax if ax is not None else Figure(figsize=(6, 3.6), layout="constrained").subplots()
    x = np.asarray(epoch, dtype=np.float64)
    ax.plot(
        x,
        np.asarray(value, dtype=np.float64),
        color=COLOURS[style % len(COLOURS)],
        linestyle=LINES[style % len(LINES)],
        marker=MARKERS[style % len(MARKERS)],
        markersize=4,
        markevery=max(1, len(x) // 25),
        linewidth=1.6,
        label=label,
    )
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(visible=True, color="0.9", linewidth=0.6)
    return ax


def plot_milestones(epochs: Iterable[int], *, color: str = "0.35", ax: Axes) -> Axes:
    """Mark changes of the learning rate in a series, each just before the first epoch with the
    new rate."""
    for n, epoch in enumerate(sorted(epochs)):
        label = "rate changes" if n == 0 else None
        ax.axvline(epoch - 0.5, color=color, linestyle=(0, (1, 2)), linewidth=1.3, label=label)
    return ax


def plot_lost_epochs(
    epochs: Sequence[int], *, label: str | None = None, style: int = 0, ax: Axes
) -> Axes:
    """Mark epochs that have no value (a run that diverged) with crosses on the lower edge."""
    ax.plot(
        epochs,
        np.full(len(epochs), 0.04),
        "x",
        color=COLOURS[style % len(COLOURS)],
        markersize=7,
        markeredgewidth=2,
        transform=ax.get_xaxis_transform(),
        label=label,
    )
    return ax


def plot_matrix(
    values: ArrayLike, rows: Sequence[str], columns: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Draw a (rows, columns) matrix of correlations, -1 to 1, each written in its cell."""
    if ax is None:
        size = (1.4 + 1.1 * len(columns), 0.8 + 0.32 * len(rows))
        ax = Figure(figsize=size, layout="constrained").subplots()
    matrix = np.asarray(values, dtype=np.float64)
    ax.imshow(np.ma.masked_invalid(matrix), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    for (i, j), value in np.ndenumerate(matrix):
        text = f"{value:.2f}" if np.isfinite(value) else "–"
        color = "white" if abs(value) > 0.6 else "black"
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
    return ax


def common_scale(dgms: Iterable[ArrayLike], bins: int = 40) -> Scale:
    """The bins, axes and colours that heatmaps of these diagrams share."""
    arrays = [np.asarray(dgm, dtype=np.float64).reshape(-1, 2) for dgm in dgms]
    low, high = _extent(arrays)
    scale = Scale(bins, low, high, 1)
    fullest = max((int(heatmap_counts(dgm, scale).max()) for dgm in arrays), default=1)
    return scale._replace(fullest=max(fullest, 1))


def heatmap_counts(dgm: ArrayLike, scale: Scale) -> NDArray[np.int64]:
    """(bins, bins) numbers of a diagram's points, births along the first axis."""
    span = (scale.low, scale.high)
    return persistence_histogram(dgm, scale.bins, (span, span))


def fit_value_axis(ax: Axes) -> Axes:
    """Make the value axis logarithmic where the lines drawn so far span decades.

    Zero, such as the distance of the reference to itself, has no place on a logarithmic axis:
    it gets a linear piece between zero and the smallest value.
    """
    drawn = np.concatenate([np.zeros(0), *(line.get_ydata() for line in ax.get_lines())])
    drawn = drawn[np.isfinite(drawn)]
    above = drawn[drawn > 0]
    if len(above) and above.max() > DECADES * above.min():
        if len(above) == len(drawn):
            ax.set_yscale("log")
        else:
            ax.set_yscale("symlog", linthresh=float(above.min()))
    return ax


def write_note(ax: Axes, text: str, y: float = 0.5) -> None:
    """Write a few words into the middle of a plot, ``y`` of its height up."""
    ax.text(
        0.5,
        y,
        textwrap.fill(text, 28),
        transform=ax.transAxes,
        ha="center",
        va="center",
        fontsize="small",
        parse_math=False,
    )


def short_name(name: str) -> str:
    """A name that fits into a legend."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def png_bytes(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as PNG: the same bytes every time, as no date or version is put in."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _extent(dgms: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The range of all finite births and deaths, never empty."""
    values = np.concatenate([np.zeros(0), *(dgm.ravel() for dgm in dgms)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
