"""The architectures that a study may name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lltopo.sections import Json, Section


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


class ResNetModel(Section):
    name: Literal["resnet"]
    depth: int = Field(56, ge=8)
    width: int = Field(16, ge=1)
    shortcuts: bool = True

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        if (depth - 2) % 6:
            raise ValueError("expected 6n + 2, such as 20, 56 or 110")
        return depth


class Vgg9Model(Section):
    name: Literal["vgg9"]
    width: int = Field(64, ge=1)


class DenseNet121Model(Section):
    name: Literal["densenet121"]
    growth: int = Field(32, ge=1)


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
    WideResNetModel
    | ResNetModel
    | Vgg9Model
    | DenseNet121Model
    | ConvNetModel
    | MlpModel
    | PythonModel,
    Field(discriminator="name"),
]
