"""Loss surfaces to figures: contours, heatmap, a view in three dimensions, and ranges by epoch.

Losses around an optimum span decades, so heights and colours are logarithmic; the surfaces that
are compared share one scale (:func:`loss_scale`). Drawn as in :mod:`lltopo.figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import ArrayLike, NDArray

from lltopo.figures import COLOUR_MAP, COLOURS
from lltopo.results import Row, curve

Grid = NDArray[np.float64]

_NOT_FINITE = "0.75"  # the grey of points that have no colour
_CONTOURS = 9  # at least
_TENTHS = tuple(np.arange(10, 100) / 10)


class LossScale(NamedTuple):
    """The logarithmic scale that compared surfaces share: their least and largest loss."""

    low: float
    high: float

    @property
    def norm(self) -> LogNorm:
        """The scale as matplotlib's, from losses to colours."""
        return LogNorm(self.low, self.high)


def plot_contours(surface: Grid, x: ArrayLike, y: ArrayLike, *, scale: LossScale, ax: Axes) -> Axes:
    """Draw the contour lines of a surface, evenly spaced on a logarithmic scale.

    Parameters
    ----------
    surface : (n_y, n_x) array
        Losses.
    x, y : (n_x,) and (n_y,) array
        Coordinates along the two directions.
    scale : LossScale
        What compared surfaces share, from `loss_scale`.
    ax : Axes

    Returns
    -------
    Axes
    """
    n_levels = max(_CONTOURS, int(3 * np.log10(scale.high / scale.low)))
    levels = np.geomspace(scale.low, scale.high, n_levels + 2)[1:-1]
    ax.set_facecolor("white")
    drawn = np.ma.masked_invalid(surface)
    lines = ax.contour(
        x, y, drawn, levels=levels, cmap=COLOUR_MAP, norm=scale.norm, linewidths=1.1, zorder=2
    )
    named = levels[:: n_levels // 4]
    for text in ax.clabel(lines, named, fontsize=6, fmt=_loss_name, inline_spacing=2):
        text.set_in_layout(False)
        # at the edge a label would be cut off
        text.set_visible(bool(np.max(np.abs(text.get_position())) < 0.85 * np.max(np.abs(x))))
    return _plane_axes(ax)


def _loss_name(loss: float) -> str:
    return f"{loss:,.0f}" if loss >= 10 else f"{loss:.2g}"


def plot_surface_heatmap(
    surface: Grid, x: ArrayLike, y: ArrayLike, *, scale: LossScale, ax: Axes
) -> Axes:
    """Draw a surface as colours, points that are not finite in grey.

    Parameters and return value are those of `plot_contours`.
    """
    ax.set_facecolor(_NOT_FINITE)
    drawn = np.ma.masked_invalid(surface)
    ax.pcolormesh(x, y, drawn, cmap=COLOUR_MAP, norm=scale.norm, shading="nearest", rasterized=True)
    return _plane_axes(ax)


def plot_surface_view(
    surface: Grid, x: ArrayLike, y: ArrayLike, *, scale: LossScale, ax: Axes3D
) -> Axes3D:
    """Draw a surface in three dimensions, its height and colours on a logarithmic scale.

    Parameters and return value are those of `plot_contours`, of three-dimensional axes.
    """
    height = np.log10(np.clip(surface, scale.low, scale.high))
    low, high = np.log10([scale.low, scale.high])
    grid_x, grid_y = np.meshgrid(x, y)
    ax.plot_surface(
        grid_x,
        grid_y,
        np.where(np.isfinite(surface), height, np.nan),
        cmap=COLOUR_MAP,
        norm=Normalize(low, high),
        rstride=1,
        cstride=1,
        linewidth=0.15,
        edgecolor=(0, 0, 0, 0.35),
    )
    ax.set_zlim(low, high)
    ticks = _loss_ticks(scale, most=5)
    ax.set_zticks(np.log10(ticks), [_written(loss) for loss in ticks])
    for ticked, along in ((ax.xaxis, x), (ax.yaxis, y)):
        ends = [float(np.min(along)), 0.0, float(np.max(along))]
        ticked.set_ticks(ends, [f"{end:g}" for end in ends])
    ax.tick_params(labelsize=6, pad=-3)
    ax.tick_params(axis="z", pad=-1)
    ax.set_xlabel("first direction", fontsize=6, labelpad=-9)
    ax.set_ylabel("second direction", fontsize=6, labelpad=-9)
    ax.view_init(elev=28, azim=-60)
    ax.set_box_aspect(None, zoom=1.1)
    return ax


def plot_loss_range(rows: Sequence[Row], *, style: int = 0, ax: Axes) -> Axes:
    """Draw which losses a plane holds by epoch: extremes, quartiles, median, and its middle.

    Parameters
    ----------
    rows
        Of ``surfaces.parquet``, one an epoch.
    style : int
        Number of the colour.
    ax : Axes

    Returns
    -------
    Axes
    """
    colour = COLOURS[style % len(COLOURS)]
    lines = {name: curve(rows, name) for name in ("min", "q25", "median", "q75", "max", "centre")}
    epoch = lines["min"].epoch
    bands = (("min", "max", 0.18, "all points"), ("q25", "q75", 0.4, "middle half"))
    for low, high, alpha, label in bands:
        edges = (lines[low].value, lines[high].value)
        ax.fill_between(epoch, *edges, color=colour, alpha=alpha, linewidth=0, label=label)
    ax.plot(epoch, lines["median"].value, color=colour, marker="o", markersize=4, label="median")
    centre = lines["centre"].value
    ax.plot(epoch, centre, color="black", linestyle="--", linewidth=1.2, label="trained weights")
    for edge in ("min", "max"):
        ax.plot(epoch, lines[edge].value, color=colour, linewidth=0.6, alpha=0.6)
    return ax


def loss_scale(surfaces: Sequence[Grid]) -> LossScale:
    """Return the scale from the least to the largest of all finite losses above 0."""
    found = np.concatenate([np.zeros(0), *(grid[np.isfinite(grid)] for grid in surfaces)])
    above = found[found > 0]
    if not len(above):
        return LossScale(0.1, 10.0)
    low, high = float(above.min()), float(above.max())
    return LossScale(low, high if high > low else 2 * low)


def plot_scale(scale: LossScale, axes: Sequence[Axes]) -> Axes:
    """Explain the colours of surfaces on one scale by a bar below them.

    Parameters
    ----------
    scale : LossScale
        What the surfaces share.
    axes : sequence of Axes
        All of them.

    Returns
    -------
    Axes
        The bar's.
    """
    bar = axes[0].figure.colorbar(
        ScalarMappable(scale.norm, COLOUR_MAP),
        ax=list(axes),
        orientation="horizontal",
        label="mean loss (nats)",
        shrink=0.8,
        aspect=40,
    )
    ticks = _loss_ticks(scale, most=9)
    bar.ax.set_xticks(ticks, [_written(loss) for loss in ticks])
    bar.minorticks_off()
    drawn: Axes = bar.ax
    return drawn


def _loss_ticks(scale: LossScale, most: int) -> list[float]:
    """Round losses between the ends of a scale: as many as there is room for."""
    decades = range(int(np.floor(np.log10(scale.low))), int(np.ceil(np.log10(scale.high))) + 1)
    for steps in (_TENTHS, (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [loss for loss in found if scale.low <= loss <= scale.high]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def _written(loss: float) -> str:
    """A round loss as a tick's label; a long one by its power of ten."""
    if 1e-3 <= loss < 1e4:
        return f"{loss:g}"
    mantissa, exponent = f"{loss:.0e}".split("e")
    power = f"$10^{{{int(exponent)}}}$"
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _plane_axes(ax: Axes) -> Axes:
    ax.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=2.6)
    ax.plot(0, 0, "+", color="black", markersize=8, markeredgewidth=1.2)
    ax.set(box_aspect=1)
    return ax
