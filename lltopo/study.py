"""One study: what is trained, on what, and what is computed of it.

The schema, and what of it made a study's results. A study's file is read by ``study_files.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lltopo.sections import Finite, Section, Seed, nearest
from lltopo.storage import RETRY_SECONDS, safe_name
from lltopo.study_data import Data, LossesData
from lltopo.study_models import Model


class GraphSection(Section):
    """The k-nearest-neighbour graph that is the domain of every field."""

    k: int = Field(20, ge=1)
    method: Literal["auto", "exact", "nndescent"] = "auto"
    features: Literal["pixels", "grey28"] = "pixels"


class Training(Section):
    """SGD with a rate that is multiplied by ``gamma`` from each milestone epoch (1-based) on."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1)
    lr: Finite = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: Finite = Field(0.0, ge=0)
    milestones: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    gamma: float = Field(0.1, gt=0, le=1)
    seed: Seed = 0
    augment: Literal["none", "crop_flip"] = "none"
    eval_batch_size: int = Field(1000, ge=1)
    threads: int = Field(1, ge=1)
    workers: int = Field(1, ge=1)
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    tf32: bool = Field(False, description="float32 products of a GPU in 10 bits of mantissa")
    compile: bool = Field(False, description="the network by torch.compile")
    deterministic: bool = True
    keep_checkpoints: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: list[int]) -> list[int]:
        if milestones != sorted(set(milestones)):
            raise ValueError("expected rising epochs")
        return milestones

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Training:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @model_validator(mode="after")
    def _batch_feeds_all_workers(self) -> Training:
        if self.batch_size < 2 * self.workers:
            raise ValueError(
                "batch_size is too small: expected 2 samples a worker or more, "
                f"{2 * self.workers} in all, got {self.batch_size}"
            )
        return self

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of a (1-based) epoch."""
        return self.lr * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)


class Run(Section):
    """One training run, every setting resolved."""

    model: Model
    training: Training


class Surface(Section):
    """Losses on planes through trained weights, along two filter-normalised directions each."""

    runs: list[str] | None = Field(None, min_length=1, description="default: all")
    epochs: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="default: the last"
    )
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1, description="of planes")
    points: int = Field(51, ge=3, description="on each axis")
    extent: Finite = Field(1.0, gt=0, description="both axes go from -extent to extent")
    train_samples: int | None = Field(None, ge=1, description="only the first so many")
    val_samples: int | None = Field(None, ge=1, description="only the first so many")

    @field_validator("points")
    @classmethod
    def _holds_the_middle(cls, points: int) -> int:
        if points % 2 == 0:
            raise ValueError("expected an odd number, so that the trained weights are a point")
        return points

    @field_validator("runs", "epochs", "seeds")
    @classmethod
    def _each_once(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError("expected each once")
        return values


class Jump(Section):
    """Jump away from trained weights in random directions, and train again from there."""

    runs: list[str] | None = Field(None, min_length=1, description="default: all")
    epoch: int | None = Field(None, ge=0, description="whose weights; default: the last")
    seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2, 3], min_length=1)
    steps: list[Annotated[Finite, Field(gt=0)]] = Field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0], min_length=1
    )
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: Finite = Field(0.001, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: Finite = Field(1e-4, ge=0)
    k: int = Field(20, ge=1, description="neighbours of each point in the graph")

    @field_validator("runs", "seeds", "steps")
    @classmethod
    def _each_once(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError("expected each once")
        return values


class Analysis(Section):
    """What is computed of each epoch's field."""

    order: list[Annotated[float, Field(ge=1)]] = Field(default_factory=lambda: [1.0], min_length=1)
    degree: Finite = Field(1.0, gt=0)
    essential: Literal["cap", "inf", "drop"] = "cap"
    contour: bool = False
    distance_matrix: bool = Field(False, description="between all epochs of all runs")
    verify: int = Field(0, ge=0)

    @field_validator("order", mode="before")
    @classmethod
    def _several(cls, order: Any) -> Any:
        return order if isinstance(order, list) else [order]

    @field_validator("order")
    @classmethod
    def _distinct(cls, order: list[float]) -> list[float]:
        if len(set(order)) < len(order):
            raise ValueError("expected each order once")
        return order


class Report(Section):
    """How the results are shown."""

    title: str = "Topology of the loss landscape"
    bins: int = Field(40, ge=2, le=200)


class Resources(Section):
    """What the work may use; changes no result."""

    parallel_runs: int | None = Field(None, ge=1, description="default: as many as fit")
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto",
        description="of training and surfaces: auto is what the cluster has now; cpu or gpu is "
        "waited for, where a cluster starts its nodes at need. The search of neighbours takes "
        "GPUs that are there, unless it is cpu",
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="of a worker without a GPU")
    gpus_per_worker: float = Field(1.0, gt=0)
    local_cpus: int | None = Field(None, ge=1, description="of a Ray started on this machine")
    object_store_mb: int = Field(512, ge=80, description="of a Ray started on this machine")


