"""The pictures of loss surfaces: the planes themselves (7.37, 7.38), what losses lie around the
optimum by epoch (5.1 to 5.3), and how well planes and samples tell runs apart (7.4).

All panels of a plate share one logarithmic scale, so that runs can be compared. Of runs that differ
in their training seed alone the first is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lltopo.figures import (
    COLOURS,
    fit_value_axis,
    new_figure,
    plot_lost_epochs,
    plot_milestones,
    short_name,
    write_note,
)
from lltopo.plates import FIELDS, SPLIT_NAMES, TREE_NAMES, Plate
from lltopo.results import Number, Results, Row, matching, milestones
from lltopo.sections import SPLITS, Split
from lltopo.seeds import first_seeds, styles
from lltopo.surface_figures import (
    LossScale,
    loss_scale,
    plot_contours,
    plot_loss_range,
    plot_scale,
    plot_surface_heatmap,
    plot_surface_view,
)
from lltopo.surface_files import PlaneKey, Surface, read_surface, surface_file

_MOST_SEEDS = 4  # columns that leave a panel large enough
_SURFACE_NUMBERS: dict[Split, str] = {"train": "7.37", "val": "7.38"}
_RANGE_NUMBERS = {"vgg9": "5.1", "resnet": "5.2", "densenet121": "5.3"}
_DOMAINS = {"samples": "losses of samples", "surfaces": "loss on planes"}


def surface_plates(results: Results) -> Iterator[Plate]:
    """The planes through each run's last weights (7.37, 7.38), and what other directions show."""
    if not results.surfaces:
        return
    keys = _last_keys(results)
    surfaces = {key: read_surface(surface_file(results.out, key)) for key in keys}
    seeds = list(dict.fromkeys(key.seed for key in keys))
    for split in SPLITS:
        scale = loss_scale([surface.loss[split] for surface in surfaces.values()])
        first = {key: surface for key, surface in surfaces.items() if key.seed == seeds[0]}
        number = _SURFACE_NUMBERS[split]
        caption = (
            f"Mean loss on {SPLIT_NAMES[split]} around each run’s trained weights (+), along two "
            "filter-normalised random directions, the same for all runs; coordinates in lengths of "
            "the filters. Contours, heatmap and view share one logarithmic scale; grey or "
            "missing: not finite."
        )
        numbers = tuple(_surface_numbers(results, list(first), split))
        yield Plate(number, number, caption, _views(first, split, scale), numbers)
        if len(seeds) > 1:
            shown = {key: s for key, s in surfaces.items() if key.seed in seeds[:_MOST_SEEDS]}
            caption = (
                f"Mean loss on {SPLIT_NAMES[split]} on planes along other random directions: "
                f"{min(len(seeds), _MOST_SEEDS)} of {len(seeds)} seeds, one scale of colours."
            )
            yield Plate("", f"surface-seeds-{split}", caption, _by_seed(shown, split, scale))


def range_plates(results: Results) -> Iterator[Plate]:
    """What losses lie around the weights of each epoch (5.1 to 5.3), where several were asked for,
    a plate an architecture."""
    rows = _pooled(results.surfaces)
    shown = first_seeds(results)
    several = [run for run in shown if len(matching(rows, run=run, split="train")) > 1]
    models = {run: results.study.runs[run].model.name for run in several}
    for model in dict.fromkeys(models.values()):
        runs = [run for run in several if models[run] == model]
        figure = new_figure(5.6, 0.6 + 1.9 * len(SPLITS) * len(runs))
        panels = list(itertools.product(runs, SPLITS))
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for ax, (run, split) in zip(axes, panels, strict=True):
            _range_panel(results, matching(rows, run=run, split=split), ax)
            ax.set_title(f"{short_name(run)}, {SPLIT_NAMES[split]}", parse_math=False)
        legend = axes[0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=3, fontsize="small")
        number = _RANGE_NUMBERS.get(model, "")
        caption = (
            f"Range of the mean loss in the neighbourhood of the weights by epoch, {model}: all "
            "points of the planes, their middle half and median (quartiles: mean over planes), "
            "and the trained weights themselves."
        )
        yield Plate(number, number or f"range-{model}", caption, figure)


