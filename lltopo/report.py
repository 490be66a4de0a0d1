"""Results to one self-contained page, and its figures as files.

:func:`report_page` builds the page and writes nothing; :func:`write_report` writes it, unless
the one that is there was made from the same inputs by the same code.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from lltopo import claims, jump_plates, plates, seeds, slider, surface_plates, trajectories
from lltopo.figures import COLOURS, png_bytes
from lltopo.plates import Diagrams, Plate
from lltopo.results import (
    Number,
    Results,
    Row,
    epochs,
    initial_rate,
    milestones,
    not_ok,
    read_diagrams,
    read_results,
)
from lltopo.sections import Split
from lltopo.storage import Place, exists, files_below, read_bytes, remove, write_bytes
from lltopo.study import Study
from lltopo.tables import TREES, Tree

_SOURCES = (
    "diagrams.py",
    "heatmaps.py",
    "figures.py",
    "results.py",
    "seeds.py",
    "claims.py",
    "plates.py",
    "trajectories.py",
    "jump_plates.py",
    "slider.py",
    "surface_files.py",
    "surface_figures.py",
    "surface_plates.py",
    "report.py",
)
_FIGURE = re.compile(r"figures/figure-[A-Za-z0-9._-]+\.png")


class Image(NamedTuple):
    """A plate on the page: its file below ``--out`` and its bytes as PNG."""

    plate: Plate
    file: str
    png: bytes

    @property
    def uri(self) -> str:
        """The image itself, as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


class Section(NamedTuple):
    """A part of the page with figures of one kind."""

    anchor: str
    title: str
    text: str
    images: tuple[Image, ...]


class Score(NamedTuple):
    """Where a run ends, on validation data: a line of the summary."""

    run: str
    rate: float | None
    last_epoch: int
    status: str
    accuracy: Number
    persistence: dict[Tree, Number]


class Page(NamedTuple):
    """The finished page, and its images by file name."""

    html: str
    images: dict[str, bytes]


def write_report(study: Study, out: Place) -> Place:
    """Write ``report.html`` and ``figures/*.png`` below ``out``.

    Where the page that is there was made from the same inputs and no figure is missing, nothing
    is written. Figures of the page before that this one lacks are removed.

    Parameters
    ----------
    study
        Whose results lie below ``out``.
    out
        With ``series.parquet``, ``metrics.parquet``, ``correlations.parquet``, the diagrams and,
        where the study made it, ``contours.parquet``.

    Returns
    -------
    Place
        The page.

    Raises
    ------
    InputError
        Where a table or diagram is absent or damaged, or ``out`` cannot be written.
    """
    results = read_results(study, out)
    digest = inputs_digest(results)
    target = out / "report.html"
    before = read_bytes(target).decode(errors="replace") if exists(target) else ""
    listed = _listed_figures(before)
    if f'content="{digest}"' in before and all(exists(out / name) for name in listed):
        return target
    page = report_page(results, digest)
    for name, png in page.images.items():
        write_bytes(out / name, png)
    write_bytes(target, page.html.encode())
    for name in _figures_there(out) & listed - page.images.keys():
        remove(out / name)
    return target


def _listed_figures(page: str) -> set[str]:
    """The figures that a page shows; of a foreign page only what could be ours."""
    names = map(html.unescape, re.findall(r'data-file="([^"]*)"', page))
    return {name for name in names if _FIGURE.fullmatch(name)}


def _figures_there(out: Place) -> set[str]:
    return {f"figures/{name}" for name in files_below(out / "figures")}


