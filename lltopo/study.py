"""One study: what is trained, on what, and what is computed of it. One YAML file."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lltopo.errors import InputError
from lltopo.storage import safe_name

Json = dict[str, Any]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


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
                    {"key": str(key), "advice": _nearest(str(key), list(cls.model_fields))},
                )
        return value


class _DataSection(Section):
    train_samples: int | None = Field(None, ge=2, description="keep only the first so many")
    val_samples: int | None = Field(None, ge=2, description="keep only the first so many")
    mean: list[float] | None = Field(None, description="of each channel, in the data's units")
    std: list[float] | None = Field(None, description="of each channel, in the data's units")


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


class LossesData(Section):
    """Somebody else's losses: nothing is trained.

    ``losses`` is a folder in our own layout, or ``{run: {split: FILE.npy}}`` of shape
    (epochs, samples), whose first row is ``first_epoch``; ``features`` is ``{split: FILE.npy}``.
    """

    source: Literal["losses"]
    losses: str | dict[str, dict[Split, str]]
    features: dict[Split, str]
    first_epoch: int = Field(1, ge=0)


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
            raise ValueError("expected a depth of 6n + 4, such as 10, 16 or 28")
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
    lr: float = Field(gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
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

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones: expected rising epochs")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0")
        return self

    def learning_rate(self, epoch: int) -> float:
        """The rate of a (1-based) epoch."""
        return self.lr * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)


class Run(Section):
    """One training run, every setting resolved."""

    model: Model
    training: Training


class Analysis(Section):
    """What is computed of each epoch's field."""

    order: list[Annotated[float, Field(ge=1)]] = Field(default_factory=lambda: [1.0], min_length=1)
    degree: float = Field(1.0, gt=0, allow_inf_nan=False)
    essential: Literal["cap", "inf", "drop"] = "cap"
    contour: bool = False
    verify: int = Field(0, ge=0)

    @field_validator("order", mode="before")
    @classmethod
    def _several(cls, order: Any) -> Any:
        return order if isinstance(order, list) else [order]


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

    @property
    def last_epoch(self) -> int:
        """The last epoch of the longest run: the reference of the distances."""
        return max(run.training.epochs for run in self.runs.values())


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file, with each ``dotted.key=value`` of ``overrides`` put in.

    Relative paths in the file are taken relative to it, those in an override relative to the
    working folder; the resolved study holds absolute ones.

    Raises
    ------
    InputError
        For a missing or malformed file, an unknown key (with the nearest known one), a value
        of the wrong type.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}. Give the path of a study file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no valid YAML: {reason}. Mend the file.") from error
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: no study: expected keys such as data and runs, got "
            f"{type(raw).__name__}. See jobs/quickstart.yaml."
        )
    _absolute_paths(raw, path.absolute().parent)
    return resolved_study(raw, str(path), overrides)


def resolved_study(raw: Json, origin: str, overrides: Sequence[str] = ()) -> Study:
    """The study of a mapping: ``model`` and ``training`` are merged into each run."""
    raw = copy.deepcopy(raw)
    for override in overrides:
        _set(raw, override)
    _absolute_paths(raw, Path.cwd())
    base = {key: raw.pop(key) for key in ("model", "training") if key in raw}
    runs = raw.get("runs")
    trains = not (isinstance(raw.get("data"), Mapping) and raw["data"].get("source") == "losses")
    if trains and (not isinstance(runs, Mapping) or not runs):
        raise InputError(
            f"{origin}: runs: is empty: expected at least one run by its name, got {runs!r}. "
            "Add one, such as runs: {large: {training: {lr: 0.1}}}."
        )
    if isinstance(runs, Mapping):
        raw["runs"] = {name: _merged(base, run or {}) for name, run in runs.items()}
        for run in raw["runs"].values():
            _name_python(run.get("model") if isinstance(run, Mapping) else None, "name")
    _name_python(raw.get("data"), "source")
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explained(error)}") from error


def study_yaml(study: Study) -> str:
    """The resolved study as YAML; reading it back gives the same study."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def changed_keys(before: Study, after: Study) -> list[str]:
    """Keys in which ``after`` differs from ``before`` and that made its results, with both values.

    A rerun may change ``report``, ``resources`` and ``analysis.verify``, and may add runs or
    epochs; these are not listed.
    """
    free = ("report.", "resources.", "analysis.verify")
    old, new = (dict(_leaves(study.model_dump(mode="json"))) for study in (before, after))
    added = tuple(f"runs.{name}." for name in after.runs if name not in before.runs)
    changed = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        grown = key.endswith(".training.epochs") and None not in (was, now) and was < now
        if was != now and not grown and not key.startswith((*free, *added)):
            changed.append(f"{key} (was {was!r}, now {now!r})")
    return changed


def run_digest(study: Study, run: str) -> str:
    """SHA-256 of all that determines a run's losses, except how many epochs it goes on."""
    made_by = {
        "data": study.data.model_dump(mode="json"),
        "run": study.runs[run].model_dump(
            mode="json", exclude={"training": {"epochs", "keep_checkpoints"}}
        ),
    }
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _merged(base: Json, override: Any) -> Any:
    """``override`` on top of ``base``, key by key; a model of another name replaces the whole."""
    if not isinstance(override, Mapping) or not isinstance(base, Mapping):
        return override
    if "name" in override and override["name"] != base.get("name", override["name"]):
        return dict(override)
    merged = dict(base)
    for key, value in override.items():
        merged[key] = _merged(base[key], value) if key in base else value
    return merged


def _set(raw: Json, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(
            f"--set: {override!r} is malformed: expected dotted.key=value, such as training.lr=0.1."
        )
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        inner = section.get(parent)
        section[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[parent]
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set: {key}: the value {text!r} is no valid YAML.") from error


def _absolute_paths(raw: Json, folder: Path) -> None:
    data = raw.get("data")
    for key in ("path", "root"):
        if isinstance(data, dict) and isinstance(data.get(key), str):
            data[key] = _absolute(data[key], folder)
    if isinstance(data, dict) and data.get("source") == "losses":
        for key in ("losses", "features"):
            data[key] = _each_absolute(data.get(key), folder)


def _each_absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _each_absolute(inner, folder) for key, inner in value.items()}
    return _absolute(value, folder) if isinstance(value, str) else value


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / Path(path).expanduser()).resolve())


def _name_python(section: Any, tag: str) -> None:
    """``{python: module:function}`` alone is enough to mean one's own."""
    if isinstance(section, dict) and "python" in section:
        section.setdefault(tag, "python")


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."


def _explained(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line, with its dotted key."""
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    # pydantic puts the tag of a union behind the union's own key
    tags = [i + 1 for i, part in enumerate(loc) if part in ("data", "model")][:1]
    key = ".".join(part for i, part in enumerate(loc) if i not in tags)
    if first["type"] == "unknown_key":
        return f"{key}.{first['msg']}" if key else first["msg"]
    got = first["input"]
    shown = repr(got) if not isinstance(got, Mapping) else f"keys {sorted(map(str, got))}"
    if first["type"] == "missing":
        return f"{key}: is missing. Add it."
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{key}: is not valid: {message}, got {shown[:80]}. Mend the study."
