"""The studies under ``jobs/``: each is read, and each trains an epoch at its own width."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lltopo.data import load_data
from lltopo.loop import Worker, train_run
from lltopo.sections import SPLITS
from lltopo.storage import place
from lltopo.study import Study, kept_epochs
from lltopo.study_files import read_study
from lltopo.tables import complete_epochs

JOBS = Path(__file__).parent.parent / "jobs"
STUDIES = sorted(path for path in JOBS.rglob("*.yaml") if path.parent.name != "cluster")
THESIS = [path for path in STUDIES if path.parent.name == "thesis"]
NAMES = [path.stem for path in STUDIES]
N_SAMPLES = 64


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 + 64 images, smaller than CIFAR-10's so that the wide networks are done in time."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in SPLITS:
        arrays[f"x_{split}"] = rng.integers(0, 256, (N_SAMPLES, 3, 8, 8)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(N_SAMPLES) % 10
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, **arrays)
    return path


def shortened(path: Path, images: Path) -> Study:
    data = f"data={{source: npz, path: {images}}}"
    return read_study(path, [data, "training.epochs=1"])


def different_runs(study: Study) -> list[str]:
    """One run of each model of a study."""
    models = {run.model.model_dump_json(): name for name, run in study.runs.items()}
    return list(models.values())


@pytest.mark.parametrize("path", STUDIES, ids=NAMES)
def test_every_study_trains_an_epoch(path: Path, images: Path, tmp_path: Path) -> None:
    study = shortened(path, images)
    torch.set_num_threads(1)
    for name in different_runs(study):
        data, out = load_data(study.data), place(tmp_path)
        train_run(study, name, data, out, Worker(0, 1, torch.device("cpu")))
        assert complete_epochs(out, name, SPLITS) == {0, 1}


@pytest.mark.parametrize("path", STUDIES, ids=NAMES)
def test_every_study_says_what_it_asks_and_what_it_takes(path: Path) -> None:
    comment = path.read_text().split("\n\n")[0]
    lines = comment.splitlines()
    assert all(line.startswith("#") for line in lines)
    assert "?" in " ".join(lines[:2])
    assert re.search(r"^# Hardware: ", comment, re.M)
    assert re.search(r"Expected time", comment)
    assert max(map(len, path.read_text().splitlines())) <= 104


@pytest.mark.parametrize("path", THESIS, ids=[path.stem for path in THESIS])
def test_a_study_for_a_cpu_stands_beside_one_at_real_size(path: Path) -> None:
    small = path.with_name(f"{path.stem.removesuffix('-cpu')}-cpu.yaml")
    large = path.with_name(f"{path.stem.removesuffix('-cpu')}.yaml")
    if path.stem.startswith("jump"):
        return
    assert small.exists()
    assert large.exists()
    runs = [len(read_study(one).runs) for one in (small, large)]
    assert runs[0] >= runs[1]


def test_the_sources_settings_are_kept() -> None:
    """DESIGN's facts: rates, schedules, decay, widths."""
    rates = read_study(JOBS / "thesis/wrn16-rates.yaml")
    assert {name: run.training.lr for name, run in rates.runs.items()} == {
        "large": 0.1,
        "small": 0.01,
    }
    for run in rates.runs.values():
        of = run.training
        assert (of.epochs, of.milestones, of.gamma) == (200, [60, 125, 150], 0.2)
        assert (of.batch_size, of.momentum, of.nesterov) == (128, 0.9, True)
        assert (of.weight_decay, of.augment) == (5e-4, "none")
    shortcuts = read_study(JOBS / "thesis/resnet56-shortcuts.yaml")
    assert [run.training.lr for run in shortcuts.runs.values()] == [0.1, 0.01]
    for run in shortcuts.runs.values():
        of = run.training
        assert (of.epochs, of.milestones, of.gamma) == (300, [151, 226, 276], 0.1)
        assert (of.weight_decay, of.augment) == (5e-4, "crop_flip")


def test_checkpoints_are_kept_where_surfaces_are_asked_for() -> None:
    study = read_study(JOBS / "thesis/neighbourhood-vgg9.yaml")
    assert kept_epochs(study, "vgg9") == [*range(0, 301, 10)]
    short = read_study(JOBS / "thesis/neighbourhood-vgg9.yaml", ["training.epochs=25"])
    assert kept_epochs(short, "vgg9") == [0, 10, 20]
