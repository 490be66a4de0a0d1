"""A hint to the processor: it changes nothing, wherever it points."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from lltopo.prefetch import prefetch


@njit
def sum_with_hints(array, ahead):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(len(array)):
        prefetch(array, i + ahead)
        total += array[i]
    return total


@pytest.mark.parametrize("ahead", [0, 8, -(10**6), 2**40])
@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.uint8])
def test_a_hint_changes_nothing(ahead: int, dtype: type) -> None:
    array = np.arange(100, dtype=dtype)
    array.flags.writeable = False
    assert sum_with_hints(array, ahead) == 4950
    np.testing.assert_array_equal(array, np.arange(100))
    assert sum_with_hints(array[:0], ahead) == 0
