"""The counterparts of the source thesis's figures, numbered as there.

The thesis shows two runs with three changes of the learning rate each. Its heatmaps, 7.7 to
7.30, are ordered here by tree, data, run and change; a study with more runs or changes has
further ones without a number, a smaller study lacks some.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lltopo.figures import (
    COLOURS,
    fit_value_axis,
    new_figure,
    plot_colorbar,
    plot_heatmap,
    plot_lost_epochs,
    plot_matrix,
    plot_milestones,
    plot_series,
    short_name,
    write_note,
)
from lltopo.heatmaps import Scale, common_scale
from lltopo.results import (
    Number,
    Results,
    Row,
    curve,
    epochs,
    matching,
    milestones,
    orders,
    topology_number,
    topology_rows,
    training_number,
    training_rows,
)
from lltopo.sections import SPLITS, Split
from lltopo.seeds import first_seeds, seed_groups, styles
from lltopo.study_models import ResNetModel
from lltopo.tables import TREES, Tree

TREE_NAMES: dict[Tree, str] = {"join": "join tree (maxima)", "split": "split tree (minima)"}
SPLIT_NAMES: dict[Split, str] = {"train": "training data", "val": "validation data"}
FIELDS: list[tuple[Tree, Split]] = list(itertools.product(TREES, SPLITS))

# a diagram, or the reason why there is none, by run and epoch
Diagrams = Mapping[tuple[str, int], NDArray[np.float64] | str]


class Plate(NamedTuple):
    """A figure of the report: the thesis's number ("" for one that it lacks), what its file and
    anchor are called, its caption, and the numbers that stand below it."""

    number: str
    name: str
    caption: str
    figure: Figure
    numbers: tuple[tuple[str, Number], ...] = ()


def summary_plate(results: Results) -> Plate:
    """Which run is smoother: total persistence on validation data, both trees."""
    figure, axes = _stacked(len(TREES))
    for ax, tree in zip(axes, TREES, strict=True):
        _plot_topology(results, "total_persistence", "val", tree, ax)
        ax.set(title=_capital(TREE_NAMES[tree]), ylabel=_total_label(results))
    caption = (
        "Total persistence of the losses on validation data by epoch, of the join tree (maxima) "
        "above, of the split tree (minima) below. Lower is smoother."
    )
    return Plate("", "summary", caption, figure)


def training_plates(results: Results) -> Iterator[Plate]:
    """Loss and accuracy of every run (2.1, 7.1, 7.2)."""
    figure, axes = _stacked(2, sharey=True)
    for ax, split in zip(axes, SPLITS, strict=True):
        _plot_metric(results, "accuracy", split, ax)
        ax.set_title(_capital(SPLIT_NAMES[split]))
    caption = "Accuracy of every run by epoch, on training data above, on validation data below."
    yield Plate("2.1", "2.1", caption, figure)
    for number, split in zip(("7.1", "7.2"), SPLITS, strict=True):
        figure, axes = _stacked(2)
        for ax, column in zip(axes, ("loss", "accuracy"), strict=True):
            _plot_metric(results, column, split, ax)
        axes[0].set_title(_capital(SPLIT_NAMES[split]))
        caption = f"Mean loss and accuracy of every run on {SPLIT_NAMES[split]}."
        numbers = [
            (f"{run}, {column} at the end", training_number(results, column, run, split, last))
            for run, last in _last_epochs(results)
            for column in ("loss", "accuracy")
        ]
        yield Plate(number, number, caption, figure, tuple(numbers))


def persistence_plates(results: Results) -> Iterator[Plate]:
    """Total persistence of every run, one plate a tree and split (7.3 to 7.6)."""
    for number, (tree, split) in enumerate(FIELDS, start=3):
        figure, (ax,) = _stacked(1)
        _plot_topology(results, "total_persistence", split, tree, ax)
        ax.set(title=_title(tree, split), ylabel=_total_label(results))
        caption = f"Total persistence of the {TREE_NAMES[tree]} on {SPLIT_NAMES[split]}."
        numbers = [
            (
                f"{run}, epoch {last}",
                topology_number(results, "total_persistence", run, split, tree, last),
            )
            for run, last in _last_epochs(results)
        ]
        yield Plate(f"7.{number}", f"7.{number}", caption, figure, tuple(numbers))


def shortcut_plates(results: Results) -> Iterator[Plate]:
    """Residual networks with and without skip connections (7.35, 7.36): one plate a split."""
    models = [run.model for run in results.study.runs.values()]
    shortcuts = {model.shortcuts for model in models if isinstance(model, ResNetModel)}
    for number, split in zip(("7.35", "7.36"), SPLITS if len(shortcuts) == 2 else (), strict=False):
        figure, axes = _stacked(2 * len(TREES))
        for row, tree in enumerate(TREES):
            total, distance = axes[2 * row : 2 * row + 2]
            _plot_topology(results, "total_persistence", split, tree, total)
            total.set(title=_title(tree, split), ylabel=_total_label(results))
            _plot_topology(results, "wasserstein", split, tree, distance, orders(results)[0])
            distance.set_ylabel(f"$W_{{{orders(results)[0]:g}}}$ to the last epoch (loss)")
        caption = (
            f"Residual networks with and without skip connections on {SPLIT_NAMES[split]}: total "
            "persistence, and the Wasserstein distance to the last epoch, of both trees."
        )
        yield Plate(number, number, caption, figure)


def distance_plates(results: Results) -> Iterator[Plate]:
    """Wasserstein distance to the reference epoch, one plate a tree and split (7.31 to 7.34)."""
    found = orders(results)
    for number, (tree, split) in enumerate(FIELDS, start=31):
        figure, axes = _stacked(len(found))
        for ax, order in zip(axes, found, strict=True):
            _plot_topology(results, "wasserstein", split, tree, ax, order)
            ax.set_ylabel(f"$W_{{{order:g}}}$ to the last epoch (loss)")
        axes[0].set_title(_title(tree, split))
        caption = (
            f"Wasserstein distance of each epoch’s diagram to the run’s last one that is ok: "
            f"{TREE_NAMES[tree]}, {SPLIT_NAMES[split]}."
        )
        numbers = [
            (
                f"{run}, reference epoch",
                topology_number(results, "reference_epoch", run, split, tree, last),
            )
            for run, last in _last_epochs(results)
        ]
        yield Plate(f"7.{number}", f"7.{number}", caption, figure, tuple(numbers))


def heatmap_plates(results: Results, split: Split, tree: Tree, dgms: Diagrams) -> Iterator[Plate]:
    """Diagrams of one tree and split before and after each change of the rate (7.7 to 7.30),
    then those of the last epoch, all on one scale."""
    pairs = [
        (run, i, epoch)
        for run in first_seeds(results)
        for i, epoch in enumerate(milestones(results, run))
    ]
    shown = [(run, e) for run, _, epoch in pairs for e in (epoch - 1, epoch)]
    ends = [end for end in _last_epochs(results) if end[0] in first_seeds(results)]
    scale = _scale_of(results, dgms, [*shown, *ends])
    for run, change, epoch in pairs:
        number = _heatmap_number(FIELDS.index((tree, split)), styles(results)[run], change)
        panels = [
            (f"before (epoch {epoch - 1})", dgms[run, epoch - 1]),
            (f"after (epoch {epoch})", dgms[run, epoch]),
        ]
        caption = (
            f"{_title(tree, split)}, run {run}: before and after change {change + 1} of the "
            f"learning rate, epochs {epoch - 1} and {epoch}."
        )
        numbers = tuple(
            (
                f"total persistence, epoch {e}",
                topology_number(results, "total_persistence", run, split, tree, e),
            )
            for e in (epoch - 1, epoch)
        )
        name = number or f"heatmap-{run}-{split}-{tree}-{epoch}"
        yield Plate(number, name, caption, _heatmaps(panels, scale), numbers)
    panels = [(f"{short_name(run)} (epoch {last})", dgms[run, last]) for run, last in ends]
    caption = f"{_title(tree, split)}: the last epoch of every run."
    yield Plate("", f"last-{split}-{tree}", caption, _heatmaps(panels, scale))


def correlation_plates(results: Results) -> Iterator[Plate]:
    """Rank correlations of the series with the training, values above first differences."""
    for split in SPLITS:
        shown = first_seeds(results)
        rows = [r for r in matching(results.correlations, split=split) if r["run"] in shown]
        if not rows:
            continue
        series = list(dict.fromkeys((row["measure"], row["tree"], row["run"]) for row in rows))
        targets = list(dict.fromkeys(row["target"] for row in rows))
        names = [f"{m.replace('_', ' ')}, {tree}, {short_name(run)}" for m, tree, run in series]
        figure = new_figure(6.2, 1.4 + 0.56 * len(series))
        for ax, differenced in zip(figure.subplots(2, 1, sharex=True), (False, True), strict=True):
            values = np.full((len(series), len(targets)), np.nan)
            for row in matching(rows, differenced=differenced):
                at = series.index((row["measure"], row["tree"], row["run"]))
                rho = row["spearman"]
                values[at, targets.index(row["target"])] = np.nan if rho is None else rho
            plot_matrix(values, names, [target.replace("_", " ") for target in targets], ax=ax)
            ax.set_title("first differences" if differenced else "values")
        caption = (
            f"Rank correlation (Spearman) of each series on {SPLIT_NAMES[split]} with loss, "
            "accuracy and their gaps; join: maxima, split: minima."
        )
        if len(shown) < len(results.runs):
            caption += " Of runs that differ in their seed alone the first is shown."
        yield Plate("", f"correlations-{split}", caption, figure)


def contour_plates(results: Results) -> Iterator[Plate]:
    """What the contour tree has by epoch, where the study asked for it."""
    for split in SPLITS if results.contours else ():
        columns = ("n_maxima", "n_minima", "n_merges", "n_arcs")
        figure, axes = _stacked(len(columns))
        for ax, column in zip(axes, columns, strict=True):
            rows = {run: matching(results.contours, run=run, split=split) for run in results.runs}
            _plot_runs(results, split, rows, column, ax)
            ax.set_ylabel(column.replace("n_", "number of "))
        axes[0].set_title(_capital(SPLIT_NAMES[split]))
        caption = f"Maxima, minima, merges and arcs of the contour tree on {SPLIT_NAMES[split]}."
        yield Plate("", f"contour-{split}", caption, figure)


def heatmap_epochs(results: Results, run: str) -> list[int]:
    """The epochs whose heatmaps the plates show: around each change of the rate, and the last."""
    around = [epoch for change in milestones(results, run) for epoch in (change - 1, change)]
    return sorted({*around, epochs(results, run)[-1]})


def _scale_of(results: Results, dgms: Diagrams, keys: Sequence[tuple[str, int]]) -> Scale:
    drawn = [dgm for dgm in (dgms[key] for key in keys) if not isinstance(dgm, str)]
    return common_scale(drawn, results.study.report.bins)


def _heatmap_number(field: int, run: int, change: int) -> str:
    """The thesis's number of a heatmap; "" for a third run or a fourth change."""
    return f"7.{7 + (field * 2 + run) * 3 + change}" if run < 2 and change < 3 else ""


