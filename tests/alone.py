"""Runs trained in the tests' own process, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lltopo.data import load_data
from lltopo.loop import Worker, train_run
from lltopo.storage import Place
from lltopo.study import Study
from lltopo.study_files import resolved_study

ALONE = Worker(0, 1, torch.device("cpu"))

NETWORK = """
from torch import nn


def build(input_shape, n_classes):
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(4 * height * width, n_classes),
    )
"""


def with_training(study: Study, **changes: Any) -> Study:
    """The study with some of its runs' training changed."""
    raw = study.model_dump(mode="json")
    for run in raw["runs"].values():
        run["training"] |= changes
    return resolved_study(raw, "changed")


def train(study: Study, out: Place) -> None:
    """Train the only run, from whatever random state a process happens to have."""
    torch.seed()
    train_run(study, "only", load_data(study.data), out, ALONE)


def tables(out: Place) -> dict[str, bytes]:
    """The bytes of every loss table."""
    folder = Path((out / "losses").path)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}
