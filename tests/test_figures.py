"""Figures of arrays: what is drawn is what was given, and nothing global is touched."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from PIL import Image

from lltopo import figures, heatmaps

JOIN = np.array([[3.0, 1.0], [2.5, 0.5], [2.4, 0.5], [9.0, 0.001]])
SPLIT = JOIN[:, ::-1]
DIAGRAMS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(0, 30), st.just(2)),
    elements=st.floats(-50, 50) | st.floats(0, 1e-6) | st.sampled_from([0.0, 1.0, 20.0]),
)


def new_axes():
    return Figure().subplots()


@pytest.mark.parametrize(
    "plot",
    [
        lambda ax: figures.plot_diagram(JOIN, label="join", ax=ax),
        lambda ax: figures.plot_heatmap(SPLIT, ax=ax),
        lambda ax: figures.plot_series([1, 2, 3], [3.0, np.nan, 1.0], label="run", ax=ax),
        lambda ax: figures.plot_milestones([2], ax=ax),
        lambda ax: figures.plot_lost_epochs([2], ax=ax),
        lambda ax: figures.plot_matrix(np.eye(2), ["a", "b"], ["c", "d"], ax=ax),
    ],
)
def test_a_plot_draws_into_the_axes_it_is_given(plot):
    ax = new_axes()
    before = len(ax.get_children())
    assert plot(ax) is ax
    assert len(ax.get_children()) > before
    assert figures.png_bytes(ax.figure)


@pytest.mark.parametrize(
    "plot",
    [
        lambda: figures.plot_diagram(JOIN),
        lambda: figures.plot_heatmap(JOIN),
        lambda: figures.plot_series([1], [2.0]),
        lambda: figures.plot_matrix([[0.5]], ["a"], ["b"]),
    ],
)
def test_a_plot_without_axes_makes_a_figure_of_its_own(plot):
    assert figures.png_bytes(plot().figure).startswith(b"\x89PNG")


def test_pyplot_is_never_loaded():
    code = (
        "import sys, lltopo.figures as f, lltopo.report; f.plot_heatmap([[1.0, 0.5]]); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_diagram_shows_finite_and_infinite_points():
    ax = figures.plot_diagram([[1.0, 2.0], [0.5, np.inf], [3.0, -np.inf]])
    drawn = [tuple(point) for line in ax.get_lines() for point in line.get_xydata()]
    assert (1.0, 2.0) in drawn
    assert (0.5, 3.0) in drawn
    assert (3.0, 0.5) in drawn


def test_heatmap_says_how_many_points_it_cannot_draw():
    ax = figures.plot_heatmap([[1.0, 2.0], [0.5, np.inf], [0.7, np.inf]])
    assert [text.get_text() for text in ax.texts] == ["2 infinite not drawn"]


def test_heatmaps_on_one_scale_share_axes_bins_and_colours():
    late = JOIN / 7
    scale = heatmaps.common_scale([JOIN, late], bins=12)
    one, other = (figures.plot_heatmap(dgm, scale=scale) for dgm in (JOIN, late))
    assert one.get_xlim() == other.get_xlim() == one.get_ylim()
    first, second = (ax.collections[0] for ax in (one, other))
    assert first.get_clim() == second.get_clim() == (1, 2)
    np.testing.assert_array_equal(first.get_coordinates(), second.get_coordinates())
    assert first.get_array().compressed().sum() == second.get_array().compressed().sum() == 4


def test_heatmap_of_an_empty_diagram_is_empty():
    ax = figures.plot_heatmap(np.empty((0, 2)))
    assert ax.collections[0].get_array().count() == 0


@given(st.lists(DIAGRAMS, max_size=3), st.integers(2, 50))
@example([np.array([[5e-324, 0.0]])], 2)
@example([np.array([[50.0, np.nextafter(50.0, 51.0)]])], 7)
@example([np.array([[0.0, 1e-90], [1e-90, 0.0]])], 50)
@example([np.array([[1e9, 0.0], [0.5, 1e9]])], 50)
@example([np.full((3, 2), 1e15)], 7)
@settings(max_examples=60, deadline=None)
def test_no_point_of_compared_diagrams_falls_off_the_scale(dgms, bins):
    scale = heatmaps.common_scale(dgms, bins)
    counts = [heatmaps.heatmap_counts(dgm, scale) for dgm in dgms]
    assert [count.sum() for count in counts] == [len(dgm) for dgm in dgms]
    assert max([1, *(int(count.max()) for count in counts)]) == scale.fullest
    ticks = list(heatmaps.axis_ticks(scale))
    assert all(scale.low - 1e-6 <= tick <= scale.high + 1e-6 for tick in ticks)


def test_counts_equal_those_of_a_loop_over_the_bins_drawn():
    rng = np.random.default_rng(0)
    dgm = rng.exponential(size=(200, 2)) ** 3
    scale = heatmaps.common_scale([dgm], bins=9)
    edges = figures.plot_heatmap(dgm, scale=scale).collections[0].get_coordinates()[0, :, 0]
    expected = np.zeros((9, 9), dtype=int)
    for birth, death in dgm:
        expected[sum(birth >= e for e in edges[1:-1]), sum(death >= e for e in edges[1:-1])] += 1
    np.testing.assert_array_equal(heatmaps.heatmap_counts(dgm, scale), expected)


def test_ticks_are_round_labelled_and_apart():
    scale = heatmaps.Scale(40, 0.0, 12.0, 1e-4, 5)
    ticks = heatmaps.axis_ticks(scale)
    assert ticks[0.0] == "0"
    assert ticks[10.0] == "10"
    assert ticks[1e-3] == "10⁻³"
    places = np.sort(np.arcsinh(np.array(list(ticks)) / 1e-4))
    assert np.diff(places).min() > np.arcsinh(12e4) / 6


def test_series_differ_in_colour_and_in_line_or_marker():
    lines = [figures.plot_series([1, 2], [1.0, 2.0], style=i).get_lines()[0] for i in range(7)]
    assert len({line.get_color() for line in lines}) == 7
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 7


def test_series_breaks_where_there_is_no_value():
    line = figures.plot_series([1, 2, 3], [3.0, np.nan, 1.0]).get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [3.0, np.nan, 1.0])


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 2.0, 40.0], "linear"),
        ([1.0, 2.0, 60.0], "log"),
        ([0.0, 1.0, 60.0], "symlog"),
        ([0.0, 1.0, 2.0], "linear"),
        ([0.0, 0.0], "linear"),
        ([np.nan, np.nan], "linear"),
    ],
)
def test_value_axis_is_logarithmic_over_decades(values, scale):
    ax = figures.plot_series(np.arange(len(values)), values)
    assert figures.fit_value_axis(ax).get_yscale() == scale


def test_a_change_of_the_rate_stands_before_its_first_epoch():
    lines = figures.plot_milestones([9, 4], ax=new_axes()).get_lines()
    assert [line.get_xdata()[0] for line in lines] == [3.5, 8.5]
    assert [line.get_label() for line in lines].count("rate changes") == 1


def test_matrix_writes_every_value_and_marks_missing_ones():
    ax = figures.plot_matrix([[-1.0, 0.256], [np.nan, -0.001]], ["a", "b"], ["c", "d"])
    assert [text.get_text() for text in ax.texts] == ["-1.00", "0.26", "–", "0.00"]


def test_png_is_the_same_every_time_and_tells_no_version_or_time():
    first, second = (figures.png_bytes(figures.plot_heatmap(JOIN).figure) for _ in range(2))
    assert first == second
    assert not {"Software", "date", "Creation Time"} & Image.open(io.BytesIO(first)).info.keys()
    assert b"tEXt" not in first
    assert b"tIME" not in first
