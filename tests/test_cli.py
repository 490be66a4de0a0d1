"""The command line: every wrong input ends with status 2 and one line that says where it is."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import Command, complaint
from tiny import png, tiny_arrays, tiny_npz, write_shard

import lltopo
from lltopo import cli, stages
from lltopo.errors import TransientError
from lltopo.storage import place
from lltopo.study_files import read_study


def changed(study_file: Path, **sections: Any) -> Path:
    """The study with whole sections changed."""
    study_file.write_text(yaml.safe_dump(yaml.safe_load(study_file.read_text()) | sections))
    return study_file


# -- a wrong study --


@pytest.mark.parametrize("stage", ["run", "train", "graph", "surface", "jump", "report", "analyze"])
def test_an_unknown_key_is_refused_by_every_command(
    command: Command, study_file: Path, tmp_path: Path, stage: str
) -> None:
    changed(study_file, grph={"k": 3})
    text = complaint(command(stage, study_file, "--out", tmp_path / "out"))
    assert text == f"{study_file}: grph: unknown key. Did you mean graph?"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"graph": {"k": "many"}}, "graph.k: is not valid: expected a valid integer, unable to"),
        ({"training": {"epochs": 1.5, "lr": 1}}, "runs.only.training.epochs: is not valid: expect"),
        ({"runs": {}}, "runs: is empty: expected at least one run by its name, got {}."),
        ({"runs": {"../x": {}}}, "runs: '../x' is no safe file name: expected up to 100 letters"),
        ({"runs": {"a\nb": {}}}, r"runs: 'a\nb' is no safe file name"),
        ({"line\nbreak": 1}, "line break: unknown key."),
    ],
)
def test_a_wrong_value_is_refused(
    command: Command, study_file: Path, sections: dict[str, Any], message: str
) -> None:
    changed(study_file, **sections)
    assert complaint(command("run", study_file)).startswith(f"{study_file}: {message}")


def test_a_missing_and_a_malformed_study_are_refused(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    assert complaint(command("run", path)).startswith(f"{path}: cannot be read: No such file")
    path.write_text("data: {source: digits\nruns: [")
    assert complaint(command("run", path)).startswith(f"{path}: no valid YAML: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("graph.k", "--set: 'graph.k' is malformed: expected dotted.key=value"),
        ("graph.k=[3", "--set: graph.k: the value '[3' is no valid YAML"),
        ("graph.q=3", "STUDY: graph.q: unknown key. Known: k, method, features."),
        ("training.lr=fast", "STUDY: runs.only.training.lr: is not valid: expected a valid numb"),
    ],
)
def test_a_malformed_set_is_refused(
    command: Command, study_file: Path, override: str, message: str
) -> None:
    text = complaint(command("run", study_file, "--set", override))
    assert text.startswith(message.replace("STUDY", str(study_file)))


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["run"],
        ["run", "a.yaml", "b.yaml"],
        ["run", "a.yaml", "--nope"],
        ["analyze", "--losses", "x", "--first-epoch", "one"],
        ["analyze", "--losses", "x", "--first-epoch", "-1"],
    ],
)
def test_a_wrong_option_is_refused(command: Command, arguments: list[str]) -> None:
    assert complaint(command(*arguments)).endswith("See lltopo --help.")


# -- wrong data --


def test_a_missing_data_path_is_refused(command: Command, study_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "never.npz"
    text = complaint(
        command("run", study_file, "--out", tmp_path / "out", "--set", f"data.path={path}")
    )
    assert text == f"{path}: cannot be read: No such file or directory. Mend data.path."
    hub = {"source": "parquet", "path": "hub"}
    text = complaint(command("run", changed(study_file, data=hub), "--out", tmp_path / "out"))
    assert text.startswith(f"{tmp_path / 'hub'}: data.path is missing: expected a folder")


def test_a_mended_study_is_not_another_one(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    complaint(command("run", study_file, "--out", out, "--set", "data.path=never.npz"))
    complaint(command("run", study_file, "--out", out, "--set", "graph.k=59"))
    assert command("graph", study_file, "--out", out).status == 0
    assert read_study(out / "study.yaml") == read_study(study_file)


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        ({"label_column": "class"}, [0, 1], "class: no such column: expected one of ['note', 'la"),
        ({"image_column": "image"}, [0, 1], "image: no such column: expected one of ['note', 'la"),
    ],
)
def test_a_parquet_file_without_the_column_is_refused(
    command: Command,
    study_file: Path,
    tmp_path: Path,
    columns: dict[str, str],
    labels: list[int],
    message: str,
) -> None:
    shard = tmp_path / "train-00000-of-00001.parquet"
    write_shard(shard, [png(np.zeros((8, 8), np.uint8))] * 2, labels)
    shutil.copy(shard, tmp_path / "test-00000-of-00001.parquet")
    data = {"source": "parquet", "path": str(tmp_path), **columns}
    text = complaint(command("run", changed(study_file, data=data), "--out", tmp_path / "out"))
    assert text.startswith(f"{shard}: {message}")


Y = tiny_arrays()["y_train"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y_train": Y - 1}, "label: is out of range: expected 0 to 32767, got -1. Mend the lab"),
        ({"y_val": np.full(25, 9)}, "label: is out of range: expected 0 to 2 as in the training"),
        ({"y_train": Y[:-1]}, "label: does not fit the samples: expected 60 integers, got"),
        ({"x_train": np.full((60, 1, 8, 8), np.nan)}, "x: is not finite: expected numbers, got Na"),
    ],
)
def test_wrong_arrays_are_refused(
    command: Command, study_file: Path, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    path = tiny_npz(tmp_path, **arrays)
    text = complaint(command("run", study_file, "--out", tmp_path / "out"))
    assert text.startswith(f"{path}: {message}")


@pytest.mark.parametrize(("k", "split", "n"), [(60, "train", 60), (25, "val", 25)])
def test_k_of_all_samples_or_more_is_refused(
    command: Command, study_file: Path, tmp_path: Path, k: int, split: str, n: int
) -> None:
    text = complaint(command("run", study_file, "--out", tmp_path / "out", "--set", f"graph.k={k}"))
    assert text == (
        f"graph.k: is too large for the {split} split: expected less than its {n} samples, "
        f"got {k}. Lower it."
    )


# -- a place that cannot be written --


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_an_out_below_a_regular_file_is_refused(
    command: Command, study_file: Path, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("regular")
    text = complaint(command("run", study_file, "--out", tmp_path / below))
    assert text.startswith(f"{tmp_path / below}/study.yaml: cannot be written: ")
    assert text.endswith("Choose another folder with --out.")


def test_an_out_that_cannot_be_reached_is_refused(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("x" * 300)
    text = complaint(command("run", study_file, "--out", out))
    assert text.startswith(f"{out}/study.yaml: cannot be read: File name too long. Choose another ")


def test_a_store_that_does_not_answer_ends_with_one_line(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(session: Any, names: Any) -> None:
        raise TransientError("s3://bucket/out: cannot be read: no answer. Try again.")

    monkeypatch.setattr(stages, "run_stages", silent)
    ended = command("run", study_file)
    assert (ended.status, ended.err) == (
        1,
        "lltopo: s3://bucket/out: cannot be read: no answer. Try again.\n",
    )


def test_an_out_of_no_known_kind_is_refused(command: Command, study_file: Path) -> None:
    text = complaint(command("run", study_file, "--out", "ftp://host/folder"))
    assert text.startswith("ftp://host/folder: cannot be opened as a file, s3 or gs URI: ")


# -- another study's results --


def test_a_changed_study_is_refused_with_its_keys(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stages.open_results(read_study(study_file), place(out))
    (out / "losses").mkdir()
    before = (out / "study.yaml").read_bytes()
    sets = ["--set", "training.lr=0.3", "--set", "graph.k=5", "--set", "report.bins=9"]
    text = complaint(command("run", study_file, "--out", out, *sets))
    assert text == (
        f"{out}/study.yaml: the results there were made by another study: graph.k (was 4, now 5); "
        "runs.only.training.lr (was 0.05, now 0.3). Choose another --out, or set these back."
    )
    assert (out / "study.yaml").read_bytes() == before


# -- what ends otherwise --


def test_a_stage_that_needs_no_ray_ends_well(
    command: Command, study_file: Path, tmp_path: Path
) -> None:
    ended = command("graph", study_file, "--out", tmp_path / "out")
    assert (ended.status, ended.err) == (0, "")
    assert f"{tmp_path}/out/graph" in ended.out
    assert sorted(path.name for path in (tmp_path / "out/graph").iterdir()) == [
        "train.npz",
        "val.npz",
    ]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert command("graph", study_file, "--out", tmp_path / "out").status == 0
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_results_go_by_default_where_the_study_says(
    command: Command, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("graph", "study.yaml").status == 0
    assert (tmp_path / "results/study/graph/val.npz").exists()


def test_what_went_wrong_is_told_with_status_1(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = "run [bold]: training failed: " + "long " * 30
    monkeypatch.setattr(stages, "run_stages", lambda session, names: [problem])
    ended = command("run", study_file)
    assert ended.status == 1
    assert f"failed: {problem.strip()}" in ended.out


def test_an_interrupted_command_says_how_to_go_on(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(session: Any, names: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(stages, "run_stages", interrupted)
    ended = command("run", study_file, "--set", "report.title=a b")
    assert ended.status == 130
    assert f"lltopo run {study_file} --set 'report.title=a b'" in ended.out
    assert "Traceback" not in ended.out + ended.err


def test_another_failure_is_no_wrong_input(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(session: Any, names: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(stages, "run_stages", failing)
    monkeypatch.setattr(sys, "argv", ["lltopo", "run", str(study_file)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="a bug"):
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["analyze", "--help"]])
def test_help_teaches(command: Command, arguments: list[str]) -> None:
    ended = command(*arguments)
    assert ended.status == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", ended.out)
    expected = {"--help": "jobs/quickstart.yaml", "run": "--set", "analyze": "--losses"}
    assert expected[arguments[0]] in plain


def test_a_real_process_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from lltopo.cli import main; main()", "run", "never.yaml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(lltopo.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "lltopo: never.yaml: cannot be read: No such file or directory. "
        "Give the path of a study file.\n"
    )
