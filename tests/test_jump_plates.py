"""Pictures and page of planted jumps: what is drawn where, and the numbers of the tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from numpy.testing import assert_array_equal
from pages import Elements
from planted import Plan, planted_study

from lltopo import report, schemas, tables
from lltopo.figures import COLOURS, MARKERS, new_figure
from lltopo.jump_plates import jump_plates, plot_classes, plot_embedding
from lltopo.report import inputs_digest, write_report
from lltopo.results import Row, read_results
from lltopo.sections import SPLITS
from lltopo.storage import Place

RUNS = ("only", "a$b^c$")
PLAN = Plan(rates={"only": 0.1}, epochs=range(1, 4), milestones=(), n_pairs=3)
EPOCHS = 3


def jump_rows(run: str) -> list[Row]:
    """An optimum and four trajectories, each point at a place and with a loss of its own."""
    rows = [point(run, 0, 0.0, 0, (0.0, 0.0), 0.01)]
    for seed in (0, 1):
        for i, step in enumerate((0.25, 1.0)):
            rows.append(point(run, seed, step, 0, (None, None), 50.0))
            for epoch in range(1, EPOCHS + 1):
                place = (seed + step / epoch, i - epoch / 7)
                rows.append(point(run, seed, step, epoch, place, 2.0 * step / epoch**3 + seed))
    return rows


def point(run: str, seed: int, step: float, epoch: int, place: tuple, loss: float) -> Row:
    key = {"run": run, "seed": seed, "step": step, "epoch": epoch, "x": place[0], "y": place[1]}
    losses = {"train_loss": loss / 2, "train_accuracy": 0.75, "val_loss": loss, "val_accuracy": 0.5}
    return key | losses


def diagram_rows(run: str) -> list[Row]:
    return [
        {
            "run": run,
            "split": split,
            "dimension": dimension,
            "birth": 0.1 * (dimension + 1) + i,
            "death": 0.5 * (dimension + 1) + 2 * i + 0.01 * (split == "val"),
            "essential": i == 2,
        }
        for split in SPLITS
        for dimension in (0, 1)
        for i in range(3 - dimension)
    ]


def summary_rows(run: str) -> list[Row]:
    return [
        {
            "run": run,
            "split": split,
            "dimension": dimension,
            "n_points": 12,
            "n_pairs": 3 - dimension,
            "n_essential": 1,
            "total_persistence": 1.5 + dimension + (split == "val") / 3,
            "max_persistence": 1.25,
            "persistent_entropy": 0.875 + dimension / 7 + (split == "val") / 9,
        }
        for split in SPLITS
        for dimension in (0, 1)
    ]


def write_jumps(out: Place, runs: tuple[str, ...] = RUNS) -> None:
    for name, schema, rows in (
        ("jump", schemas.JUMP, jump_rows),
        ("jump_diagrams", schemas.JUMP_DIAGRAMS, diagram_rows),
        ("jump_summary", schemas.JUMP_SUMMARY, summary_rows),
    ):
        content = [row for run in runs for row in rows(run)]
        tables.write_table(out / f"{name}.parquet", content, schema)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "png_bytes", lambda figure: repr(figure.get_size_inches()).encode())


def test_every_point_is_drawn_where_it_is_in_the_colour_of_its_loss() -> None:
    rows = jump_rows("only")
    ax = plot_embedding(rows)
    drawn = ax.collections
    assert len(drawn) == 2
    for collection, step in zip(drawn, (0.25, 1.0), strict=True):
        points = [row for row in rows if row["step"] == step and row["x"] is not None]
        assert_array_equal(collection.get_offsets(), [(row["x"], row["y"]) for row in points])
        assert_array_equal(collection.get_array(), [row["val_loss"] for row in points])
        # one scale for all, which neither the jumps themselves nor the optimum stretch
        assert isinstance(collection.norm, LogNorm)
        assert (collection.norm.vmin, collection.norm.vmax) == (0.5 / 27, 3.0)
    shapes = [collection.get_paths()[0].vertices.tobytes() for collection in drawn]
    assert len(set(shapes)) == 2


def test_trajectories_are_lines_and_the_optimum_is_a_star() -> None:
    rows = jump_rows("only")
    ax = plot_embedding(rows)
    *ways, star = ax.lines
    expected = [
        [(r["x"], r["y"]) for r in rows if (r["seed"], r["step"]) == key and r["x"] is not None]
        for key in ((0, 0.25), (0, 1.0), (1, 0.25), (1, 1.0))
    ]
    assert [[tuple(at) for at in way.get_xydata()] for way in ways] == expected
    assert star.get_xydata().tolist() == [[0.0, 0.0]]
    assert star.get_marker() == "*"
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["step 0.25", "step 1", "optimum"]
    markers = [handle.get_marker() for handle in legend.legend_handles]
    assert markers == [MARKERS[0], MARKERS[1], "*"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PHATE 1", "PHATE 2")


@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_equal_losses_have_a_colour(loss: float) -> None:
    rows = [row | {"val_loss": loss} for row in jump_rows("only")]
    ax = plot_embedding(rows)
    ax.figure.canvas.draw()
    assert ax.collections[0].norm.vmin < ax.collections[0].norm.vmax


def test_points_without_a_place_are_not_drawn() -> None:
    ax = plot_embedding([row | {"x": None, "y": None} for row in jump_rows("only")])
    ax.figure.canvas.draw()
    assert not ax.collections


def test_diagrams_show_both_splits_and_essential_classes_hollow() -> None:
    rows = diagram_rows("only")
    ax = plot_classes(rows, 0)
    assert ax.get_title() == "components (H0)"
    points = iter(ax.lines)
    for i, split in enumerate(SPLITS):
        for essential in (False, True):
            line = next(points)
            expected = [
                [row["birth"], row["death"]]
                for row in rows
                if (row["split"], row["dimension"], row["essential"]) == (split, 0, essential)
            ]
            assert line.get_xydata().tolist() == expected
            assert line.get_fillstyle() == ("none" if essential else "full")
            assert (line.get_color(), line.get_marker()) == (COLOURS[i], MARKERS[i])
    diagonal = next(points)
    assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert plot_classes([row | {"birth": 0.0} for row in rows], 0).get_xscale() == "linear"


def test_a_dimension_without_a_class_says_so() -> None:
    ax = plot_classes([], 1)
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.texts] == ["none"]
    assert ax.get_title() == "loops (H1)"


def test_plots_go_where_they_are_told() -> None:
    above, below = new_figure(4, 8).subplots(2)
    assert plot_embedding(jump_rows("only"), ax=above) is above
    assert plot_classes(diagram_rows("only"), 0, ax=below) is below


def test_a_plate_a_run_tells_what_is_left_out(tmp_path: Path) -> None:
    study, out = planted_study(PLAN, tmp_path)
    write_jumps(out)
    results = read_results(study, out)
    plates = list(jump_plates(results))
    assert [plate.name for plate in plates] == ["jump-only", "jump-a$b^c$"]
    scales = [plate.figure.subfigs[0].axes[0].collections[0].norm for plate in plates]
    assert (scales[0].vmin, scales[0].vmax) == (scales[1].vmin, scales[1].vmax)
    for plate in plates:
        width, height = plate.figure.get_size_inches()
        assert width <= 6.2 < height
        assert "4 jumps away from its weights and 3 epochs" in plate.caption
        assert "left out" not in plate.caption
        above, below = plate.figure.subfigs
        assert above.get_suptitle() == plate.name.removeprefix("jump-")
        assert not above._suptitle.get_parse_math()
        labels = [text.get_text() for text in below.legends[0].get_texts()]
        assert labels == ["training data", "validation data"]
    lost = [
        row | ({"val_loss": math.nan, "x": None, "y": None} if row["epoch"] == 2 else {})
        for row in results.jumps
    ]
    first = next(jump_plates(results._replace(jumps=lost)))
    assert first.caption.endswith(" 4 losses that are not finite are left out.")


def test_the_numbers_on_the_page_are_those_of_the_table(undrawn: None, tmp_path: Path) -> None:
    study, out = planted_study(PLAN, tmp_path)
    write_jumps(out, ("only",))
    page = Elements(Path(write_report(study, out).path).read_text(encoding="utf-8")).found
    assert {"jump", "figure-jump-only"} <= {one.attributes.get("id") for one in page}
    numbers = [e for e in page if e.tag == "data" and e.data["table"] == "jump_summary"]
    summary = {(row["split"], row["dimension"]): row for row in summary_rows("only")}
    seen = set()
    for number in numbers:
        key = (number.data["split"], int(number.data["dimension"]))
        column = number.data["column"]
        assert number.data["run"] == "only"
        assert float(number.attributes["value"] or "") == summary[key][column]
        seen.add((*key, column))
    columns = ("n_pairs", "n_essential", "total_persistence", "persistent_entropy")
    assert seen == {(*key, column) for key in summary for column in columns}
    assert len(numbers) == len(seen)


def test_without_jumps_there_is_no_section(undrawn: None, tmp_path: Path) -> None:
    study, out = planted_study(PLAN, tmp_path)
    page = Elements(Path(write_report(study, out).path).read_text(encoding="utf-8")).found
    assert "jump" not in {one.attributes.get("id") for one in page}


@pytest.mark.parametrize("part", ["jumps", "jump_diagrams", "jump_summary"])
def test_other_jumps_make_another_page(tmp_path: Path, part: str) -> None:
    study, out = planted_study(PLAN, tmp_path)
    write_jumps(out)
    results = read_results(study, out)
    changed = results._replace(**{part: getattr(results, part)[:-1]})
    assert inputs_digest(changed) != inputs_digest(results)


def test_drawing_is_the_same_every_time(tmp_path: Path) -> None:
    study, out = planted_study(PLAN, tmp_path)
    write_jumps(out, ("only",))
    results = read_results(study, out)
    first, again = (report.png_bytes(next(jump_plates(results)).figure) for _ in range(2))
    assert first == again
    assert np.frombuffer(first[:8], np.uint8).tobytes() == b"\x89PNG\r\n\x1a\n"
