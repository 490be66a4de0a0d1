"""What every part of a study is made of: a section that refuses keys it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Json = dict[str, Any]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


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


def nearest(key: str, known: Sequence[str]) -> str:
    """Advise on a name that is not known: the nearest known one, or all."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
