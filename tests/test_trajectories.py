from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from planted import Plan, planted_study

from lltopo.figures import COLOURS, LINES, MARKERS, new_figure
from lltopo.results import read_results
from lltopo.trajectories import (
    classical_scaling,
    distance_matrix_of,
    matrix_plates,
    plot_distance_matrix,
    plot_trajectories,
)


def plane_distances(points: np.ndarray) -> np.ndarray:
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


def test_points_of_a_plane_keep_their_distances() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2)) * [5.0, 1.0]
    found = classical_scaling(plane_distances(points))
    assert_allclose(plane_distances(found.points), plane_distances(points), atol=1e-9)
    assert found.share == pytest.approx(1.0)
    assert np.ptp(found.points[:, 0]) > np.ptp(found.points[:, 1])


def test_a_plane_holds_two_thirds_of_a_cube() -> None:
    simplex = np.eye(4)
    assert classical_scaling(plane_distances(simplex)).share == pytest.approx(2 / 3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_or_equal_points(n: int) -> None:
    found = classical_scaling(np.zeros((n, n)))
    assert found.points.tolist() == [[0.0, 0.0]] * n
    assert found.share == 1.0


def test_rows_become_a_symmetric_matrix_run_after_run() -> None:
    keys = [("a", 1), ("a", 2), ("b", 1)]
    rows = [
        {
            "run_a": keys[i][0],
            "epoch_a": keys[i][1],
            "run_b": keys[j][0],
            "epoch_b": keys[j][1],
            "distance": 10.0 * i + j,
        }
        for i in range(3)
        for j in range(i + 1, 3)
    ]
    found, distances = distance_matrix_of(rows)
    assert found == keys
    assert distances.tolist() == [[0.0, 1.0, 2.0], [1.0, 0.0, 12.0], [2.0, 12.0, 0.0]]


def test_plots_show_every_epoch_of_every_run() -> None:
    points = np.arange(10.0).reshape(5, 2)
    ax = plot_trajectories(points, {"large": [0, 1, 2], "small": [0, 4]})
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        points[:3].tolist(),
        points[3:].tolist(),
    ]
    assert [text.get_text() for text in ax.texts] == ["0", "2", "0", "4"]
    matrix = plot_distance_matrix(plane_distances(points), {"large": 3, "small": 2})
    assert [t.get_text() for t in matrix.get_xticklabels()] == ["large", "small"]
    assert matrix.get_xticks().tolist() == [1.0, 3.5]
    assert matrix.lines[0].get_ydata()[0] == 2.5


def test_names_of_runs_are_no_formulas() -> None:
    lengths = {"a$b^c$": 1, "$x": 1}
    matrix = plot_distance_matrix(np.ones((2, 2)), lengths)
    texts = [*matrix.get_xticklabels(), *matrix.get_yticklabels()]
    ax = plot_trajectories(np.eye(2), {run: [1] for run in lengths})
    texts += ax.get_legend().get_texts()
    assert [text.get_text() for text in texts] == [*lengths] * 3
    assert not any(text.get_parse_math() for text in texts)


def test_each_run_has_its_own_colour_line_and_marker() -> None:
    ax = plot_trajectories(np.zeros((14, 2)), {f"r{i}": [1, 2] for i in range(7)})
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines]
    assert looks == [(COLOURS[i], LINES[i % len(LINES)], MARKERS[i]) for i in range(7)]


def test_plots_go_where_they_are_told() -> None:
    above, below = new_figure(4, 8).subplots(2)
    assert plot_distance_matrix(np.zeros((1, 1)), {"r": 1}, ax=above) is above
    assert plot_trajectories(np.zeros((1, 2)), {"r": [1]}, ax=below) is below


def test_a_plate_is_narrow_enough_for_a_phone(tmp_path: Path) -> None:
    results = read_results(*planted_study(Plan(n_pairs=2), tmp_path))
    keys = [(run, epoch) for run in ("large", "small") for epoch in range(1, 13)]
    rows = [
        {
            "split": "val",
            "tree": "join",
            "order": 1.0,
            "run_a": a[0],
            "epoch_a": a[1],
            "run_b": b[0],
            "epoch_b": b[1],
            "distance": abs(a[1] - b[1]) + 3.0 * (a[0] != b[0]),
        }
        for a, b in combinations(keys, 2)
    ]
    [plate] = matrix_plates(results._replace(distances=rows))
    width, height = plate.figure.get_size_inches()
    assert width <= 6.2 < height
    above, below = plate.figure.axes[:2]
    assert above.get_position().y0 > below.get_position().y1
    assert [line.get_label() for line in below.lines] == ["large", "small"]