class Storage(Section):
    """How results are written; changes no result."""

    retry_s: Finite = Field(
        RETRY_SECONDS, ge=0, description="how long a store that is away is waited for"
    )


class Study(Section):
    """A whole study, as resolved: every run with all its settings."""

    data: Data
    graph: GraphSection = GraphSection()
    runs: dict[str, Run] = Field(default_factory=dict)
    analysis: Analysis = Analysis()
    surface: Surface | None = None
    jump: Jump | None = None
    report: Report = Report()
    resources: Resources = Resources()
    storage: Storage = Storage()

    @field_validator("runs")
    @classmethod
    def _safe_names(cls, runs: dict[str, Run]) -> dict[str, Run]:
        for name in runs:
            safe_name(name, "runs")
        return runs

    @model_validator(mode="after")
    def _baselines_have_their_weights(self) -> Study:
        for key, section in (("surface", self.surface), ("jump", self.jump)):
            if section is None:
                continue
            if not self.runs:
                raise ValueError(f"{key} needs trained runs, and here the losses are given")
            for name in section.runs or ():
                if name not in self.runs:
                    raise ValueError(f"{key}.runs: {name} is no run. {nearest(name, [*self.runs])}")
        return self


def surface_epochs(study: Study, run: str) -> list[int]:
    """Return the epochs of a run around whose weights the study asks for surfaces, rising.

    Those that the run will not reach are left out.
    """
    surface, last = study.surface, study.runs[run].training.epochs
    if surface is None or run not in (surface.runs or study.runs):
        return []
    return [epoch for epoch in sorted(surface.epochs or [last]) if epoch <= last]


def jump_epochs(study: Study, run: str) -> list[int]:
    """Return the epoch of a run from whose weights the study jumps, if it reaches it."""
    jump, last = study.jump, study.runs[run].training.epochs
    if jump is None or run not in (jump.runs or study.runs):
        return []
    return [epoch for epoch in [last if jump.epoch is None else jump.epoch] if epoch <= last]


def kept_epochs(study: Study, run: str) -> list[int]:
    """Return the epochs whose checkpoints are kept beside the last one's, rising."""
    named = study.runs[run].training.keep_checkpoints
    return sorted({*named, *surface_epochs(study, run), *jump_epochs(study, run)})


def changed_keys(before: Study, after: Study) -> list[str]:
    """List the keys that made results and in which two studies differ.

    A rerun may change ``report``, ``resources``, ``storage``, ``analysis.verify``,
    ``data.download`` and which checkpoints are kept, and may add runs or epochs; these are not
    listed. Nor are ``surface`` and ``jump``, whose files say how they were made.

    Parameters
    ----------
    before, after
        The study that made what is there, and the one that would go on.

    Returns
    -------
    list of str
        Sorted dotted keys, each with both values; a run that went away is one key.
    """
    old, new = (dict(_leaves(study.model_dump(mode="json"))) for study in (before, after))
    old_runs, new_runs = _run_paths(before), _run_paths(after)
    free: set[tuple[str, ...]] = {("report",), ("resources",), ("surface",), ("jump",)}
    free |= {("storage",), ("analysis", "verify"), ("data", "download")}
    free |= old_runs ^ new_runs
    changed = [f"{'.'.join(path)} (is gone)" for path in old_runs - new_runs]
    for path in old.keys() | new.keys():
        was, now = old.get(path), new.get(path)
        grown = path[-2:] == ("training", "epochs") and isinstance(was, int) and was < (now or 0)
        kept = path[-2:] == ("training", "keep_checkpoints")
        if was != now and not (grown or kept or any(path[: len(part)] == part for part in free)):
            changed.append(f"{'.'.join(path)} (was {was!r}, now {now!r})")
    return sorted(changed)


def run_digest(study: Study, run: str) -> str:
    """Return the SHA-256 of all that determines a run's losses but its number of epochs."""
    made_by = {
        "data": study.data.model_dump(mode="json", exclude={"download"}),
        "run": study.runs[run].model_dump(
            mode="json", exclude={"training": {"epochs", "keep_checkpoints"}}
        ),
    }
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()


def _run_paths(study: Study) -> set[tuple[str, ...]]:
    """Return where the study's runs stand in it, be they trained or given."""
    paths: set[tuple[str, ...]] = {("runs", name) for name in study.runs}
    if isinstance(study.data, LossesData) and isinstance(study.data.losses, dict):
        paths |= {("data", "losses", name) for name in study.data.losses}
    return paths


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path, value
