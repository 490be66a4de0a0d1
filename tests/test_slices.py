"""One run in slices: the same bits as at once, wherever the slices are trained."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import run
from test_packs import contents, ignore
from tiny import tiny_raw

from lltopo import slices
from lltopo.errors import InputError
from lltopo.session import Session
from lltopo.slices import Limits, train_slice
from lltopo.storage import place
from lltopo.study import Study
from lltopo.study_files import read_study

EPOCHS = 5


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    raw = tiny_raw(tmp_path)
    raw["training"] |= {"epochs": EPOCHS, "augment": "crop_flip", "milestones": [3]}
    raw["runs"] = {"one": {}, "two": {"training": {"seed": 1}}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def study(study_file: Path) -> Study:
    return read_study(study_file)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recorded(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[6:]) for path in folder.glob("metrics/run=one/*/*"))


def test_three_slices_in_three_processes_are_one_run(tmp_path: Path, study_file: Path) -> None:
    log = tmp_path / "log"
    command = ["train", str(study_file), "--run", "one", "--out"]
    run([*command, str(tmp_path / "whole")], log)
    for until in (1, 3, EPOCHS):
        run([*command, str(tmp_path / "sliced"), "--until-epoch", str(until)], log)
        assert recorded(tmp_path / "sliced") == [*range(until + 1)]
    assert contents(tmp_path / "sliced/losses") == contents(tmp_path / "whole/losses")
    packed = str(tmp_path / "sliced/packed")
    shown = run(["unpack", str(study_file), packed, "--out", str(tmp_path / "there")], log)
    assert f"{EPOCHS + 1} epochs" in shown
    assert contents(tmp_path / "there/losses") == contents(tmp_path / "whole/losses")


def test_the_checkpoint_alone_goes_on_elsewhere(tmp_path: Path, study: Study) -> None:
    whole, here, there = (Session(study, place(tmp_path / n), ignore) for n in "abc")
    train_slice(whole, "one", Limits())
    packs = train_slice(here, "one", Limits(2))
    assert [pack.path.split("/")[-2] for pack in packs] == ["epochs=00000-00002"]
    shutil.copytree(tmp_path / "b/checkpoints", tmp_path / "c/checkpoints")
    packs = train_slice(there, "one", Limits())
    assert [pack.path.split("/")[-2] for pack in packs] == [f"epochs=00003-{EPOCHS:05d}"]
    late = contents(tmp_path / "c/losses")
    assert len(late) == 2 * (EPOCHS - 2)
    assert late.items() <= contents(tmp_path / "a/losses").items()


def test_a_slice_ends_before_the_epoch_that_would_be_too_long(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(slices.time, "monotonic", lambda: next(seconds))
    session = Session(study, place(tmp_path / "out"), ignore)
    # epoch 0 ends after 10 s, 1 after 20 s, 2 after 30 s; 3 would after 40 s
    train_slice(session, "one", Limits(seconds=35))
    assert recorded(tmp_path / "out") == [0, 1, 2]
    # one epoch at least, after the look at the checkpoint
    train_slice(session, "one", Limits(seconds=1))
    assert recorded(tmp_path / "out") == [0, 1, 2, 3]


def test_what_is_trained_already_is_not_trained_again(tmp_path: Path, study: Study) -> None:
    session = Session(study, place(tmp_path / "out"), ignore)
    train_slice(session, "one", Limits(2))
    before = contents(tmp_path / "out")
    assert train_slice(session, "one", Limits(1)) == []
    assert contents(tmp_path / "out") == before


def test_an_unknown_run_is_refused(tmp_path: Path, study: Study) -> None:
    with pytest.raises(InputError, match=r"--run: on is no run of the study\. Did you mean one\?"):
        train_slice(Session(study, place(tmp_path / "out"), ignore), "on", Limits())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--until-epoch", "2"], "--until-epoch: has no use without --run"),
        (["--for", "9m"], "--for: has no use without --run"),
        (["--run", "one", "--for", "soon"], "--for: 'soon' is no duration: expected one such as"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, study_file: Path, options: list[str], complaint: str
) -> None:
    log = tmp_path / "log"
    out = ["--out", str(tmp_path / "out")]
    assert complaint in run(["train", str(study_file), *options, *out], log, status=2)


def test_a_slice_needs_neither_ray_nor_numba(tmp_path: Path, study_file: Path) -> None:
    code = (
        "import sys\n"
        "from lltopo.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print('loaded', *sorted(name for name in sys.modules if '.' not in name))\n"
    )
    arguments = ["train", str(study_file), "--run", "one", "--for", "1h", "--out"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [line] = [line for line in shown.splitlines() if line.startswith("loaded")]
    loaded = set(line.split())
    assert "torch" in loaded
    assert not loaded & {"ray", "numba", "gudhi", "matplotlib", "scipy", "sklearn"}
