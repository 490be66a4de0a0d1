"""Functions that a study names as ``module:function``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lltopo.errors import InputError

WORKING_FOLDER = "LLTOPO_WORKING_FOLDER"
"""Names the driver's working folder in the environment of its workers."""


def imported_function(name: str, key: str) -> Callable[..., Any]:
    """Import the function that ``module:function`` names.

    Parameters
    ----------
    name
        Modules in the working folder are found.
    key
        The study's key that names it, for errors.

    Raises
    ------
    InputError
        Where there is no such module or function.
    """
    module, colon, attribute = name.partition(":")
    if (
        not colon
        or not attribute.isidentifier()
        or not all(map(str.isidentifier, module.split(".")))
    ):
        raise InputError(
            f"{key}: {name!r} is malformed: expected module:function. Name one's own function so."
        )
    folder = os.environ.get(WORKING_FOLDER, os.getcwd())
    if folder not in sys.path:
        # last, so that it shadows nothing
        sys.path.append(folder)
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{key}: {name!r} cannot be imported: {error}. Put its module into the working folder."
        ) from error
    if not callable(function):
        raise InputError(f"{key}: {name!r} is no function: got {type(function).__name__}.")
    return function  # type: ignore[no-any-return]
