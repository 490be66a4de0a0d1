"""One study: what is trained, on what, and what is computed of it.

The schema, and what of it made a study's results. A study's file is read by ``study_files.py``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lltopo.storage import safe_name

Json = dict[str, Any]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a study; an unknown key is refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, Mapping) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown_key",
                    "{key}: unknown key. {advice}",
                    {"key": str(key), "advice": nearest(str(key), list(cls.model_fields))},
                )
        return value


class _DataSection(Section):
    train_samples: int | None = Field(None, ge=2, description="keep only the first so many")
    val_samples: int | None = Field(None, ge=2, description="keep only the first so many")
    mean: list[Finite] | None = Field(None, description="of each channel, in the data's units")
    std: list[Annotated[Finite, Field(gt=0)]] | None = Field(
        None, description="of each channel, in the data's units"
    )


class DigitsData(_DataSection):
    """scikit-learn's 1,797 images of 8 x 8 pixels; nothing to download."""

    source: Literal["digits"] = "digits"


class ParquetData(_DataSection):
    """An image data set in the Hugging Face layout."""

    source: Literal["parquet"]
    path: str
    image_column: str | None = None
    label_column: str = "label"


class NpzData(_DataSection):
    """Arrays ``x_train, y_train, x_val, y_val`` of one .npz file."""

    source: Literal["npz"]
    path: str


class TorchvisionData(_DataSection):
    """A data set of torchvision, found below ``root`` or downloaded to it."""

    source: Literal["torchvision"]
    name: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN"]
    root: str
    download: bool = False


class PythonData(_DataSection):
    """One's own: a function that returns ``{"train": (x, y), "val": (x, y)}`` as arrays."""

    source: Literal["python"]
    python: str
    options: Json = Field(default_factory=dict)


GivenArrays = Annotated[
    dict[str, Annotated[dict[Split, str], Field(min_length=1)]], Field(min_length=1)
]


class LossesData(Section):
    """Somebody else's losses: nothing is trained.

    ``losses`` is a folder in our own layout, or ``{run: {split: FILE.npy}}`` of shape
    (epochs, samples), whose first row is ``first_epoch``; ``features`` is ``{split: FILE.npy}``.
    """

    source: Literal["losses"]
    losses: Annotated[
        Annotated[str, Tag("folder")] | Annotated[GivenArrays, Tag("arrays")],
        Discriminator(lambda losses: "arrays" if isinstance(losses, Mapping) else "folder"),
    ]
    features: dict[Split, str]
    first_epoch: int = Field(1, ge=0)

    @field_validator("losses")
    @classmethod
    def _safe_names(cls, losses: str | dict[str, Any]) -> str | dict[str, Any]:
        for name in losses if isinstance(losses, dict) else ():
            safe_name(name, "data.losses")
        return losses


ImageData = DigitsData | ParquetData | NpzData | TorchvisionData | PythonData
Data = Annotated[ImageData | LossesData, Field(discriminator="source")]


class GraphSection(Section):
    """The k-nearest-neighbour graph that is the domain of every field."""

    k: int = Field(20, ge=1)
    method: Literal["auto", "exact", "nndescent"] = "auto"
    features: Literal["pixels", "grey28"] = "pixels"


class WideResNetModel(Section):
    name: Literal["wideresnet"]
    depth: int = Field(16, ge=10)
    widen_factor: int = Field(10, ge=1)

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError("expected 6n + 4, such as 10, 16 or 28")
        return depth


class ConvNetModel(Section):
    name: Literal["convnet"]
    width: int = Field(16, ge=1)


class MlpModel(Section):
    name: Literal["mlp"]
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: [128])


class PythonModel(Section):
    """One's own: a function of (input_shape, n_classes, **options) that returns a module."""

    name: Literal["python"]
    python: str
    options: Json = Field(default_factory=dict)


Model = Annotated[
    WideResNetModel | ConvNetModel | MlpModel | PythonModel,
    Field(discriminator="name"),
]


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
    seed: int = Field(0, ge=0, lt=2**31)
    augment: Literal["none", "crop_flip"] = "none"
    eval_batch_size: int = Field(1000, ge=1)
    threads: int = Field(1, ge=1)
    workers: int = Field(1, ge=1)
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
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
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(1.0, gt=0, description="used where the cluster has GPUs")
    local_cpus: int | None = Field(None, ge=1, description="of a Ray started on this machine")
    object_store_mb: int = Field(512, ge=80, description="of a Ray started on this machine")


class Study(Section):
    """A whole study, as resolved: every run with all its settings."""

    data: Data
    graph: GraphSection = GraphSection()
    runs: dict[str, Run] = Field(default_factory=dict)
    analysis: Analysis = Analysis()
    report: Report = Report()
    resources: Resources = Resources()

    @field_validator("runs")
    @classmethod
    def _safe_names(cls, runs: dict[str, Run]) -> dict[str, Run]:
        for name in runs:
            safe_name(name, "runs")
        return runs


def changed_keys(before: Study, after: Study) -> list[str]:
    """List the keys that made results and in which two studies differ.

    A rerun may change ``report``, ``resources``, ``analysis.verify``, ``data.download`` and which
    checkpoints are kept, and may add runs or epochs; these are not listed.

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
    free = {("report",), ("resources",), ("analysis", "verify"), ("data", "download")}
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


def nearest(key: str, known: Sequence[str]) -> str:
    """Advise on a name that is not known: the nearest known one, or all."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
