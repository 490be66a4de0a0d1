"""Surfaces on the page: the planes, the ranges by epoch, and the comparison with samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.collections import QuadMesh
from pages import Elements
from PIL import Image
from planted import Plan, planted_study

from lltopo import report, schemas, tables
from lltopo.figures import COLOURS, new_figure, png_bytes
from lltopo.report import inputs_digest, write_report
from lltopo.results import Results, read_results
from lltopo.study_models import Vgg9Model
from lltopo.surface_figures import (
    LossScale,
    loss_scale,
    plot_contours,
    plot_loss_range,
    plot_scale,
    plot_surface_heatmap,
    plot_surface_view,
)
from lltopo.surface_files import PlaneKey, Surface, surface_file, write_surface
from lltopo.surface_plates import comparison_plates, range_plates, surface_plates
from lltopo.surface_tables import write_surface_table

AXIS = np.linspace(-1, 1, 11)
PLAN = Plan(n_pairs=5, settings={"small": {"milestones": [8]}})
SEEDS = (3, 5)


def bowl(run: str, epoch: int, seed: int) -> np.ndarray:
    """Losses that rise over two decades from the middle, otherwise for each plane."""
    height = (1.0 if run == "large" else 2.0) / epoch
    grid = AXIS[:, None] ** 2 * (1 + seed / 10) + AXIS[None, :] ** 2
    return height * 10**grid


def with_surfaces(folder: Path, *, epochs: tuple[int, ...] = (4, 8, 12)) -> Results:
    """Planted results with surfaces of both runs and a comparison."""
    study, out = planted_study(PLAN, folder)
    keys = [PlaneKey(r, e, s) for r in PLAN.rates for e in epochs for s in SEEDS]
    for key in keys:
        loss = {"train": bowl(*key), "val": 1.5 * bowl(*key)}
        if key == ("small", 12, SEEDS[0]):
            loss["val"][0, :3] = np.nan
        accuracy = {split: np.full((11, 11), 0.5) for split in loss}
        surface = Surface(AXIS, AXIS, loss, accuracy)
        write_surface(surface_file(out, key), surface, {"cosine": 0.01 * key.seed})
    write_surface_table(out, keys)
    tables.write_table(out / "comparison.parquet", comparison(), schemas.COMPARISON)
    return read_results(study, out)


def comparison() -> list[dict[str, Any]]:
    rows = []
    for split in ("train", "val"):
        for tree in tables.TREES:
            names = {"group_a": "large", "group_b": "small", "split": split, "tree": tree}
            counts = {"n_between": 2, "n_within": 0}
            unknown = {"distance": 2.5, "spread": None, "ratio": None, "reason": "one <seed>"}
            known = {"distance": 3.0, "spread": 2.0, "ratio": 1.5, "reason": None}
            rows.append(names | counts | {"domain": "samples"} | unknown)
            rows.append(names | counts | {"domain": "surfaces"} | known)
    return rows


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return with_surfaces(tmp_path_factory.mktemp("surfaces"))


@pytest.fixture(scope="module")
def page(results: Results) -> Elements:
    with pytest.MonkeyPatch.context() as undrawn:
        undrawn.setattr(report, "png_bytes", lambda figure: b"")
        written = write_report(results.study, results.out)
    return Elements(Path(written.path).read_text(encoding="utf-8"))


def all_of(page: Elements, tag: str) -> list[Any]:
    return [element for element in page.found if element.tag == tag]


def test_the_planes_are_the_thesiss_figures(results: Results) -> None:
    plates = {plate.name: plate for plate in surface_plates(results)}
    assert list(plates) == ["7.37", "surface-seeds-train", "7.38", "surface-seeds-val"]
    assert [plate.number for plate in plates.values()] == ["7.37", "", "7.38", ""]
    assert "training data" in plates["7.37"].caption
    assert "validation data" in plates["7.38"].caption
    for plate in plates.values():
        assert plate.figure.get_size_inches()[0] <= 6.2


def test_every_run_has_contours_heatmap_and_view_on_one_scale(results: Results) -> None:
    plate = next(surface_plates(results))
    *panels, bar = plate.figure.axes
    assert [ax.name for ax in panels] == ["rectilinear", "rectilinear", "3d"] * 2
    meshes = [ax.collections[0] for ax in panels[1::3]]
    assert all(isinstance(mesh, QuadMesh) for mesh in meshes)
    for mesh, run in zip(meshes, PLAN.rates, strict=True):
        np.testing.assert_allclose(mesh.get_array().reshape(11, 11), bowl(run, 12, SEEDS[0]))
    low, high = bowl("large", 12, 3).min(), bowl("small", 12, 5).max()
    assert [mesh.get_clim() for mesh in meshes] == [(low, high)] * 2
    assert all(panels[i].get_zlim() == pytest.approx(np.log10([low, high])) for i in (2, 5))
    assert bar.get_xlabel() == "mean loss (nats)"
    titles = [panels[i].get_title(loc="left") for i in (0, 3)]
    assert titles == ["large, epoch 12", "small, epoch 12"]
    for ax in panels[3:5]:
        assert ax.get_xlabel() == "first direction"
    assert [panels[i].get_ylabel() for i in (0, 3)] == ["second direction"] * 2


def test_points_that_are_not_finite_are_left_grey(results: Results) -> None:
    plate = list(surface_plates(results))[2]
    mesh = plate.figure.axes[4].collections[0]
    lost = np.ma.getmaskarray(mesh.get_array()).reshape(11, 11)
    assert np.argwhere(lost).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert plate.figure.axes[4].get_facecolor()[:3] == (0.75, 0.75, 0.75)
    labels = [label for label, _ in plate.numbers]
    assert "small, points not finite" in labels
    assert "large, points not finite" not in labels


def test_other_directions_are_shown_side_by_side(results: Results) -> None:
    plate = list(surface_plates(results))[1]
    titles = [ax.get_title() for ax in plate.figure.axes[:4]]
    assert titles == [f"{run}, seed {seed}" for run in PLAN.rates for seed in SEEDS]
    assert "2 of 2 seeds" in plate.caption


def test_one_seed_of_directions_needs_no_second_plate(results: Results) -> None:
    rows = [row for row in results.surfaces if row["seed"] == SEEDS[0]]
    names = [plate.name for plate in surface_plates(results._replace(surfaces=rows))]
    assert names == ["7.37", "7.38"]


def test_of_runs_that_differ_in_their_seed_the_first_is_shown(results: Results) -> None:
    large = results.study.runs["large"]
    seeded = large.model_copy(update={"training": large.training.model_copy(update={"seed": 9})})
    runs = {"large": large, "small": seeded}
    alike = results._replace(study=results.study.model_copy(update={"runs": runs}))
    plate = next(surface_plates(alike))
    assert len(plate.figure.axes) == 4
    assert all(label.startswith("large, ") for label, _ in plate.numbers)


def test_ranges_pool_the_planes_of_an_epoch(results: Results) -> None:
    [plate] = range_plates(results)
    assert (plate.number, plate.name) == ("", "range-mlp")
    axes = plate.figure.axes
    titles = [f"{run}, {split} data" for run in PLAN.rates for split in ("training", "validation")]
    assert [ax.get_title() for ax in axes] == titles
    median, centre = axes[0].lines[:2]
    planes = [[bowl("large", epoch, seed) for seed in SEEDS] for epoch in (4, 8, 12)]
    assert median.get_xdata().tolist() == [4, 8, 12]
    expected = [np.mean([np.median(grid) for grid in grids]) for grids in planes]
    np.testing.assert_allclose(median.get_ydata(), expected)
    np.testing.assert_allclose(centre.get_ydata(), [grids[0][5, 5] for grids in planes])
    span = axes[0].collections[0].get_paths()[0].get_extents()
    assert span.ymin == pytest.approx(np.min(planes))
    assert span.ymax == pytest.approx(np.max(planes))
    assert axes[0].get_yscale() == "log"
    # changes of the rate where the run's own are, a cross where points are not finite
    lines = {line.get_label(): line for line in axes[3].lines}
    assert lines["rate changes"].get_xdata()[0] == 7.5
    assert lines["some not finite"].get_xdata().tolist() == [12]
    assert plate.figure.get_size_inches()[0] <= 6.2


def test_ranges_have_the_thesiss_number_by_architecture(results: Results) -> None:
    vgg = results.study.runs["small"].model_copy(update={"model": Vgg9Model(name="vgg9")})
    runs = {"large": results.study.runs["large"], "small": vgg}
    study = results.study.model_copy(update={"runs": runs})
    plates = list(range_plates(results._replace(study=study)))
    assert [plate.name for plate in plates] == ["range-mlp", "5.1"]
    assert [len(plate.figure.axes) for plate in plates] == [2, 2]


def test_one_epoch_has_no_range_by_epoch(results: Results) -> None:
    rows = [row for row in results.surfaces if row["epoch"] == 12]
    assert list(range_plates(results._replace(surfaces=rows))) == []


def test_ratios_are_bars_and_what_is_not_known_says_so(results: Results) -> None:
    [plate] = comparison_plates(results)
    [ax] = plate.figure.axes
    samples, planes = ax.containers
    assert [bar.get_height() for bar in planes] == [1.5] * 4
    assert [bar.get_height() for bar in samples] == [0.0] * 4
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["not known"] * 4 + ["1.5"] * 4
    labels = [label for label, _ in plate.numbers]
    assert "losses of samples, validation data, split tree (minima): ratio (one <seed>)" in labels
    assert plate.caption.startswith("large against small: ")


def test_the_same_planes_are_the_same_picture(results: Results) -> None:
    first, again = (png_bytes(next(surface_plates(results)).figure) for _ in range(2))
    assert first == again
    pixels = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_nothing_known_is_no_empty_picture(results: Results) -> None:
    rows = [row | {"ratio": None} for row in results.comparison]
    [plate] = comparison_plates(results._replace(comparison=rows))
    assert "no spread is known" in [text.get_text() for text in plate.figure.axes[0].texts]


def test_every_number_on_the_page_is_that_of_its_table(results: Results, page: Elements) -> None:
    keys = {
        "surfaces": ("run", "epoch", "seed", "split"),
        "comparison": ("group_a", "group_b", "split", "tree", "domain"),
    }
    seen = set()
    for table, names in keys.items():
        rows = pq.read_table(f"{results.out.path}/{table}.parquet").to_pylist()
        by_key = {tuple(str(row[name]) for name in names): row for row in rows}
        for number in all_of(page, "data"):
            if number.data["table"] == table:
                row = by_key[tuple(number.data[name] for name in names)]
                written = number.attributes["value"]
                assert (float(written) if written else None) == row[number.data["column"]]
                seen.add((table, number.data["column"]))
    columns = ("centre", "min", "median", "max", "cosine", "n_nonfinite")
    assert seen == {
        *(("surfaces", name) for name in columns),
        *(("comparison", name) for name in ("ratio", "distance", "spread")),
    }


def test_the_page_has_the_sections_and_links_to_them(page: Elements) -> None:
    sections = {one.attributes.get("id") for one in all_of(page, "section")}
    wanted = {"surfaces", "neighbourhood", "comparison"}
    assert wanted <= sections
    assert {f"#{name}" for name in wanted} <= {one.attributes["href"] for one in all_of(page, "a")}
    ids = [one.attributes["id"] for one in page.found if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    figures = {one.attributes.get("data-figure") for one in all_of(page, "figure")}
    assert {"7.37", "7.38"} <= figures
    assert "one <seed>" in " ".join(one.text for one in all_of(page, "span"))


def test_a_page_without_surfaces_has_no_such_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "png_bytes", lambda figure: b"")
    written = write_report(*planted_study(PLAN, tmp_path))
    page = Elements(Path(written.path).read_text(encoding="utf-8"))
    sections = {one.attributes.get("id") for one in all_of(page, "section")}
    assert not sections & {"surfaces", "neighbourhood", "comparison"}


def test_other_surfaces_make_another_page(tmp_path: Path, results: Results) -> None:
    other = with_surfaces(tmp_path, epochs=(4, 12))
    before = inputs_digest(other)
    key = PlaneKey("large", 12, SEEDS[0])
    grids = {split: np.ones((11, 11)) for split in ("train", "val")}
    write_surface(surface_file(other.out, key), Surface(AXIS, AXIS, grids, grids), {})
    write_surface_table(other.out, [PlaneKey(r, 12, s) for r in PLAN.rates for s in SEEDS])
    assert inputs_digest(read_results(other.study, other.out)) != before
    less = results._replace(comparison=results.comparison[:4])
    assert inputs_digest(less) != inputs_digest(results)


def test_the_scale_spans_all_finite_losses_above_zero() -> None:
    grids = [np.array([[0.0, 0.5], [np.nan, 2.0]]), np.array([[np.inf, 30.0]])]
    assert loss_scale(grids) == LossScale(0.5, 30.0)
    assert loss_scale([np.ones((2, 2))]) == LossScale(1.0, 2.0)
    assert loss_scale([np.full((2, 2), np.nan)]) == LossScale(0.1, 10.0)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.08, 120.0, ["0.1", "0.3", "1", "3", "10", "30", "100"]),
        (0.4, 9.0, ["0.5", "1", "2", "5"]),
        (2.05, 2.55, ["2.1", "2.2", "2.3", "2.4", "2.5"]),
        (1e-6, 1e6, ["$10^{-6}$", "$10^{-4}$", "0.01", "1", "100", "$10^{4}$", "$10^{6}$"]),
        (2e4, 4e5, ["2·$10^{4}$", "5·$10^{4}$", "$10^{5}$", "2·$10^{5}$"]),
    ],
)
def test_round_losses_are_ticks(low: float, high: float, ticks: list[str]) -> None:
    bar = plot_scale(LossScale(low, high), [new_figure(4, 2).subplots()])
    found = [text.get_text() for text in bar.get_xticklabels()]
    assert found[: len(ticks)] == ticks
    assert len(found) <= 9


def test_plots_go_where_they_are_told_and_say_what_they_show() -> None:
    figure = new_figure(6, 3)
    flat, view = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    scale, grid = LossScale(0.5, 50.0), bowl("large", 1, 0)
    grid[0, 0] = np.inf
    assert plot_contours(grid, AXIS, AXIS, scale=scale, ax=flat) is flat
    assert plot_surface_heatmap(grid, AXIS, AXIS, scale=scale, ax=flat) is flat
    assert plot_surface_view(grid, AXIS, AXIS, scale=scale, ax=view) is view
    assert [text.get_text() for text in view.get_zticklabels()] == ["1", "3", "10", "30"]
    rows = [
        {"epoch": e} | dict.fromkeys(("min", "q25", "median", "q75", "max", "centre"), float(e))
        for e in (1, 2)
    ]
    below = new_figure(4, 3).subplots()
    assert plot_loss_range(rows, style=1, ax=below) is below
    assert below.lines[0].get_color() == COLOURS[1]
