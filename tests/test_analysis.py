"""From a loss table to diagrams, from diagrams to the rows of the series."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lltopo.analysis import (
    Row,
    contour_rows,
    current_metadata,
    failed_rows,
    field_diagrams,
    field_rows,
    in_study_order,
    interned,
    read_pairs,
    reference_diagrams,
    reference_epochs,
    series_digests,
    write_field_diagrams,
)
from lltopo.errors import InputError
from lltopo.graph import Graph
from lltopo.graph_files import MadeGraph
from lltopo.schemas import CONTOURS, SERIES
from lltopo.storage import Place, place
from lltopo.study import Analysis
from lltopo.tables import Field, LossTable, diagram_file, footer, write_losses

# a path of five vertices: minima at 0, 2 and 4, maxima at 1 and 3
PATH = MadeGraph(Graph.from_edges(5, np.array([[0, 1], [1, 2], [2, 3], [3, 4]])), {}, "path")
LOSS = np.array([1.0, 7.0, 2.0, 5.0, 3.0], np.float32)
FIELD = Field("only", "val", 2)


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return place(tmp_path)


def record(out: Place, loss: np.ndarray, epoch: int = 2) -> Field:
    field = FIELD._replace(epoch=epoch)
    write_losses(out / "losses", field, LossTable(loss.astype(np.float32), None, None))
    return field


def analyzed(out: Place, loss: np.ndarray, epoch: int = 2, contour: bool = False) -> Field:
    field = record(out, loss, epoch)
    write_field_diagrams(out / "losses", out, field, PATH, Analysis(contour=contour))
    return field


def rows_of(out: Place, field: Field, reference_epoch: int, analysis: Analysis) -> list[Row]:
    last = field._replace(epoch=reference_epoch)
    return field_rows(out, field, reference_diagrams(out, last, analysis), analysis)


# -- diagrams of a field --


def test_the_diagrams_of_a_path_are_those_found_by_hand() -> None:
    found = field_diagrams(LOSS, PATH)
    split = list(zip(*found.split, strict=True))
    # the minimum 3 meets an elder component at 5, the minimum 2 at 7, the least one lives on
    assert sorted(split) == [(1, 7, 0, 1, True), (2, 7, 2, 1, False), (3, 5, 4, 3, False)]
    join = list(zip(*found.join, strict=True))
    assert sorted(join) == [(5, 2, 3, 2, False), (7, 1, 1, 0, True)]
    assert found.metadata["status"] == "ok"
    assert found.metadata["n_nonfinite"] == "0"
    assert found.metadata["graph"] == "path"
    assert "contour" not in found.metadata


def test_a_field_of_another_length_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"loss: does not fit the graph: expected 5 samples, got 4"
    ):
        field_diagrams(LOSS[:4], PATH)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_field_that_is_not_finite_has_diverged(value: float) -> None:
    loss = LOSS.copy()
    loss[[1, 3]] = value
    found = field_diagrams(loss, PATH)
    assert all(len(column) == 0 for pairs in (found.join, found.split) for column in pairs)
    assert found.metadata["status"] == "diverged"
    assert found.metadata["n_nonfinite"] == "2"
    assert found.metadata["reason"] == "2 of 5 losses are not finite"
    assert "contour" not in found.metadata


def test_both_diagrams_are_written_and_read_back(out: Place) -> None:
    metadata = write_field_diagrams(out / "losses", out, record(out, LOSS), PATH, Analysis())
    expected = field_diagrams(LOSS, PATH)
    for tree, pairs in (("join", expected.join), ("split", expected.split)):
        found = read_pairs(out, FIELD, tree)
        for ours, theirs in zip(found, pairs, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert footer(diagram_file(out, FIELD, tree)) == metadata
    assert metadata.items() > expected.metadata.items()
    assert json.loads(metadata["metrics"]) == {"split": "val", "loss": 3.6, "accuracy": None}
    schema = pq.read_schema(diagram_file(out, FIELD, "join").path)
    assert schema.names == ["birth", "death", "birth_sample", "death_sample", "essential"]


def test_the_same_field_makes_the_same_bytes(out: Place) -> None:
    field = analyzed(out, LOSS)
    files = [Path(diagram_file(out, field, tree).path) for tree in ("join", "split")]
    before = [file.read_bytes() for file in files]
    write_field_diagrams(out / "losses", out, field, PATH, Analysis())
    assert [file.read_bytes() for file in files] == before
    assert before[0] != before[1]


def test_the_contour_tree_is_counted_where_it_is_asked_for(out: Place) -> None:
    fields = [analyzed(out, LOSS, epoch, contour=True) for epoch in (1, 2)]
    metadata = {field: footer(diagram_file(out, field, "join")) for field in fields}
    rows = list(contour_rows(metadata))
    assert [(row["run"], row["split"], row["epoch"]) for row in rows] == fields
    for row in rows:
        # a path is its own contour tree
        assert (row["n_maxima"], row["n_minima"], row["n_arcs"]) == (2, 3, 4)
    pa.Table.from_pylist(rows, schema=CONTOURS)
    plain = {FIELD: field_diagrams(LOSS, PATH).metadata}
    assert list(contour_rows(plain)) == []


# -- what need not be computed again --


def test_diagrams_of_this_table_and_graph_are_current(out: Place) -> None:
    field = record(out, LOSS)
    assert current_metadata(out / "losses", out, field, "path") is None
    write_field_diagrams(out / "losses", out, field, PATH, Analysis())
    found = current_metadata(out / "losses", out, field, "path")
    assert found is not None
    assert found.items() > field_diagrams(LOSS, PATH).metadata.items()


def test_another_graph_or_loss_makes_diagrams_stale(out: Place) -> None:
    field = analyzed(out, LOSS)
    assert current_metadata(out / "losses", out, field, "another graph") is None
    changed = LOSS.copy()
    changed[0] = np.nextafter(changed[0], np.float32(2))
    record(out, changed)
    assert current_metadata(out / "losses", out, field, "path") is None
    record(out, LOSS)
    assert current_metadata(out / "losses", out, field, "path") is not None


@pytest.mark.parametrize("tree", ["join", "split"])
@pytest.mark.parametrize("how", ["missing", "cut", "stale"])
def test_a_lost_diagram_makes_both_stale(out: Place, tree: str, how: str) -> None:
    field = analyzed(out, LOSS)
    path = Path(diagram_file(out, field, tree).path)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        # of an older table: a process was killed between the two files
        older = field_diagrams(LOSS + 1, PATH).metadata
        pq.write_table(pq.read_table(path).replace_schema_metadata(dict(older)), path)
    assert current_metadata(out / "losses", out, field, "path") is None


def test_a_lost_loss_table_makes_diagrams_stale(out: Place) -> None:
    field = analyzed(out, LOSS)
    next(Path(out.path, "losses").rglob("*.parquet")).unlink()
    assert current_metadata(out / "losses", out, field, "path") is None


# -- the reference --


def test_the_reference_is_the_last_epoch_that_is_ok() -> None:
    ok, diverged = {"status": "ok"}, {"status": "diverged"}
    metadata = {
        Field("a", "train", 1): ok,
        Field("a", "train", 10): ok,
        Field("a", "train", 9): ok,
        Field("a", "train", 8): ok,
        Field("a", "val", 1): ok,
        Field("a", "val", 8): ok,
        Field("a", "val", 9): diverged,
        Field("a", "val", 10): diverged,
        Field("b", "train", 0): diverged,
    }
    assert reference_epochs(metadata) == {"a": 8}


# -- rows --


def test_the_rows_of_a_field_are_its_measures(out: Place) -> None:
    field = analyzed(out, LOSS)
    last = analyzed(out, np.array([1.0, 7.0, 2.0, 2.0, 2.0]), epoch=3)
    rows = rows_of(out, field, 3, Analysis(order=[1, 2, math.inf], degree=2))
    assert [(row["tree"], row["order"]) for row in rows] == [
        (tree, order) for tree in ("join", "split") for order in (1, 2, math.inf)
    ]
    for row in rows:
        assert (row["run"], row["split"], row["epoch"]) == ("only", "val", 2)
        assert (row["degree"], row["essential"], row["status"]) == (2, "cap", "ok")
        assert (row["reference_epoch"], row["n_nonfinite"], row["reason"]) == (3, 0, None)
    join, split = rows[0], rows[3]
    assert (join["n_pairs"], join["total_persistence"], join["max_persistence"]) == (2, 9 + 36, 6)
    assert (split["n_pairs"], split["total_persistence"]) == (3, 4 + 25 + 36)
    # the reference lacks the maximum 5 and the minimum 3: each goes to the diagonal
    assert [row["wasserstein"] for row in rows[:3]] == [1.5, 1.5, 1.5]
    assert [row["wasserstein"] for row in rows[3:]] == [1.0, 1.0, 1.0]
    at_reference = rows_of(out, last, 3, Analysis())
    assert [row["wasserstein"] for row in at_reference] == [0.0, 0.0]
    pa.Table.from_pylist(rows, schema=SERIES)


def test_essential_pairs_may_be_dropped_or_endless(out: Place) -> None:
    field = analyzed(out, LOSS)
    analyzed(out, LOSS + 1, epoch=3)
    dropped = rows_of(out, field, 3, Analysis(essential="drop"))
    assert [row["n_pairs"] for row in dropped] == [1, 2]
    assert [row["total_persistence"] for row in dropped] == [3, 7]
    endless = rows_of(out, field, 3, Analysis(essential="inf"))
    assert [row["n_pairs"] for row in endless] == [2, 3]
    assert [row["total_persistence"] for row in endless] == [math.inf, math.inf]
    # a shift by 1 moves every point by 1, the endless one's birth as well
    assert [row["wasserstein"] for row in endless] == [2.0, 3.0]


def test_a_diverged_field_has_rows_without_values(out: Place) -> None:
    analyzed(out, LOSS, epoch=1)
    field = analyzed(out, np.where(LOSS == 7, np.nan, LOSS))
    rows = rows_of(out, field, 1, Analysis(order=[1, 2]))
    assert len(rows) == 4
    for row in rows:
        assert row["status"] == "diverged"
        assert row["n_nonfinite"] == 1
        assert row["reason"] == "1 of 5 losses are not finite"
        values = ("n_pairs", "total_persistence", "max_persistence", "wasserstein")
        assert all(row.get(name) is None for name in values)
    assert [row["order"] for row in rows] == [1, 2, 1, 2]
    assert field_rows(out, field, None, Analysis(order=[1, 2]))[0]["status"] == "diverged"


def test_a_flat_field_has_no_persistence(out: Place) -> None:
    field = analyzed(out, np.ones(5))
    for row in rows_of(out, field, 2, Analysis()):
        assert (row["n_pairs"], row["total_persistence"], row["max_persistence"]) == (0, 0, 0)
        assert row["wasserstein"] == 0


def test_rows_of_a_lost_diagram_are_an_error(out: Place) -> None:
    field = analyzed(out, LOSS)
    Path(diagram_file(out, field, "split").path).unlink()
    with pytest.raises(InputError, match=r"tree=split/epoch=00002/part-0\.parquet: is missing"):
        rows_of(out, field, 2, Analysis())


def test_a_failed_field_has_rows_that_say_why() -> None:
    rows = failed_rows(FIELD, "out of memory", Analysis(order=[1, 2]))
    assert [(row["tree"], row["order"]) for row in rows] == [
        ("join", 1),
        ("join", 2),
        ("split", 1),
        ("split", 2),
    ]
    assert {(row["status"], row["reason"]) for row in rows} == {("failed", "out of memory")}
    pa.Table.from_pylist(rows, schema=SERIES)


# -- the series --


def test_the_series_is_another_when_any_of_its_inputs_is() -> None:
    metadata = {FIELD: {"losses": "a", "graph": "b"}}
    digest = series_digests(metadata, Analysis())
    assert series_digests({FIELD: {"losses": "a", "graph": "b"}}, Analysis(verify=5)) == digest
    others = [
        series_digests(metadata, Analysis(order=[2])),
        series_digests(metadata, Analysis(degree=2)),
        series_digests({FIELD: {"losses": "x", "graph": "b"}}, Analysis()),
        series_digests({FIELD: {"losses": "a", "graph": "x"}}, Analysis()),
        series_digests({FIELD._replace(epoch=3): {"losses": "a", "graph": "b"}}, Analysis()),
    ]
    assert len({other[FIELD.run] for other in [digest, *others]}) == 6


def test_a_runs_series_does_not_hang_on_the_other_runs() -> None:
    found = {"losses": "a", "graph": "b"}
    alone = series_digests({FIELD: found}, Analysis())
    both = series_digests({FIELD: found, FIELD._replace(run="other"): found}, Analysis())
    assert both[FIELD.run] == alone[FIELD.run]
    assert both.keys() == {FIELD.run, "other"}


def test_rows_stand_in_the_studys_order() -> None:
    names = ("run", "split", "tree", "epoch", "order")
    ordered = [
        ("small", "train", "join", 2, 1.0),
        ("small", "train", "join", 10, 1.0),
        ("small", "train", "split", 2, 1.0),
        ("small", "train", "split", 2, 2.0),
        ("small", "val", "join", 1, 1.0),
        ("large", "train", "join", 1, 1.0),
    ]
    rows = [dict(zip(names, row, strict=True)) for row in ordered]
    found = in_study_order(pa.Table.from_pylist(rows[::-1]), ["small", "large"])
    assert found.to_pylist() == rows
    bare = [{"run": "a", "split": split, "epoch": 1} for split in ("train", "val")]
    assert in_study_order(pa.Table.from_pylist(bare[::-1]), ["a"]).to_pylist() == bare


def test_metadata_of_many_fields_are_kept_once() -> None:
    read = [json.loads('{"graph of": "0123 abcd"}') for _ in range(2)]
    first, second = map(interned, read)
    assert first == second == read[0]
    for ours, theirs in zip(*(found.items() for found in (first, second)), strict=True):
        assert ours[0] is theirs[0]
        assert ours[1] is theirs[1]
