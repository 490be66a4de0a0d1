"""Arrays as the compiled kernels take them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view that cannot be written to.

    To a compiled function an array that can be written to and one that cannot (all of Ray's)
    are two types. Handing over views of the second kind only, it is compiled once.
    """
    view = array.view()
    view.flags.writeable = False
    return view