def comparison_plates(results: Results) -> Iterator[Plate]:
    """How far groups of runs lie apart, over their spread: on samples against on planes (7.4)."""
    couples = dict.fromkeys((row["group_a"], row["group_b"]) for row in results.comparison)
    for i, (a, b) in enumerate(couples):
        rows = matching(results.comparison, group_a=a, group_b=b)
        figure = new_figure(5.6, 3.4)
        ax = figure.subplots()
        _plot_comparison(rows, ax)
        legend = ax.get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=3, fontsize="small")
        caption = (
            f"{a} against {b}: mean W1 between the two over the mean W1 that chance alone makes "
            "(training seeds for samples, seeds of the directions for planes). At 1 a difference "
            "is no larger than chance."
        )
        numbers = tuple(itertools.chain.from_iterable(map(_comparison_numbers, rows)))
        yield Plate("", f"comparison-{i + 1}", caption, figure, numbers)


def _last_keys(results: Results) -> list[PlaneKey]:
    """The planes of each run's last epoch that has any, by run and seed."""
    shown = first_seeds(results)
    rows = [row for row in results.surfaces if row["run"] in shown]
    keys = dict.fromkeys(PlaneKey(r["run"], r["epoch"], r["seed"]) for r in rows)
    last = {key.run: key.epoch for key in sorted(keys)}
    return [key for key in keys if key.epoch == last[key.run]]


def _views(surfaces: Mapping[PlaneKey, Surface], split: Split, scale: LossScale) -> Figure:
    """Contours, heatmap and view of each surface in a row."""
    figure = new_figure(6.2, 0.7 + 2.1 * len(surfaces))
    grid = figure.add_gridspec(len(surfaces), 3, width_ratios=(1, 1, 1.4))
    flat: list[Axes] = []
    for i, (key, surface) in enumerate(surfaces.items()):
        contours, heatmap = (figure.add_subplot(grid[i, column]) for column in range(2))
        view = figure.add_subplot(grid[i, 2], projection="3d")
        content = (surface.loss[split], surface.x, surface.y)
        plot_contours(*content, scale=scale, ax=contours)
        plot_surface_heatmap(*content, scale=scale, ax=heatmap)
        plot_surface_view(*content, scale=scale, ax=view)
        title = f"{short_name(key.run)}, epoch {key.epoch}"
        contours.set_title(title, loc="left", fontsize="medium", parse_math=False)
        heatmap.tick_params(labelleft=False)
        contours.set_ylabel("second direction")
        flat += [contours, heatmap]
    _label_last_row(flat, 2)
    plot_scale(scale, figure.axes)
    return figure


