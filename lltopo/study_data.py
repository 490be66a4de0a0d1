"""The data sets that a study may name, and somebody else's losses in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from lltopo.sections import Finite, Json, Section, Split
from lltopo.storage import check_no_credentials, safe_name


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
        if isinstance(losses, str):
            check_no_credentials(losses)
        for name in losses if isinstance(losses, dict) else ():
            safe_name(name, "data.losses")
        return losses


ImageData = DigitsData | ParquetData | NpzData | TorchvisionData | PythonData
Data = Annotated[ImageData | LossesData, Field(discriminator="source")]
