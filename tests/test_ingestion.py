"""Somebody else's losses: what is taken, what is refused, what is not written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltopo.errors import InputError
from lltopo.graph_files import MadeGraph, graph_file, made_graph, read_graph, write_graph
from lltopo.ingestion import (
    check_lengths,
    given_features,
    given_fields,
    losses_folder,
    record_given_losses,
)
from lltopo.storage import place
from lltopo.study_data import LossesData
from lltopo.study_files import resolved_study
from lltopo.tables import (
    Field,
    LossTable,
    fields_in,
    metrics_file,
    read_losses,
    read_table,
    write_losses,
)

RNG = np.random.default_rng(3)
N_TRAIN, N_VAL = 30, 12
ARRAYS = {
    "train": RNG.exponential(size=(3, N_TRAIN)).astype(np.float32),
    "val": RNG.exponential(size=(3, N_VAL)),
    "x_train": RNG.integers(0, 256, (N_TRAIN, 2, 3)).astype(np.uint8),
    "x_val": RNG.normal(size=(N_VAL, 6)).astype(np.float32),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {name: str(tmp_path / f"{name}.npy") for name in ARRAYS}
    for name, path in paths.items():
        np.save(path, ARRAYS[name])
    return paths


def losses_data(files: dict[str, str], losses: Any = None, **changed: Any) -> LossesData:
    given = losses or {"mine": {"train": files["train"], "val": files["val"]}}
    features = {"train": files["x_train"], "val": files["x_val"]}
    data = {"source": "losses", "losses": given, "features": features} | changed
    return resolved_study({"data": data}, "given").data


def record(data: LossesData, out: Path) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    record_given_losses(data, place(out), lambda done, of: told.append((done, of)))
    return told


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# -- fields and tables --


def test_row_0_is_epoch_1_unless_said_otherwise(files: dict[str, str], tmp_path: Path) -> None:
    expected = [Field("mine", split, epoch) for split in ("train", "val") for epoch in (1, 2, 3)]
    assert given_fields(losses_data(files)) == expected
    moved = given_fields(losses_data(files, first_epoch=0))
    assert [field.epoch for field in moved] == [0, 1, 2, 0, 1, 2]
    record(losses_data(files, first_epoch=0), tmp_path / "out")
    assert fields_in(place(tmp_path / "out/losses")) == moved
    first = read_losses(place(tmp_path / "out/losses"), Field("mine", "train", 0)).loss
    np.testing.assert_array_equal(first, ARRAYS["train"][0])


def test_given_losses_become_tables_and_metrics(files: dict[str, str], tmp_path: Path) -> None:
    data = losses_data(files, {"b": {"val": files["val"]}, "a": {"train": files["train"]}})
    assert record(data, tmp_path / "out") == [(i, 6) for i in range(1, 7)]
    for run, split in (("a", "train"), ("b", "val")):
        for i in range(3):
            table = read_losses(place(tmp_path / "out/losses"), Field(run, split, i + 1))
            np.testing.assert_array_equal(table.loss, ARRAYS[split][i].astype(np.float32))
            assert (table.label, table.prediction) == (None, None)
    [row] = read_table(metrics_file(place(tmp_path / "out"), "b", 2)).to_pylist()
    assert row["loss"] == pytest.approx(ARRAYS["val"][1].mean(), rel=1e-6)
    assert (row["split"], row["accuracy"], row["learning_rate"]) == ("val", None, None)


def test_what_is_recorded_is_not_written_again(files: dict[str, str], tmp_path: Path) -> None:
    # the validation losses end an epoch earlier
    np.save(files["val"], ARRAYS["val"][:2])
    data = losses_data(files)
    assert len(given_fields(data)) == 5
    record(data, tmp_path / "out")
    before = times(tmp_path / "out")
    assert len(before) == 5 + 3
    assert record(data, tmp_path / "out") == [(1, 3), (2, 3), (3, 3)]
    assert times(tmp_path / "out") == before


def test_a_lost_table_and_a_changed_file_are_recorded_again(
    files: dict[str, str], tmp_path: Path
) -> None:
    data, out = losses_data(files), place(tmp_path / "out")
    record(data, tmp_path / "out")
    before = times(tmp_path / "out")
    lost = tmp_path / "out/losses/run=mine/split=val/epoch=00002/part-0.parquet"
    lost.write_bytes(lost.read_bytes()[:-9])
    changed = ARRAYS["train"].copy()
    changed[2, 5] = 9.0
    np.save(files["train"], changed)
    record(data, tmp_path / "out")
    assert read_losses(out / "losses", Field("mine", "train", 3)).loss[5] == 9.0
    assert len(read_losses(out / "losses", Field("mine", "val", 2)).loss) == N_VAL
    after = times(tmp_path / "out")
    assert {path for path in before if before[path] == after[path]} == {
        path for path in before if "epoch=00001" in str(path)
    }


def test_losses_that_are_not_finite_are_kept(files: dict[str, str], tmp_path: Path) -> None:
    diverged = ARRAYS["train"].copy()
    diverged[1, 3] = np.nan
    np.save(files["train"], diverged)
    record(losses_data(files), tmp_path / "out")
    record(losses_data(files), tmp_path / "out")
    loss = read_losses(place(tmp_path / "out/losses"), Field("mine", "train", 2)).loss
    assert np.flatnonzero(np.isnan(loss)).tolist() == [3]


@pytest.mark.parametrize(
    "array",
    [np.ones(5), np.ones((2, 3, 4)), np.ones((2, 5), int), np.ones((0, 5)), np.ones((5, 0))],
)
def test_losses_of_another_shape_are_refused(files: dict[str, str], array: np.ndarray) -> None:
    np.save(files["train"], array)
    with pytest.raises(InputError) as caught:
        given_fields(losses_data(files))
    assert str(caught.value).startswith(f"{files['train']}: losses have a wrong shape: expected fl")


# -- a folder of tables --


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Loss tables, as another tool might have written them."""
    losses = tmp_path / "theirs"
    for split, n in (("train", N_TRAIN), ("val", N_VAL), ("test", 7)):
        for epoch in (4, 10):
            loss = np.full(n, epoch, np.float32)
            write_losses(place(losses), Field("r", split, epoch), LossTable(loss, None, None))
    return losses