def _by_seed(surfaces: Mapping[PlaneKey, Surface], split: Split, scale: LossScale) -> Figure:
    """Heatmaps, a row a run, a column a seed of the directions."""
    runs = list(dict.fromkeys(key.run for key in surfaces))
    seeds = list(dict.fromkeys(key.seed for key in surfaces))
    figure = new_figure(0.8 + 1.35 * max(len(seeds), 3), 0.9 + 1.6 * len(runs))
    axes = figure.subplots(len(runs), len(seeds), squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.set_axis_off()
    for key, surface in surfaces.items():
        ax = axes[runs.index(key.run), seeds.index(key.seed)]
        ax.set_axis_on()
        plot_surface_heatmap(surface.loss[split], surface.x, surface.y, scale=scale, ax=ax)
        ax.set_title(f"{short_name(key.run)}, seed {key.seed}", fontsize=7, parse_math=False)
        ax.label_outer()
    for ax in axes[-1]:
        ax.set_xlabel("first direction", fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("second direction", fontsize=8)
    plot_scale(scale, list(axes.flat))
    return figure


def _label_last_row(axes: Sequence[Axes], n_columns: int) -> None:
    for ax in axes[:-n_columns]:
        ax.tick_params(labelbottom=False)
    for ax in axes[-n_columns:]:
        ax.set_xlabel("first direction")


def _pooled(rows: Sequence[Row]) -> list[Row]:
    """The planes of one run, epoch and split as one row: extremes of all, means of the rest."""
    key = ("run", "epoch", "split")
    pooled = []
    for name, group in itertools.groupby(
        sorted(rows, key=lambda r: [r[k] for k in key]), lambda r: [r[k] for k in key]
    ):
        planes = list(group)
        row: Row = dict(zip(key, name, strict=True))
        row["n_nonfinite"] = sum(plane["n_nonfinite"] for plane in planes)
        for column, combine in (
            ("min", np.min),
            ("q25", np.mean),
            ("median", np.mean),
            ("q75", np.mean),
            ("max", np.max),
            ("centre", np.mean),
        ):
            known = [plane[column] for plane in planes if plane[column] is not None]
            row[column] = float(combine(known)) if known else None
        pooled.append(row)
    return pooled


def _range_panel(results: Results, rows: Sequence[Row], ax: Axes) -> None:
    run = rows[0]["run"]
    plot_loss_range(rows, style=styles(results)[run], ax=ax)
    fit_value_axis(ax)
    plot_milestones(milestones(results, run), ax=ax)
    lost = [row["epoch"] for row in rows if row["n_nonfinite"]]
    if lost:
        plot_lost_epochs(lost, label="some not finite", style=styles(results)[run], ax=ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(visible=True, color="0.9", linewidth=0.6)
    ax.set(xlabel="epoch", ylabel="mean loss (nats)")
    ax.label_outer()


def _surface_numbers(
    results: Results, keys: Sequence[PlaneKey], split: Split
) -> Iterator[tuple[str, Number]]:
    for key in keys:
        named = {**key._asdict(), "split": split}
        [row] = matching(results.surfaces, **named)
        for column, words in (
            ("centre", "loss of the trained weights"),
            ("min", "least loss on the plane"),
            ("median", "median"),
            ("max", "largest"),
            ("cosine", "cosine of the directions"),
        ):
            yield f"{key.run}, {words}", Number(row[column], "surfaces", column, named)
        if row["n_nonfinite"]:
            count = Number(row["n_nonfinite"], "surfaces", "n_nonfinite", named)
            yield f"{key.run}, points not finite", count


def _plot_comparison(rows: Sequence[Row], ax: Axes) -> None:
    """A pair of bars for each field: its ratio on samples, and on planes."""
    width = 0.38
    for i, (domain, words) in enumerate(_DOMAINS.items()):
        shown = [matching(rows, domain=domain, tree=t, split=s)[0] for t, s in FIELDS]
        ratios = [row["ratio"] or 0.0 for row in shown]
        at = np.arange(len(shown)) + (i - 0.5) * width
        ax.bar(at, ratios, width, color=COLOURS[i], label=words, hatch="" if i else "//", ec="w")
        for x, row in zip(at, shown, strict=True):
            text = "not known" if row["ratio"] is None else f"{row['ratio']:.2g}"
            turned = 90 if row["ratio"] is None else 0
            ax.annotate(
                text,
                (x, row["ratio"] or 0.0),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=turned,
                fontsize=8,
            )
    ax.axhline(1.0, color="0.3", linestyle=":", linewidth=1.3, label="no more than chance")
    if not any(row["ratio"] is not None for row in rows):
        write_note(ax, "no spread is known", y=0.7)
        ax.set_ylim(0, 2)
    names = [f"{TREE_NAMES[t].replace(' (', chr(10) + '(')}\n{SPLIT_NAMES[s]}" for t, s in FIELDS]
    ax.set_xticks(range(len(FIELDS)), names, fontsize=8)
    ax.set_ylabel("distance of the two / spread")
    ax.margins(y=0.15)


def _comparison_numbers(row: Row) -> Iterator[tuple[str, Number]]:
    named = {key: row[key] for key in ("group_a", "group_b", "split", "tree", "domain")}
    where = f"{_DOMAINS[row['domain']]}, {SPLIT_NAMES[row['split']]}, {TREE_NAMES[row['tree']]}"
    reason = f" ({row['reason']})" if row["reason"] else ""
    yield f"{where}: ratio{reason}", Number(row["ratio"], "comparison", "ratio", named)
    yield "its distance", Number(row["distance"], "comparison", "distance", named)
    yield "its spread", Number(row["spread"], "comparison", "spread", named)
