"""Losses and features of somebody else: what is wrong with them is told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Command, complaint

from lltopo import cli, stages


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Options that name losses and features of both splits."""
    rng = np.random.default_rng(0)
    options = []
    for split, n in (("train", 20), ("val", 9)):
        np.save(tmp_path / f"{split}.npy", rng.exponential(size=(2, n)))
        np.save(tmp_path / f"x_{split}.npy", rng.normal(size=(n, 3)))
        options += ["--losses", f"{split}={tmp_path}/{split}.npy"]
        options += ["--features", f"{split}={tmp_path}/x_{split}.npy"]
    return [*options, "--out", str(tmp_path / "out"), "--set", "graph.k=3"]


def test_features_and_losses_of_different_length_are_refused(
    command: Command, given: list[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "x_val.npy", np.ones((8, 3)))
    text = complaint(command("analyze", *given))
    assert text.startswith(
        f"{tmp_path}/val.npy: losses do not fit the features: expected 8 samples as in "
        f"{tmp_path}/x_val.npy, got 9."
    )


def test_features_that_are_nan_are_refused(
    command: Command, given: list[str], tmp_path: Path
) -> None:
    np.save(tmp_path / "x_train.npy", np.full((20, 3), np.nan))
    text = complaint(command("analyze", *given))
    assert text.startswith(f"{tmp_path}/x_train.npy: features of train are not finite: expected nu")


def test_given_losses_with_too_large_a_k_are_refused(command: Command, given: list[str]) -> None:
    text = complaint(command("analyze", *given[:-2], "--set", "graph.k=9"))
    assert text.startswith("graph.k: is too large for the val split: expected less than its 9 sam")


def test_given_losses_that_are_none_are_refused(
    command: Command, given: list[str], tmp_path: Path
) -> None:
    (tmp_path / "val.npy").unlink()
    text = complaint(command("analyze", *given))
    assert text.startswith(f"{tmp_path}/val.npy: losses cannot be read: No such file or directory.")
    np.save(tmp_path / "val.npy", np.ones(9))
    text = complaint(command("analyze", *given))
    assert text.startswith(f"{tmp_path}/val.npy: losses have a wrong shape: expected floats of (ep")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "analyze: needs either a STUDY or --losses"),
        (["STUDY", "--losses", "x"], "analyze: needs either a STUDY or --losses"),
        (["STUDY", "--features", "val=x"], "--features: has no use without --losses"),
        (["STUDY", "--first-epoch", "0"], "--first-epoch: has no use without --losses"),
        (["--losses", "val=x.npy"], "--out: is missing"),
        (["--losses", "test=x.npy", "--out", "o"], "--losses: 'test=x.npy' names no split: expect"),
        (["--losses", "x", "--losses", "val=y", "--out", "o"], "--losses: 'x' names no split"),
        (["--losses", "val=", "--out", "o"], "--losses: 'val=' is malformed or given twice"),
        (
            ["--losses", "val=x", "--losses", "val=y", "--out", "o"],
            "--losses: 'val=y' is malformed",
        ),
        (["--losses", "a/b:val=x", "--out", "o"], "analyze: data.losses: 'a/b' is no safe file na"),
        (["--losses", "val=x", "--features", "x", "--out", "o"], "--features: 'x' names no split"),
        (["--losses", "no-folder", "--out", "o"], "FOLDER/no-folder: holds no loss table: expecte"),
    ],
)
def test_malformed_losses_are_refused(
    command: Command,
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(study_file) if text == "STUDY" else text for text in arguments]
    text = complaint(command("analyze", *arguments))
    assert text.startswith(message.replace("FOLDER", str(tmp_path)))


def test_runs_splits_and_files_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["a:train=x.npy", "a:val=/y.npy", "val=b=c:d.npy"]
    assert cli._given_losses(texts) == {
        "a": {"train": "x.npy", "val": "/y.npy"},
        "run": {"val": "b=c:d.npy"},
    }
    for folder in ("folder", "s3://bucket/losses", "s3://bucket/lr=0.1/losses"):
        assert cli._given_losses([folder]) == folder
    # a folder that is there is one, whatever it is called
    (tmp_path / "lr=0.1/losses").mkdir(parents=True)
    assert cli._given_losses(["lr=0.1/losses"]) == "lr=0.1/losses"


def test_losses_and_features_are_relative_to_the_working_folder(
    command: Command, given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(stages, "run_stages", lambda session, _: seen.append(session.study) or [])
    relative = [text.replace(f"{tmp_path}/", "") for text in given]
    assert command("analyze", *relative).status == 0
    [study] = seen
    assert study.data.losses == {"run": {s: f"{tmp_path}/{s}.npy" for s in ("train", "val")}}
    assert study.data.features == {s: f"{tmp_path}/x_{s}.npy" for s in ("train", "val")}
    assert study.data.first_epoch == 1


def test_a_loss_table_of_a_folder_without_the_column_is_refused(
    command: Command, given: list[str], tmp_path: Path
) -> None:
    table = tmp_path / "theirs/run=r/split=train/epoch=00001/part-0.parquet"
    table.parent.mkdir(parents=True)
    pq.write_table(pa.table({"sample": range(20), "value": [0.0] * 20}), table)
    options = ["--losses", str(tmp_path / "theirs"), *given[2:4], *given[8:]]
    text = complaint(command("analyze", *options))
    assert text.startswith(f"{table}: loss: no such column: expected ['sample', 'loss', ")