def test_a_folders_tables_are_taken_where_they_are(
    files: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    data = losses_data(files, str(folder))
    expected = [Field("r", split, epoch) for split in ("train", "val") for epoch in (4, 10)]
    assert given_fields(data) == expected
    before = times(folder)
    assert record(data, tmp_path / "out") == []
    assert times(folder) == before
    assert not (tmp_path / "out").exists()


def test_a_folder_without_tables_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "never"), files["train"]):
        with pytest.raises(InputError) as caught:
            given_fields(losses_data(files, path))
        assert str(caught.value).startswith(f"{path}: holds no loss table: expected run=R/split=S/")


@pytest.mark.parametrize("run", ["a b", ".hidden", "a$b$", "x" * 101])
def test_a_folders_unsafe_run_is_refused(files: dict[str, str], folder: Path, run: str) -> None:
    (folder / "run=r").rename(folder / f"run={run}")
    with pytest.raises(InputError) as caught:
        given_fields(losses_data(files, str(folder)))
    assert str(caught.value).startswith(f"{folder}: run: {run!r} is no safe file name")


def test_losses_are_in_the_folder_named_or_with_the_results(
    files: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    def study(data: LossesData) -> Any:
        return resolved_study({"data": data.model_dump(mode="json")}, "given")

    out = place(tmp_path / "out")
    assert losses_folder(study(losses_data(files, str(folder))), out) == place(folder)
    assert losses_folder(study(losses_data(files)), out) == out / "losses"


# -- features --


def test_features_are_rows(files: dict[str, str]) -> None:
    features = given_features(losses_data(files), "train")
    np.testing.assert_array_equal(features, ARRAYS["x_train"].reshape(N_TRAIN, 6))
    assert features.dtype == np.uint8


def test_as_many_losses_as_features(files: dict[str, str], folder: Path) -> None:
    check_lengths(losses_data(files))
    check_lengths(losses_data(files, str(folder)))
    np.save(files["x_val"], ARRAYS["x_val"][:-1])
    for losses, origin in ((None, files["val"]), (str(folder), f"{folder}/run=r/split=val/epoch=")):
        with pytest.raises(InputError) as caught:
            check_lengths(losses_data(files, losses))
        assert str(caught.value).startswith(origin)
        assert (
            f"losses do not fit the features: expected 11 samples as in {files['x_val']}, got 12."
            in str(caught.value)
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 11])
def test_features_that_are_not_finite_are_refused(
    files: dict[str, str], value: float, row: int
) -> None:
    features = ARRAYS["x_val"].copy()
    features[row, 2] = value
    np.save(files["x_val"], features)
    with pytest.raises(InputError) as caught:
        given_features(losses_data(files), "val")
    assert str(caught.value).startswith(f"{files['x_val']}: features of val are not finite: expec")
    given_features(losses_data(files), "train")


