"""Loss tables and diagrams on disk: what comes back, what is noticed, who else can read them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from lltopo.errors import InputError
from lltopo.schemas import DIAGRAM, LOSSES, METRICS_PART
from lltopo.storage import Place, place
from lltopo.tables import (
    TREES,
    Field,
    LossTable,
    complete_epochs,
    diagram_file,
    fields_in,
    footer,
    losses_digest,
    losses_file,
    metrics_file,
    read_losses,
    read_table,
    recorded_digest,
    recorded_epochs,
    write_columns,
    write_losses,
    write_table,
)

FIELD = Field("only", "train", 3)


def table_of(n: int = 50, seed: int = 0) -> LossTable:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 9, n).astype(np.int16)
    return LossTable(rng.exponential(size=n).astype(np.float32), label, np.roll(label, 1))


@pytest.fixture
def out(tmp_path: Path) -> Place:
    return place(tmp_path)


def path_of(losses: Place, field: Field = FIELD) -> Path:
    return Path(losses_file(losses, field).path)


def damage(path: Path, how: str) -> None:
    """Cut a file short, empty it, or change one byte of its first page."""
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 4] ^= 0xFF
    path.write_bytes(content[: {"cut": -7, "empty": 0, "half": len(content) // 2}.get(how)])


# -- loss tables --


def test_a_loss_table_comes_back_bit_for_bit(out: Place) -> None:
    table = table_of()
    table.loss[:4] = [np.nan, np.inf, -np.inf, -0.0]
    write_losses(out, FIELD, table)
    found = read_losses(out, FIELD)
    assert found.loss.tobytes() == table.loss.tobytes()
    assert found.loss.dtype == np.float32
    for ours, theirs in ((found.label, table.label), (found.prediction, table.prediction)):
        assert ours.dtype == np.int16
        np.testing.assert_array_equal(ours, theirs)


def test_a_loss_table_lies_where_the_contract_says(out: Place) -> None:
    write_losses(out, FIELD, table_of())
    expected = Path(out.path) / "run=only" / "split=train" / "epoch=00003" / "part-0.parquet"
    assert [expected] == [path for path in Path(out.path).rglob("*") if path.is_file()]
    schema = pq.read_schema(expected)
    assert schema.remove_metadata() == LOSSES
    assert pq.read_table(expected)["sample"].to_pylist() == list(range(50))


def test_unknown_labels_are_null(out: Place) -> None:
    table = table_of(4)._replace(label=np.array([1, -1, 0, -1], np.int16), prediction=None)
    write_losses(out, FIELD, table)
    raw = pq.read_table(path_of(out))
    assert raw["label"].to_pylist() == [1, None, 0, None]
    assert raw["prediction"].null_count == 4
    found = read_losses(out, FIELD)
    assert found.label.tolist() == [1, -1, 0, -1]
    assert found.prediction is None


def test_the_same_losses_make_the_same_bytes(out: Place) -> None:
    write_losses(out / "a", FIELD, table_of())
    write_losses(out / "b", FIELD, table_of())
    assert path_of(out / "a").read_bytes() == path_of(out / "b").read_bytes()


def test_the_digest_is_the_losses(out: Place) -> None:
    table = table_of()
    write_losses(out, FIELD, table)
    assert recorded_digest(out, FIELD) == losses_digest(table.loss) == losses_digest(table.loss[:])
    other = table.loss.copy()
    other[7] = np.nextafter(other[7], np.float32(9))
    assert losses_digest(other) != losses_digest(table.loss)
    assert recorded_digest(out, FIELD._replace(epoch=4)) is None


def test_labels_have_no_part_in_the_digest(out: Place) -> None:
    table = table_of()
    write_losses(out, FIELD, table._replace(label=None, prediction=None))
    assert footer(losses_file(out, FIELD)) == {"losses": losses_digest(table.loss)}
    before = recorded_digest(out, FIELD)
    write_losses(out, FIELD, table)
    assert recorded_digest(out, FIELD) == before


def test_a_foreign_table_without_our_metadata_has_the_same_digest(out: Place) -> None:
    table = table_of()
    write_losses(out, FIELD, table)
    foreign = pq.read_table(path_of(out)).replace_schema_metadata(None)
    pq.write_table(foreign, path_of(out))
    assert footer(losses_file(out, FIELD)) == {}
    assert recorded_digest(out, FIELD) == losses_digest(table.loss)


@pytest.mark.parametrize("how", ["cut", "half", "empty"])
def test_a_table_cut_short_is_as_if_absent(out: Place, how: str) -> None:
    write_losses(out, FIELD, table_of())
    damage(path_of(out), how)
    assert footer(losses_file(out, FIELD)) is None
    assert recorded_digest(out, FIELD) is None


@pytest.mark.parametrize("how", ["cut", "half", "empty", "flipped"])
def test_reading_a_damaged_table_says_so(out: Place, how: str) -> None:
    write_losses(out, FIELD, table_of(5000))
    damage(path_of(out), how)
    with pytest.raises(InputError, match=r"part-0\.parquet: is damaged: .*Delete it") as caught:
        read_losses(out, FIELD)
    assert "\n" not in str(caught.value)


def test_reading_a_missing_table_says_so(out: Place) -> None:
    with pytest.raises(InputError, match=r"part-0\.parquet: is missing"):
        read_losses(out, FIELD)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sample": [0, 1]}, "loss: no such column: expected"),
        ({"loss": [0.0, 1.0]}, "sample: no such column: expected"),
        ({"sample": [1, 0], "loss": [0.0, 1.0]}, "sample: is not in sample order"),
        ({"sample": [0, 0], "loss": [0.0, 1.0]}, "sample: is not in sample order"),
        ({"sample": [1, 2], "loss": [0.0, 1.0]}, "sample: is not in sample order"),
        ({"sample": [0, 1], "loss": ["a", "b"]}, "loss: has a wrong type: expected float"),
        (
            {"sample": [0, 1], "loss": [0.0, 1.0], "label": [0, 70000]},
            "label: has a wrong type: expected int16, got int64",
        ),
    ],
)
def test_a_foreign_table_that_does_not_fit_is_refused(
    out: Place, columns: dict[str, list], message: str
) -> None:
    path_of(out).parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path_of(out))
    with pytest.raises(InputError) as caught:
        read_losses(out, FIELD)
    assert str(caught.value).startswith(f"{path_of(out)}: {message}")
    assert "\n" not in str(caught.value)


def test_a_foreign_table_of_other_types_is_taken(out: Place) -> None:
    path_of(out).parent.mkdir(parents=True)
    foreign = {"loss": [0.1, 2.0], "sample": [0, 1], "label": [3, 4], "weight": [1, 1]}
    pq.write_table(pa.table(foreign), path_of(out))
    found = read_losses(out, FIELD)
    assert found.loss.tolist() == [np.float32(0.1), 2.0]
    assert found.label.tolist() == [3, 4]
    assert found.prediction is None


# -- folders --


def test_fields_are_those_of_loss_tables_alone(out: Place) -> None:
    fields = [Field("b", "val", 12), Field("a", "val", 2), Field("a", "train", 12)]
    for field in fields:
        write_losses(out, field, table_of(3))
    content = path_of(out, fields[0]).read_bytes()
    for name in (
        "run=c/split=val/epoch=00001/.part-0.parquet.01.partial",
        "run=c/split=val/epoch=x/part-0.parquet",
        "run=c/split=val/tree=join/epoch=00001/part-0.parquet",
        "losses/run=c/split=val/epoch=00001/part-0.parquet",
        "notes.txt",
    ):
        path = Path(out.path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert fields_in(out) == sorted(fields)
    assert fields_in(out / "never") == []
    assert fields_in(out / "notes.txt") == []


def test_an_epoch_is_complete_with_its_metrics_and_all_its_tables(out: Place) -> None:
    def write_epoch(epoch: int) -> None:
        for split in ("train", "val"):
            write_losses(out / "losses", Field("only", split, epoch), table_of(3))
        metrics = [{"split": split, "loss": 1.0} for split in ("train", "val")]
        write_table(metrics_file(out, "only", epoch), metrics, METRICS_PART)

    for epoch in range(5):
        write_epoch(epoch)
    assert complete_epochs(out, "only", ("train", "val")) == {0, 1, 2, 3, 4}
    path_of(out / "losses", Field("only", "val", 1)).unlink()
    damage(path_of(out / "losses", Field("only", "train", 2)), "cut")
    damage(Path(metrics_file(out, "only", 3).path), "half")
    (Path(out.path) / "metrics/run=only/epoch=00009").mkdir()
    (Path(out.path) / "metrics/run=only/notes").write_text("mine")
    assert recorded_epochs(out, "only") == {0, 1, 2, 3, 4}
    assert complete_epochs(out, "only", ("train", "val")) == {0, 4}
    assert complete_epochs(out, "only", ("train",)) == {0, 1, 4}
    assert complete_epochs(out, "other", ("train", "val")) == set()


def test_rows_and_metadata_come_back(out: Place) -> None:
    rows = [{"split": "val", "loss": 0.5, "accuracy": None, "learning_rate": 0.1, "seconds": 2.0}]
    write_table(out / "m.parquet", rows, METRICS_PART, {"inputs": "abc"})
    assert read_table(out / "m.parquet").to_pylist() == rows
    assert footer(out / "m.parquet") == {"inputs": "abc"}


# -- other people's readers --


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Loss tables and diagrams of two runs, long enough for several encodings to be used."""
    out = place(tmp_path)
    for i, run in enumerate(("large", "small")):
        for j, split in enumerate(("train", "val")):
            for epoch in (0, 1, 12):
                field = Field(run, split, epoch)
                n = 300 + 10 * i + j
                write_losses(out / "losses", field, table_of(n, seed=epoch))
                for tree in TREES:
                    points = {
                        "birth": np.arange(n) / 7,
                        "death": np.arange(n) / 3,
                        "birth_sample": np.arange(n, dtype=np.int32),
                        "death_sample": np.arange(n, dtype=np.int32)[::-1],
                        "essential": np.arange(n) == 0,
                    }
                    table = pa.table(points, schema=DIAGRAM)
                    write_columns(diagram_file(out, field, tree), table, {"losses": "abc"})
    return tmp_path