def inputs_digest(results: Results) -> str:
    """SHA-256 of all that a page is made from: tables (without timings), study and code."""
    study = results.study.model_dump(
        mode="json", include={"runs", "report", "analysis"}, exclude={"analysis": {"verify"}}
    )
    content = [study, results.correlations, results.contours, results.distances]
    content += [results.jumps, results.jump_diagrams, results.jump_summary]
    content += [results.surfaces, results.comparison]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for table in (results.series, results.metrics.drop_columns("seconds")):
        for column in table.columns:
            digest.update(json.dumps(column.to_pylist()).encode())
    package = files("lltopo")
    templates = sorted(package.joinpath("templates").iterdir(), key=lambda file: file.name)
    for source in (*(package.joinpath(name) for name in _SOURCES), *templates):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def report_page(results: Results, digest: str) -> Page:
    """The page and its images; ``digest`` names the inputs in it."""
    shown = slider.shown_epochs(results)
    heatmaps: list[Image] = []
    views = {}
    for tree, split in plates.FIELDS:
        dgms = _diagrams(results, split, tree, shown)
        heatmaps += map(_image, plates.heatmap_plates(results, split, tree, dgms))
        views[f"{split}/{tree}"] = slider.slider_view(results, split, tree, dgms)
    summary = _image(plates.summary_plate(results))
    sections = list(_sections(results, heatmaps))
    images = [summary, *(image for section in sections for image in section.images)]
    text = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=results.study.report.title,
            digest=digest,
            scores=[_score(results, run) for run in results.runs],
            smoothest=claims.smoothest_runs(results),
            styles=seeds.styles(results),
            summary=summary,
            claims=claims.thesis_claims(results),
            slider=slider.slider_frame(results) | {"views": views},
            n_thinned=len(epochs(results)) - len(shown),
            sections=sections,
            not_ok=not_ok(results),
            series=_of_epochs(results.series, shown),
            metrics=_of_epochs(results.metrics, shown),
            correlations=results.correlations,
            analysis=results.study.analysis,
        )
    )
    return Page(text, {image.file: image.png for image in images})


def _diagrams(results: Results, split: Split, tree: Tree, shown: list[int]) -> Diagrams:
    found: dict[tuple[str, int], NDArray[np.float64] | str] = {}
    for run in seeds.first_seeds(results):
        wanted = {*plates.heatmap_epochs(results, run), *({*shown} & {*epochs(results, run)})}
        dgms = read_diagrams(results, run, split, tree, sorted(wanted))
        found |= {(run, epoch): dgm for epoch, dgm in dgms.items()}
    return found


def _of_epochs(table: pa.Table, shown: Sequence[int]) -> list[Row]:
    rows: list[Row] = table.filter(pc.is_in(table["epoch"], pa.array(shown))).to_pylist()
    return rows


def _sections(results: Results, heatmaps: list[Image]) -> Iterator[Section]:
    """The figures by kind, in the thesis's order; an optional kind that has none is left out."""
    yield Section(
        "training",
        "Loss and accuracy",
        "Dotted lines mark changes of the learning rate, in every series of this page.",
        tuple(map(_image, plates.training_plates(results))),
    )
    yield Section(
        "persistence",
        "Total persistence",
        "The sum of the persistence of all pairs of a merge tree: how rough the losses of single "
        "samples are over the graph of their nearest neighbours.",
        tuple(map(_image, plates.persistence_plates(results))),
    )
    yield Section(
        "heatmaps", "Persistence diagrams as heatmaps", _heatmap_text(results), tuple(heatmaps)
    )
    yield Section(
        "distances",
        "Wasserstein distance to the last epoch",
        "How far each epoch's diagram still is from the last one of the same run.",
        tuple(map(_image, plates.distance_plates(results))),
    )
    for anchor, title, text, drawn in _OPTIONAL:
        images = tuple(map(_image, drawn(results)))
        if images:
            yield Section(anchor, title, text, images)
    yield Section(
        "correlations",
        "Correlations",
        "Without epoch 0 and the reference epoch. Two trends always correlate: the first "
        "differences say whether the two also move together from epoch to epoch.",
        tuple(map(_image, plates.correlation_plates(results))),
    )


