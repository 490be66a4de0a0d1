"""Work dealt out to threads, for code that leaves the interpreter alone: kernels and products."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from threading import Lock
from typing import Any, TypeVar

import numba
import numpy as np
from threadpoolctl import threadpool_limits

N_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]

Result = TypeVar("Result")

_LIMITED = Lock()


def on_threads(
    function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], n_threads: int
) -> Iterator[Result]:
    """Yield ``function(*arguments)`` for each of the calls, in order, with a few at work at once.

    Whatever ends the iteration, Ctrl-C among it, waits for those few alone.
    """
    with ThreadPoolExecutor(n_threads) as pool:
        at_work: deque[Future[Result]] = deque()
        for arguments in calls:
            if len(at_work) == 2 * n_threads:
                yield at_work.popleft().result()
            at_work.append(pool.submit(function, *arguments))
        for task in at_work:
            yield task.result()


@contextmanager
def single_threaded_products() -> Iterator[None]:
    """Let every thread multiply matrices for itself, for as long as the block lasts.

    The limit holds for the whole process, so that one such block waits for another to end.
    """
    with _LIMITED, threadpool_limits(1, user_api="blas"):
        yield


def for_parts(
    kernel: Callable[..., None], n_rows: int, *arguments: Any, n_threads: int = N_THREADS
) -> None:
    """Run ``kernel(*arguments, first, last)`` over all rows, a part of them on each thread."""
    ends = np.linspace(0, n_rows, min(n_threads, n_rows) + 1).astype(np.int64).tolist()
    calls = ((*arguments, first, last) for first, last in pairwise(ends))
    deque(on_threads(kernel, calls, n_threads), maxlen=0)
