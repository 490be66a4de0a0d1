"""The check by other people's code: silent on good results, loud on any that was altered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lltopo import verification
from lltopo.analysis import Row, field_rows, reference_diagrams, write_field_diagrams
from lltopo.diagrams import persistence_pairs
from lltopo.graph import Graph, knn_graph
from lltopo.graph_files import MadeGraph
from lltopo.storage import Place, place
from lltopo.study import Analysis
from lltopo.tables import Field, LossTable, diagram_file, write_losses
from lltopo.verification import chosen_fields, disagreements, gudhi_diagram, transport_cost

RNG = np.random.default_rng(12)
N = 60
# two clouds far apart: the graph has two components
FEATURES = np.concatenate([RNG.normal(size=(40, 3)), 100 + RNG.normal(size=(20, 3))])
MADE = MadeGraph(knn_graph(FEATURES, k=3), {}, "made")
FIELDS = [Field("only", "val", epoch) for epoch in (1, 2)]
ANALYSIS = Analysis(order=[1, 2])


@pytest.fixture
def out(tmp_path: Path) -> Place:
    out = place(tmp_path)
    for field in FIELDS:
        analyze(out, field, RNG.exponential(size=N))
    return out


def analyze(out: Place, field: Field, loss: np.ndarray) -> None:
    write_losses(out / "losses", field, LossTable(loss.astype(np.float32), None, None))
    write_field_diagrams(out / "losses", out, field, MADE, Analysis())


def rows_of(out: Place, field: Field = FIELDS[0], analysis: Analysis = ANALYSIS) -> list[Row]:
    reference = reference_diagrams(out, field._replace(epoch=2), analysis)
    return field_rows(out, field, reference, analysis)


def found(out: Place, rows: list[Row], field: Field = FIELDS[0]) -> list[str]:
    return disagreements(out / "losses", out, field, MADE, rows)


def alter(out: Place, tree: str, column: str, row: int, value: float) -> None:
    """Change one value of a diagram's file."""
    path = diagram_file(out, FIELDS[0], tree).path
    table = pq.read_table(path)
    values = table[column].to_numpy().copy()
    values[row] = value
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, table.schema.field(column), pa.array(values)), path)


def test_good_results_are_agreed_with(out: Place) -> None:
    assert len(rows_of(out)) == 4
    assert rows_of(out)[0]["wasserstein"] > 0
    for field in FIELDS:
        assert found(out, rows_of(out, field), field) == []


@pytest.mark.parametrize("tree", ["join", "split"])
@pytest.mark.parametrize("column", ["birth", "death"])
@pytest.mark.parametrize("row", [0, -1])
def test_one_altered_value_is_noticed(out: Place, tree: str, column: str, row: int) -> None:
    rows = rows_of(out)
    value = pq.read_table(diagram_file(out, FIELDS[0], tree).path)[column][row].as_py()
    alter(out, tree, column, row, np.nextafter(value, np.inf))
    assert found(out, rows)[0].endswith(
        f"tree={tree}/epoch=00001/part-0.parquet: differs from GUDHI's diagram"
    )


def test_a_lost_and_an_invented_pair_are_noticed(out: Place) -> None:
    path = diagram_file(out, FIELDS[0], "join").path
    table = pq.read_table(path)
    for altered in (table.slice(1), pa.concat_tables([table, table.slice(0, 1)])):
        pq.write_table(altered, path)
        assert any("GUDHI" in line for line in found(out, rows_of(out)))


def test_diagrams_of_another_tables_losses_are_noticed(out: Place) -> None:
    loss = LossTable(RNG.exponential(size=N).astype(np.float32), None, None)
    write_losses(out / "losses", FIELDS[0], loss)
    assert len([line for line in found(out, rows_of(out)) if "GUDHI" in line]) == 2


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("factor", [1 + 1e-7, 1 - 1e-7, 0.0])
def test_a_wrong_distance_is_noticed(out: Place, index: int, factor: float) -> None:
    rows = rows_of(out)
    rows[index]["wasserstein"] *= factor
    [line] = found(out, rows)
    order = f"{rows[index]['order']:g}"
    assert f"tree={rows[index]['tree']}/" in line
    assert f"W_{order}^{order} to epoch 2: " in line
    assert line.endswith("by POT")


def test_a_wrong_transport_is_noticed(out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "transport_cost", lambda a, b, order: (123.0, 1.0))
    assert len(found(out, rows_of(out))) == 4


def test_a_diverged_field_must_have_no_pairs(out: Place) -> None:
    good = pq.read_table(diagram_file(out, FIELDS[0], "join").path)
    loss = RNG.exponential(size=N)
    loss[3] = np.nan
    analyze(out, FIELDS[0], loss)
    rows = rows_of(out)
    assert rows[0]["status"] == "diverged"
    assert found(out, rows) == []
    pq.write_table(good, diagram_file(out, FIELDS[0], "join").path)
    assert len(found(out, rows)) == 1


@pytest.mark.parametrize("essential", ["drop", "inf"])
def test_diagrams_are_checked_whatever_becomes_of_essential_pairs(
    out: Place, essential: str
) -> None:
    rows = rows_of(out, analysis=Analysis(essential=essential))
    assert found(out, rows) == []
    alter(out, "join", "birth", 0, 77.0)
    assert len(found(out, rows)) == 1


# -- the other people's code --


def test_gudhis_diagram_is_ours_on_nasty_fields() -> None:
    isolated = Graph.from_edges(5, np.array([[0, 1], [1, 2]]))
    empty = Graph.from_edges(0, np.empty((0, 2), int))
    fields = [
        (MADE.graph, RNG.integers(0, 4, N).astype(float)),
        (MADE.graph, np.zeros(N)),
        (MADE.graph, -np.arange(N, dtype=float)),
        (isolated, np.array([1.0, 0.0, 1.0, 5.0, 5.0])),
        (empty, np.empty(0)),
    ]
    for graph, values in fields:
        for tree in ("join", "split"):
            pairs = persistence_pairs(graph, values, tree)
            points = np.column_stack([pairs.birth, pairs.death])
            ours = points[np.lexsort((points[:, 1], points[:, 0]))]
            np.testing.assert_array_equal(gudhi_diagram(graph, values, tree), ours)


def test_the_transport_is_the_cheapest_matching() -> None:
    a = np.array([[0.0, 4.0], [10.0, 11.0]])
    b = np.array([[1.0, 4.0]])
    # 1 for the long points, half of 1 for the short one's way to the diagonal
    assert transport_cost(a, b, 1.0) == (pytest.approx(1.5), 9.0)
    assert transport_cost(a, b, 2.0) == (pytest.approx(1.25), 81.0)
    assert transport_cost(a[:0], b[:0], 1.0) == (0.0, 0.0)
    assert transport_cost(a[:0], b, 1.0)[0] == pytest.approx(1.5)


def test_fields_are_drawn_without_repetition_and_always_alike() -> None:
    fields = [Field("only", split, epoch) for split in ("train", "val") for epoch in range(20)]
    drawn = chosen_fields(fields, 7)
    assert drawn == chosen_fields(fields, 7)
    assert len(set(drawn)) == 7
    assert set(drawn) <= set(fields)
    assert drawn != chosen_fields(fields, 7, seed=1)
    assert chosen_fields(fields, 100) == fields
    assert chosen_fields(fields, 0) == []