def _heatmaps(panels: Sequence[tuple[str, NDArray[np.float64] | str]], scale: Scale) -> Figure:
    """Heatmaps two in a row, with one colour bar."""
    n_rows, n_columns = -(-len(panels) // 2), min(2, len(panels))
    figure = new_figure(0.9 + 2.35 * n_columns, 0.4 + 2.4 * n_rows)
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax, (title, content) in zip(axes, panels, strict=False):
        drawn = np.empty((0, 2)) if isinstance(content, str) else content
        plot_heatmap(drawn, scale=scale, colorbar=False, ax=ax)
        if isinstance(content, str):
            write_note(ax, content)
        ax.set_title(title, parse_math=False)
        ax.label_outer()
    for ax in axes[len(panels) :]:
        ax.remove()
    plot_colorbar(list(axes[: len(panels)]))
    return figure


def _stacked(n: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``n`` panels one above the other, narrow enough for a phone."""
    figure = new_figure(5.6, 3.5 if n == 1 else 2.5 * n)
    return figure, list(figure.subplots(n, 1, squeeze=False, sharex=True, sharey=sharey)[:, 0])


def _plot_topology(
    results: Results, column: str, split: Split, tree: Tree, ax: Axes, order: float | None = None
) -> None:
    rows = {run: topology_rows(results, run, split, tree, order) for run in results.runs}
    _plot_runs(results, split, rows, column, ax)


def _plot_metric(results: Results, column: str, split: Split, ax: Axes) -> None:
    rows = {run: training_rows(results, run, split) for run in results.runs}
    _plot_runs(results, split, rows, column, ax)
    ax.set_ylabel("mean loss (nats)" if column == "loss" else "accuracy (fraction)")


def _plot_runs(
    results: Results, split: Split, rows: Mapping[str, list[Row]], column: str, ax: Axes
) -> None:
    """Every run's column by epoch, with the rate's changes and the epochs that are not ok."""
    style = styles(results)
    labels = {group.runs[0]: group.label for group in seed_groups(results)}
    for run, of_run in rows.items():
        line = curve(of_run, column)
        label = short_name(labels[run]) if run in labels else None
        plot_series(line.epoch, line.value, label=label, style=style[run], ax=ax)
    fit_value_axis(ax)
    if not any(np.isfinite(line.get_ydata()).any() for line in ax.get_lines()):
        write_note(ax, "not recorded, or not finite")
    changes = {run: frozenset(milestones(results, run)) for run in rows}
    shared = frozenset.intersection(*changes.values())
    plot_milestones(shared, ax=ax)
    for run in rows:
        colour = COLOURS[style[run] % len(COLOURS)]
        plot_milestones(changes[run] - shared, color=colour, ax=ax)
        lost = {
            row["epoch"]: row["status"]
            for row in topology_rows(results, run, split, "join")
            if row["status"] != "ok"
        }
        if lost:
            statuses = " or ".join(sorted(set(lost.values())))
            label = f"{short_name(run)}: {statuses}"
            plot_lost_epochs(list(lost), label=label, style=style[run], ax=ax)
    for text in ax.legend(fontsize="small", framealpha=0.85).get_texts():
        text.set_parse_math(False)
    ax.label_outer()


def _last_epochs(results: Results) -> list[tuple[str, int]]:
    return [(run, epochs(results, run)[-1]) for run in results.runs]


def _total_label(results: Results) -> str:
    degree = results.study.analysis.degree
    return (
        "total persistence (loss)" if degree == 1 else f"total persistence (loss$^{{{degree:g}}}$)"
    )


def _title(tree: Tree, split: Split) -> str:
    return _capital(f"{TREE_NAMES[tree]}, {SPLIT_NAMES[split]}")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
