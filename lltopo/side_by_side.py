"""Many small questions to a store at once: each waits for its own answer alone.

A request to a store takes some 50 ms, of which this machine works one: the footers of 40,000 fields
one after the other would take an hour.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lltopo.storage import Place, waiting_until

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_THREADS = 32
_AT_A_TIME = 1024  # whose answers are held at once


def answers(
    question: Callable[[Item], Answer], items: Iterable[Item], where: Place
) -> Iterator[Answer]:
    """Yield ``question(item)`` for each item, in order.

    Parameters
    ----------
    question
        Reads; of a store, several threads ask it at once.
    items
    where
        What is read lies there. A local disk is asked one thing after the other.
    """
    if where.is_local:
        yield from map(question, items)
        return
    nobody_waits = threading.Event()

    def asked(item: Item) -> Answer:
        with waiting_until(nobody_waits):
            return question(item)

    left = iter(items)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ask") as pool:
        try:
            while some := list(itertools.islice(left, _AT_A_TIME)):
                yield from pool.map(asked, some)
        finally:
            # of a store that is away nobody wants to hear any more: an error, or Ctrl-C
            nobody_waits.set()
