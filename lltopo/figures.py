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

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from lltopo.heatmaps import (
    Scale,
    asinh_span,
    axis_ticks,
    common_scale,
    finite_extent,
    heatmap_counts,
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLOUR_MAP = "viridis"
DECADES = 50.0  # a larger ratio of largest to smallest value gets a logarithmic axis


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts will not overlap."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), layout=layout)


def plot_diagram(dgm: ArrayLike, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the points of a persistence diagram and the diagonal.

    Parameters
    ----------
    dgm : (m, 2) array
        Birth and death of either tree, in units of the loss. Points of an infinite death are
        drawn as triangles at the edge.
    label : str, optional
        Of the points, for a legend.
    ax : Axes, optional
        Where to draw; a new figure's by default (``ax.figure.savefig`` writes it).

    Returns
    -------
    Axes
    """
    ax = ax if ax is not None else new_figure(4.2, 4).subplots()
    points = np.asarray(dgm, dtype=np.float64).reshape(-1, 2)
    finite = np.isfinite(points).all(axis=1)
    (drawn,) = ax.plot(*points[finite].T, "o", markersize=4, alpha=0.6, label=label)
    low, high = finite_extent([points])
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
    dgm : (m, 2) array
        Birth and death of either tree, in units of the loss. Infinite points cannot be binned;
        the plot says how many there are.
    scale : Scale, optional
        What compared heatmaps share, from `common_scale`; this diagram's own by default.
    colorbar : bool
        Whether to explain the colours beside the plot.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If `dgm` is no diagram.
    """
    ax = ax if ax is not None else new_figure(4.8, 4).subplots()
    scale = scale if scale is not None else common_scale([dgm])
    counts = heatmap_counts(dgm, scale)
    edges = scale.linear_width * np.sinh(np.linspace(*asinh_span(scale), scale.bins + 1))
    norm = LogNorm(1, max(scale.fullest, 2))
    ax.set_xscale("asinh", linear_width=scale.linear_width)
    ax.set_yscale("asinh", linear_width=scale.linear_width)
    ax.pcolormesh(
        edges, edges, np.ma.masked_equal(counts.T, 0), cmap=COLOUR_MAP, norm=norm, rasterized=True
    )
    if colorbar:
        plot_colorbar([ax])
    ends = [edges[0], edges[-1]]
    ax.plot(ends, ends, color="0.5", linewidth=0.8, scalex=False, scaley=False)
    ax.set(xlabel="birth (loss)", ylabel="death (loss)", xlim=ends, ylim=ends, box_aspect=1)
    ticks = axis_ticks(scale)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_ticks([], minor=True)
    n_infinite = int((~np.isfinite(np.asarray(dgm, dtype=np.float64))).any(axis=-1).sum())
    if n_infinite:
        write_note(ax, f"{n_infinite} infinite not drawn", y=0.93)
    return ax


def plot_colorbar(axes: Sequence[Axes]) -> Axes:
    """Explain the colours of heatmaps by a bar beside them.

    Parameters
    ----------
    axes : sequence of Axes
        Drawn by `plot_heatmap` on one scale.

    Returns
    -------
    Axes
        The bar's.
    """
    heatmap = axes[0].collections[0]
    fullest = int(heatmap.get_clim()[1] or 1)
    ticks = [1, *(10**k for k in range(1, 7) if 10**k < fullest / 2), fullest]
    bar = axes[0].figure.colorbar(
        heatmap, ax=list(axes), label="points in a bin", ticks=ticks, format="{x:.0f}"
    )
    bar.minorticks_off()
    drawn: Axes = bar.ax
    return drawn


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
    epoch, value : (n,) array
    label : str, optional
        For the legend.
    style : int
        Number of the colour, line style and marker: another one for each line of a plot.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes
    """
    ax = ax if ax is not None else new_figure(6, 3.6).subplots()
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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(visible=True, color="0.9", linewidth=0.6)
    return ax


def plot_milestones(epochs: Iterable[int], *, color: str = "0.35", ax: Axes) -> Axes:
    """Mark changes of the learning rate in a series by dotted lines.

    Parameters
    ----------
    epochs : iterable of int
        The first epoch with each new rate; the line stands half an epoch before it.
    color : str
    ax : Axes
        Of the series.

    Returns
    -------
    Axes
    """
    for n, epoch in enumerate(sorted(epochs)):
        label = "rate changes" if n == 0 else None
        ax.axvline(epoch - 0.5, color=color, linestyle=(0, (1, 2)), linewidth=1.3, label=label)
    return ax


def plot_lost_epochs(
    epochs: Sequence[int], *, label: str | None = None, style: int = 0, ax: Axes
) -> Axes:
    """Mark epochs that have no value (a run that diverged) with crosses on the lower edge.

    Parameters
    ----------
    epochs : sequence of int
    label : str, optional
        For the legend.
    style : int
        That of the run's line in `plot_series`.
    ax : Axes
        Of the series.

    Returns
    -------
    Axes
    """
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
    """Draw a matrix of correlations, each written in its cell.

    Parameters
    ----------
    values : (n_rows, n_columns) array
        From -1 to 1; NaN where there is none.
    rows, columns : sequence of str
        Their names.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes
    """
    if ax is None:
        ax = new_figure(1.4 + 1.1 * len(columns), 0.8 + 0.32 * len(rows)).subplots()
    matrix = np.asarray(values, dtype=np.float64)
    ax.imshow(np.ma.masked_invalid(matrix), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    for (i, j), value in np.ndenumerate(matrix):
        text = f"{round(value, 2) + 0.0:.2f}" if np.isfinite(value) else "–"
        color = "white" if abs(value) > 0.6 else "black"
        written = ax.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
        written.set_in_layout(False)
    return ax


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
    """A figure as PNG of 256 colours: the same bytes every time, with no date or version.

    Parameters
    ----------
    figure : Figure
    dpi : int
        Pixels an inch.

    Returns
    -------
    bytes
    """
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png")
    return buffer.getvalue()