def test_features_that_are_missing_or_flat_are_refused(files: dict[str, str]) -> None:
    only_train = losses_data(files, features={"train": files["x_train"]})
    with pytest.raises(InputError, match=r"features: val is missing: .*--features val=FILE\.npy"):
        check_lengths(only_train)
    np.save(files["x_val"], np.ones(N_VAL))
    with pytest.raises(InputError, match=r"x_val\.npy: features of val have a wrong shape"):
        given_features(losses_data(files), "val")
    missing = losses_data(files, features={"train": "/never.npy", "val": files["x_val"]})
    with pytest.raises(InputError, match=r"/never\.npy: features of train cannot be read: No such"):
        given_features(missing, "train")


# -- graphs on disk --


@pytest.fixture
def made() -> MadeGraph:
    return made_graph(ARRAYS["x_val"], 3, "exact", {"data": "somewhere", "k": 3})


def test_a_graph_comes_back_with_how_it_was_made(made: MadeGraph, tmp_path: Path) -> None:
    target = graph_file(place(tmp_path), "val")
    assert target.path == f"{tmp_path}/graph/val.npz"
    write_graph(target, made)
    found = read_graph(target)
    np.testing.assert_array_equal(found.graph.indptr, made.graph.indptr)
    np.testing.assert_array_equal(found.graph.indices, made.graph.indices)
    assert found.made == made.made
    assert found.digest == made.digest
    assert found.made["recall"] == 1.0
    assert (found.made["n_vertices"], found.made["data"]) == (N_VAL, "somewhere")
    assert found.made["n_edges"] == found.graph.n_edges
    content = Path(target.path).read_bytes()
    write_graph(target, made)
    assert Path(target.path).read_bytes() == content


def test_another_graph_has_another_digest(made: MadeGraph) -> None:
    again = made_graph(ARRAYS["x_val"], 3, "exact", {})
    other = made_graph(ARRAYS["x_val"], 4, "exact", {})
    assert made.digest == again.digest
    assert made.digest != other.digest


@pytest.mark.parametrize("n_bytes", [0, 4, 200, -1])
def test_a_damaged_graph_is_no_graph(made: MadeGraph, tmp_path: Path, n_bytes: int) -> None:
    target = graph_file(place(tmp_path), "val")
    assert read_graph(target) is None
    write_graph(target, made)
    path = Path(target.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:n_bytes])
    assert read_graph(target) is None
    flipped = bytearray(whole)
    flipped[whole.index(made.graph.indices.tobytes())] ^= 0xFF
    path.write_bytes(flipped)
    assert read_graph(target) is None