def test_duckdb_reads_losses_and_diagrams(written: Path) -> None:
    losses = duckdb.sql(
        "select run, split, epoch, count(*), sum(sample), sum(loss), sum(label), sum(prediction) "
        f"from read_parquet('{written}/losses/**/*.parquet', hive_partitioning = true, "
        "hive_types = {'epoch': INTEGER}) group by all order by all"
    ).fetchall()
    expected = []
    for i, run in enumerate(("large", "small")):
        for j, split in enumerate(("train", "val")):
            for epoch in (0, 1, 12):
                table = table_of(n := 300 + 10 * i + j, seed=epoch)
                sums = (int(table.label.sum(dtype=int)), int(table.prediction.sum(dtype=int)))
                total = pytest.approx(table.loss.sum(dtype=float), rel=1e-9)
                expected.append((run, split, epoch, n, n * (n - 1) // 2, total, *sums))
    assert losses == expected
    diagrams = duckdb.sql(
        "select run, split, tree, epoch, count(*), max(death), sum(birth_sample), "
        f"count_if(essential) from read_parquet('{written}/diagrams/**/*.parquet', "
        "hive_partitioning = true) where tree = 'join' and run = 'small' and split = 'val' "
        "group by all order by all"
    ).fetchall()
    # folders' numbers are padded, so that they are in order even where they are read as text
    assert diagrams == [
        ("small", "val", "join", epoch, 311, 310 / 3, 311 * 310 // 2, 1)
        for epoch in ("00000", "00001", "00012")
    ]


def test_pyarrow_reads_losses_and_diagrams(written: Path) -> None:
    losses = ds.dataset(written / "losses", partitioning="hive")
    assert losses.schema.field("epoch").type == pa.int32()
    some = losses.to_table(filter=(ds.field("run") == "small") & (ds.field("epoch") == 12))
    assert some["split"].value_counts().to_pylist() == [
        {"values": "train", "counts": 310},
        {"values": "val", "counts": 311},
    ]
    np.testing.assert_array_equal(
        some.filter(ds.field("split") == "val")["loss"].to_numpy(), table_of(311, seed=12).loss
    )
    diagrams = ds.dataset(written / "diagrams", partitioning="hive").to_table()
    assert set(diagrams.column_names) == {*DIAGRAM.names, "run", "split", "tree", "epoch"}
    assert diagrams.num_rows == 2 * 3 * (300 + 301 + 310 + 311)
    assert diagrams["epoch"].unique().to_pylist() == [0, 1, 12]


def test_pandas_reads_losses(written: Path) -> None:
    frame = pd.read_parquet(written / "losses")
    by_field = frame.groupby(["run", "split", "epoch"], observed=True)["loss"].count()
    assert by_field.loc[("small", "val", 12)] == 311
    assert len(by_field) == 12
