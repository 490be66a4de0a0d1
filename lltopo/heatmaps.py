"""What compared heatmaps share: bins, axes, colours; and the counts on them.

A heatmap is a 2-D histogram of a persistence diagram's points. Losses of a trained network span
decades and reach zero, so the bins are even in asinh(loss / width): near zero like a plain axis,
above it like a logarithmic one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.diagrams import persistence_histogram

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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


def common_scale(dgms: Iterable[ArrayLike], bins: int = 40) -> Scale:
    """The bins, axes and colours that heatmaps of these diagrams share.

    Parameters
    ----------
    dgms : iterable of (m, 2) array
        All the diagrams that are compared.
    bins : int
        Of each axis.

    Returns
    -------
    Scale
        On which no finite point of the diagrams is out of range. Its linear width is the lowest
        tenth of all births and deaths.
    """
    arrays = [np.asarray(dgm, dtype=np.float64).reshape(-1, 2) for dgm in dgms]
    low, high = finite_extent(arrays)
    values = np.abs(np.concatenate([np.zeros(0), *(dgm.ravel() for dgm in arrays)]))
    largest = max(abs(low), abs(high))
    values = values[np.isfinite(values)]
    small = np.quantile(values, 0.1) if len(values) else largest
    width = float(np.clip(small, 1e-6 * largest, largest))
    scale = Scale(bins, low, high, width, 1)
    fullest = max((int(heatmap_counts(dgm, scale).max()) for dgm in arrays), default=1)
    return scale._replace(fullest=max(fullest, 1))


def heatmap_counts(dgm: ArrayLike, scale: Scale) -> NDArray[np.int64]:
    """Count a diagram's points on a scale.

    Parameters
    ----------
    dgm : (m, 2) array
        Infinite points are not counted.
    scale : Scale

    Returns
    -------
    (bins, bins) int64
        Rows are births, columns are deaths.
    """
    points = np.arcsinh(np.asarray(dgm, dtype=np.float64).reshape(-1, 2) / scale.linear_width)
    span = asinh_span(scale)
    return persistence_histogram(points, scale.bins, (span, span))


def axis_ticks(scale: Scale) -> dict[float, str]:
    """Round values along an axis of a heatmap, not too close to each other, and their labels."""
    decades = range(6, math.floor(math.log10(scale.linear_width)) - 2, -1)
    low, high = asinh_span(scale)
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


def finite_extent(dgms: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The range of all finite births and deaths, widened where it is nothing beside them."""
    values = np.concatenate([np.zeros(0), *(dgm.ravel() for dgm in dgms)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    told_apart = high - low > max(1e-6 * max(abs(low), abs(high)), 1e-100)
    margin = 0.0 if told_apart else 0.5 * max(1.0, abs(low), abs(high))
    return low - margin, high + margin


def asinh_span(scale: Scale) -> tuple[float, float]:
    """Ends of the bins in asinh(loss / linear width), a hair wider than the values' own."""
    low, high = (math.asinh(end / scale.linear_width) for end in (scale.low, scale.high))
    hair = 1e-9 * (high - low) + 1e-13
    return low - hair, high + hair