_OPTIONAL: tuple[tuple[str, str, str, Callable[[Results], Iterator[Plate]]], ...] = (
    (
        "shortcuts",
        "With and without skip connections",
        "Whether the topology of the losses tells the two apart; claim 5 has the verdict.",
        plates.shortcut_plates,
    ),
    (
        "matrix",
        "Distances between all epochs",
        "How each run moves through the space of diagrams.",
        trajectories.matrix_plates,
    ),
    ("contour", "Contour tree", "Joins and splits in one tree.", plates.contour_plates),
    (
        "surfaces",
        "Loss surfaces",
        "The loss on planes through the trained weights, along filter-normalised random "
        "directions (Li et al. 2018): what is usually shown of a loss landscape.",
        surface_plates.surface_plates,
    ),
    (
        "neighbourhood",
        "Losses in the neighbourhood of the optimum",
        "All points of the planes through the weights of each epoch.",
        surface_plates.range_plates,
    ),
    (
        "comparison",
        "Samples against planes",
        "Which of the two tells the runs apart (the thesis’s section 7.4): the distance "
        "between their persistence diagrams, over the distance that chance alone makes. Runs "
        "that differ in their training seed alone are one group.",
        surface_plates.comparison_plates,
    ),
    (
        "jump",
        "Jump and retrain",
        "Jumps away from each run’s weights in random directions, and retraining from there "
        "(Horoi et al. 2022). The loss is a field on the nearest-neighbour graph of the "
        "points’ diffusion potentials; less persistence and entropy of its sublevel sets: a "
        "simpler shape. Trajectories that retraining does not lead together are components of "
        "their own, an essential class each: how they lie to one another has no meaning then.",
        jump_plates.jump_plates,
    ),
)
"""Anchor, title and text of the sections that not every study has, and what draws them."""


def _heatmap_text(results: Results) -> str:
    changes = {run: len(milestones(results, run)) for run in seeds.first_seeds(results)}
    text = (
        "Before and after each change of the learning rate, and after the last epoch. Those of one "
        "tree and split share bins, axes and colours. "
    )
    if len(changes) < len(results.runs):
        text += (
            f"Of runs that differ in their seed alone the first is shown: {', '.join(changes)}. "
        )
    if set(changes.values()) == {3} and len(changes) == 2:
        return text
    told = ", ".join(f"{run}: {n or 'none'}" for run, n in changes.items())
    return (
        f"{text}The thesis’s 7.7 to 7.30 show two runs with three changes each; "
        f"known changes of this study: {told}."
    )


def _score(results: Results, run: str) -> Score:
    last = epochs(results, run)[-1]
    lost = [row for row in not_ok(results) if row["run"] == run and row["epoch"] == last]
    return Score(
        run=run,
        rate=initial_rate(results, run),
        last_epoch=last,
        status=lost[0]["status"] if lost else "ok",
        accuracy=claims.end_accuracy(results, run, "val"),
        persistence={tree: claims.end_persistence(results, run, "val", tree) for tree in TREES},
    )


def _image(plate: Plate) -> Image:
    return Image(plate, f"figures/figure-{plate.name}.png", png_bytes(plate.figure))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lltopo", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rounded": _rounded, "exact": _exact, "share": _share}
    environment.globals |= {
        "colours": COLOURS,
        "tree_names": plates.TREE_NAMES,
        "split_names": plates.SPLIT_NAMES,
    }
    return environment


def _rounded(value: float | int | None) -> str:
    """A number as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def _exact(value: float | int | None) -> str:
    """A number with every digit, as a program reads it back."""
    return "" if value is None else repr(value)


def _share(number: Number, of: list[Number]) -> float:
    """Length of a number's bar, in percent of the longest of its kind."""
    longest = max((other.value or 0.0 for other in of), default=0.0)
    share = 100 * (number.value or 0.0) / longest if longest and math.isfinite(longest) else 0.0
    return round(share, 1)
