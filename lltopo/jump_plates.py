"""Jumps around a run's optimum: where retraining went, and the topology of the loss there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from lltopo.figures import COLOUR_MAP, COLOURS, MARKERS, new_figure, write_note
from lltopo.plates import SPLIT_NAMES, Plate
from lltopo.results import Number, Results, Row, matching, number
from lltopo.sections import SPLITS

_CLASSES = ("components (H0)", "loops (H1)")


def loss_norm(rows: Sequence[Row]) -> LogNorm:
    """Return the logarithmic scale of the embedded points' validation losses, for their colours.

    Parameters
    ----------
    rows
        Of ``jump.parquet``; pictures that are compared share the scale of all their rows.
    """
    losses = np.array([row["val_loss"] for row in rows if row["x"] is not None and row["step"] > 0])
    low = float(losses[losses > 0].min(initial=losses.max(initial=0.0) or 1.0))
    return LogNorm(low, max(float(losses.max(initial=low)), 1.01 * low), clip=True)


def plot_embedding(
    rows: Sequence[Row], *, norm: LogNorm | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the embedded points of one run's jumps, coloured by validation loss.

    A line follows each trajectory, its marker is the jump's, and a star is the optimum.

    Parameters
    ----------
    rows
        Of ``jump.parquet``; those without a position are not drawn.
    norm : LogNorm, optional
        What compared pictures share, from `loss_norm`; that of these rows by default.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes
    """
    ax = ax if ax is not None else new_figure(5.6, 5).subplots()
    norm = norm if norm is not None else loss_norm(rows)
    placed = [row for row in rows if row["x"] is not None]
    points = [row for row in placed if row["step"] > 0]
    steps = sorted({row["step"] for row in points})
    for seed, step in sorted({(row["seed"], row["step"]) for row in points}):
        way = np.array([(p["x"], p["y"]) for p in matching(points, seed=seed, step=step)])
        ax.plot(*way.T, color="0.7", linewidth=0.7, zorder=1)
    handles = []
    for i, step in enumerate(steps):
        marker = MARKERS[i % len(MARKERS)]
        of_step = matching(points, step=step)
        x, y, losses = ([row[name] for row in of_step] for name in ("x", "y", "val_loss"))
        drawn = ax.scatter(
            x, y, s=18, c=losses, marker=marker, cmap=COLOUR_MAP, norm=norm, linewidths=0, zorder=2
        )
        handles.append(_handle(marker, f"step {step:g}", "0.4"))
    for row in matching(placed, step=0.0):
        ax.plot(row["x"], row["y"], "*", color=COLOURS[1], markersize=15, mec="white", zorder=3)
        handles.append(_handle("*", "optimum", COLOURS[1]))
    ax.set(xlabel="PHATE 1", ylabel="PHATE 2", xticks=[], yticks=[])
    ax.margins(0.06)
    if points:
        ax.figure.colorbar(drawn, ax=ax, label="validation loss", shrink=0.85)
        # above the points, that it may not hide any
        ax.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=min(5, len(handles)),
            columnspacing=1.0,
            handletextpad=0.2,
            fontsize="small",
            frameon=False,
        )
    return ax


def plot_classes(
    rows: Sequence[Row],
    dimension: int,
    *,
    ends: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the diagrams of one dimension, of the loss on either data; essential classes hollow.

    Parameters
    ----------
    rows
        Of ``jump_diagrams.parquet``, one run's.
    dimension
        0 or 1.
    ends : (float, float), optional
        Smallest and largest loss, which compared diagrams share; these rows' own by default. The
        axes are logarithmic where both are above zero.
    ax : Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    Axes
    """
    ax = ax if ax is not None else new_figure(3, 3).subplots()
    of_dimension = matching(rows, dimension=dimension)
    low, high = ends if ends is not None else _ends(of_dimension)
    for i, split in enumerate(SPLITS):
        for essential in (False, True):
            found = matching(of_dimension, split=split, essential=essential)
            ax.plot(
                [row["birth"] for row in found],
                [row["death"] for row in found],
                MARKERS[i],
                color=COLOURS[i],
                markersize=4,
                alpha=0.7,
                fillstyle="none" if essential else "full",
                label=None if essential else SPLIT_NAMES[split],
            )
    if low > 0:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.plot((low, high), (low, high), color="0.5", linewidth=0.8, zorder=1)
    ax.set(xlabel="birth (loss)", ylabel="death (loss)", box_aspect=1, title=_CLASSES[dimension])
    if not of_dimension:
        write_note(ax, "none", y=0.85)
    return ax


def jump_plates(results: Results) -> Iterator[Plate]:
    """A plate a run of jumps, all on one scale: the embedding, below it both diagrams."""
    norm, ends = loss_norm(results.jumps), _ends(results.jump_diagrams)
    for run in dict.fromkeys(row["run"] for row in results.jumps):
        rows = matching(results.jumps, run=run)
        figure = new_figure(6.0, 8.2)
        # each laid out by itself: the bar of the colours takes no room from the diagrams
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.7, 1))[:, 0]
        plot_embedding(rows, norm=norm, ax=above.subplots())
        diagrams = matching(results.jump_diagrams, run=run)
        for dimension, ax in enumerate(below.subplots(1, 2)):
            plot_classes(diagrams, dimension, ends=ends, ax=ax)
            ax.label_outer()
        below.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        above.suptitle(run, parse_math=False)
        yield Plate("", f"jump-{run}", _caption(run, rows), figure, tuple(_numbers(results, run)))


def _caption(run: str, rows: Sequence[Row]) -> str:
    jumps = {(row["seed"], row["step"]) for row in rows if row["step"] > 0}
    last = max(row["epoch"] for row in rows)
    lost = sum(not math.isfinite(row[f"{split}_loss"]) for row in rows for split in SPLITS)
    caption = (
        f"Run {run}: {len(jumps)} jumps away from its weights and {last} epochs of retraining "
        "from each, embedded by PHATE; below, persistence of the sublevel sets of the loss over "
        "these points, essential classes hollow."
    )
    return f"{caption} {lost} losses that are not finite are left out." if lost else caption


def _numbers(results: Results, run: str) -> Iterator[tuple[str, Number]]:
    columns = {
        "n_pairs": "pairs",
        "n_essential": "of them essential",
        "total_persistence": "total persistence",
        "persistent_entropy": "persistent entropy",
    }
    for split in SPLITS:
        for dimension, classes in enumerate(_CLASSES):
            key = {"run": run, "split": split, "dimension": dimension}
            for column, name in columns.items():
                label = f"{classes}, {SPLIT_NAMES[split]}, {name}"
                yield label, number(results.jump_summary, "jump_summary", column, **key)


def _ends(rows: Sequence[Row]) -> tuple[float, float]:
    """The smallest and the largest loss of some diagrams."""
    values = [row[end] for row in rows for end in ("birth", "death")]
    return min(values, default=1.0), max(values, default=2.0)


def _handle(marker: str, label: str, colour: str) -> Line2D:
    return Line2D([], [], marker=marker, linestyle="none", color=colour, label=label)
