"""Arrays to figures: diagrams, heatmaps, series and correlations.

Every ``plot_*`` function draws into any matplotlib ``Axes`` and returns it. None touches pyplot,
so nothing is shown and no global state is left behind; :func:`png_bytes` turns a figure into the
same bytes every time.

The colours are Okabe and Ito's (2008), which the colour-blind can tell apart; line styles and
markers say the same once more.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lltopo.diagrams import persistence_histogram

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLOUR_MAP = "viridis"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DECADES = 50.0  # a larger ratio of largest to smallest value gets a logarithmic axis


class Scale(NamedTuple):
    """What compared heatmaps share.

    ``bins`` a side; ``low`` and ``high`` ends of both axes; the fullest bin's number of points.
    Bins are of equal width in asinh(loss / ``linear_width``): near zero they are as even as on a
    plain axis, above it as on a logarithmic one, for the losses of a trained network span decades
    and reach zero.
    """

    bins: int
    low: float
    high: float
    linear_width: float
    fullest: int


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts will not overlap."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), layout=layout)


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
    ax = ax if ax is not None else new_figure(4.2, 4).subplots()
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
    ax = ax if ax is not None else new_figure(4.8, 4).subplots()
    scale = scale if scale is not None else common_scale([dgm])
    counts = heatmap_counts(dgm, scale)
    edges = scale.linear_width * np.sinh(np.linspace(*_asinh_span(scale), scale.bins + 1))
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
    """Explain the colours of heatmaps on one scale by a bar beside them."""
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
    epoch, value
        (n,) arrays.
    label
        For the legend.
    style
        Number of the colour, line style and marker: another one for each line of a plot.
    ax
        Where to draw; a new figure's by default.
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


def common_scale(dgms: Iterable[ArrayLike], bins: int = 40) -> Scale:
    """The bins, axes and colours that heatmaps of these diagrams share."""
    arrays = [np.asarray(dgm, dtype=np.float64).reshape(-1, 2) for dgm in dgms]
    low, high = _extent(arrays)
    values = np.abs(np.concatenate([np.zeros(0), *(dgm.ravel() for dgm in arrays)]))
    largest = max(abs(low), abs(high))
    values = values[np.isfinite(values)]
    small = np.quantile(values, 0.1) if len(values) else largest
    width = float(np.clip(small, 1e-6 * largest, largest))
    scale = Scale(bins, low, high, width, 1)
    fullest = max((int(heatmap_counts(dgm, scale).max()) for dgm in arrays), default=1)
    return scale._replace(fullest=max(fullest, 1))


def heatmap_counts(dgm: ArrayLike, scale: Scale) -> NDArray[np.int64]:
    """(bins, bins) numbers of a diagram's points, births along the first axis."""
    points = np.arcsinh(np.asarray(dgm, dtype=np.float64).reshape(-1, 2) / scale.linear_width)
    span = _asinh_span(scale)
    return persistence_histogram(points, scale.bins, (span, span))


def axis_ticks(scale: Scale) -> dict[float, str]:
    """Round values along an axis of a heatmap, not too close to each other, and their labels."""
    decades = range(6, math.floor(math.log10(scale.linear_width)) - 2, -1)
    low, high = _asinh_span(scale)
    ticks: dict[float, str] = {0.0: "0"} if low <= 0 <= high else {}
    for digit, decade, sign in itertools.product((1, 5, 2), decades, (1, -1)):
        tick = sign * digit * 10.0**decade
        place = math.asinh(tick / scale.linear_width)
        gaps = (abs(place - math.asinh(other / scale.linear_width)) for other in ticks)
        if low <= place <= high and all(gap > (high - low) / 5.5 for gap in gaps):
            power = f"10{str(decade).translate(_SUPERSCRIPTS)}"
            short = power if digit == 1 else f"{digit}·{power}"
            ticks[tick] = f"{tick:g}" if -3 < decade < 4 else "−" * (sign < 0) + short
    return ticks


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
    """A figure as PNG of 256 colours: the same bytes every time, with no date or version."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png")
    return buffer.getvalue()


def _extent(dgms: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The range of all finite births and deaths, never empty."""
    values = np.concatenate([np.zeros(0), *(dgm.ravel() for dgm in dgms)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _asinh_span(scale: Scale) -> tuple[float, float]:
    """Ends of the bins in asinh(loss / linear width), a hair wider than the values' own."""
    low, high = (math.asinh(end / scale.linear_width) for end in (scale.low, scale.high))
    hair = 1e-9 * (high - low)
    return low - hair, high + hair
