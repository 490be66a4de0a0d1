"""Bounded Ray tasks with retries, and the Ray session they run in.

Knows nothing of what the tasks do: a call is a key and arguments, an outcome the key and the
value or the reason why there is none.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from lltopo.driver_folders import remove_orphaned_folders, temporary_folder

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # between looks at the size of the cluster, each as dear as a small task
_ROUNDING = 1e-9
_TRIES = 3
_TASK_SECONDS = 1.0  # between a worker's tasks lie some milliseconds
_SHORTEST = 16  # the last tasks of many are no shorter than this part of a second
_MOST_TOGETHER = 512
_GROWTH = 4  # how many times larger a batch's next task may be than one that was quick


class Call(NamedTuple):
    """One task: a key that names it, and its arguments (values or :func:`shared` ones)."""

    key: Any
    arguments: tuple[Any, ...]


class Need(NamedTuple):
    """What of the cluster one call takes: where it takes a GPU, then no CPU.

    A cluster's GPU nodes may thus offer no CPUs at all, and whatever needs none of their GPUs
    stays off them.
    """

    cpus: float = 1.0
    gpus: float = 0.0


_ONE_CPU = Need()


class Outcome(NamedTuple):
    """What became of a call; ``error`` is None where it succeeded."""

    key: Any
    value: Any
    error: str | None


@contextmanager
def ray_session(
    local_cpus: int | None, object_store_mb: int, environment: Mapping[str, str]
) -> Iterator[None]:
    """Ray, for as long as the block lasts, its workers with some variables in their environment.

    Uses a session that is there already, else attaches to the cluster that ``RAY_ADDRESS`` names
    (as in a Ray job), else starts Ray on this machine, all of it on 127.0.0.1 and with token
    authentication, and clears its files away afterwards.
    """
    if ray.is_initialized():
        yield
        return
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    # numba cannot compile another print than Python's
    quiet["RAY_TQDM_PATCH_PRINT"] = "0"
    # a process more for each run, which tells its workers of a node that will go: ours do not ask
    quiet["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    # how soon Train notices a lost worker
    quiet["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    remove_orphaned_folders()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**common)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with temporary_folder() as folder, _loopback():
        try:
            ray.init(
                num_cpus=local_cpus,
                object_store_memory=object_store_mb * 2**20,
                dashboard_host="127.0.0.1",
                runtime_env={"env_vars": dict(environment)},
                _temp_dir=folder,
                **common,
            )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _loopback() -> Iterator[None]:
    """Have what is started of Ray listen on 127.0.0.1 alone, as it does where it knows no cluster.

    ``ray.init`` itself takes no such address: it puts one that others can reach in its place.
    """
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def cluster_total(resource: str) -> float:
    """How much of ``CPU`` or ``GPU`` the whole cluster has."""
    return sum(node.get(resource, 0.0) for node in _nodes())


def cluster_places(resource: str, each: float) -> int:
    """How many shares of ``CPU`` or ``GPU`` the cluster has.

    Each of them is on one node, and of less than a GPU on one GPU.
    """
    units = [node.get(resource, 0.0) for node in _nodes()]
    if resource == "GPU" and each < 1:
        return sum(map(int, units)) * int(1 / each + _ROUNDING)
    return sum(int(unit / each + _ROUNDING) for unit in units)


def unmet_need(resource: str, each: float, n_places: int = 1) -> str | None:
    """What is waited for, where the cluster now has fewer than so many shares of a resource."""
    if cluster_places(resource, each) >= n_places:
        return None
    return (
        f"waiting for {n_places} x {each:g} {resource} of one node: the cluster has "
        f"{cluster_total(resource):g} {resource} as yet"
    )


def _nodes() -> list[Mapping[str, float]]:
    """What each living node of the cluster has."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def takes_gpu(device: str) -> bool:
    """Say whether work for this device (auto, cpu or gpu) takes GPUs; auto where there are any."""
    return device == "gpu" or (device == "auto" and cluster_total("GPU") > 0)


def has_cluster() -> bool:
    """Say whether there is a Ray session already, or a cluster to attach to."""
    return bool(ray.is_initialized() or os.environ.get("RAY_ADDRESS"))


def shared(value: Any) -> Any:
    """A value put once into the object store, for any number of calls to use read-only."""
    return ray.put(value)


def cause_of(error: BaseException) -> BaseException:
    """What a remote call failed of, where Ray has wrapped it together with its traceback."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error


def fan_out(
    function: Callable[..., Any], batches: Iterator[Collection[Call]], need: Need = _ONE_CPU
) -> Iterator[Outcome]:
    """Outcomes of ``function(*arguments)`` for each call, in the order in which they end.

    Parameters
    ----------
    function
        A plain function that a worker can import.
    batches
        Gives, each time it is asked, some calls that have become ready (perhaps none yet), and
        ends when no more will come. The calls of a batch are drawn as places become free; batches
        take turns, so that none waits for a longer one to end.
    need
        Of each call.

    Notes
    -----
    Short calls of a batch go as one task, as many of them as seem to take a second by those that
    have ended, but no more than leaves as many for every other place, so that all workers end
    at about the same time. At most twice the tasks that fit into the cluster are submitted and
    not yet ended. A call that fails, by an error or because its worker, node or outcome is lost,
    is tried three times, the later ones alone, and then ends alone.
    """
    cpus = 0.0 if need.gpus else need.cpus
    # Ray itself would try again for ever where memory ran out
    options = {"num_cpus": cpus, "num_gpus": need.gpus, "max_retries": 0}
    remote = ray.remote(_in_turn(function)).options(name=function.__name__, **options)
    running: dict[Any, _Task] = {}
    waiting = _Waiting(deque(), 0)
    places = _places_in_flight(need)
    more = True
    try:
        while more or waiting.batches or running:
            if more:
                # asked even when there is no place: it may have other things to tell of
                batch = next(batches, None)
                more = batch is not None
                if batch:
                    _add(waiting, _Batch((_Try(call, 1) for call in batch), len(batch)))
            n_places = next(places)
            while waiting.batches and len(running) < n_places:
                task = _next_task(waiting, n_places)
                running[remote.remote(*_packed(task.tries))] = task
            if not running:
                # nothing to wait for but the next batch
                time.sleep(_POLL_SECONDS if more else 0.0)
                continue
            for task, done in _ended(running):
                _learn_length(task, done)
                outcomes, again = _settled(task, done)
                if again:
                    _add(waiting, _Batch(iter(again), len(again), n_most=1))
                yield from outcomes
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


class _Try(NamedTuple):
    """A call, and the how many-th time it is tried."""

    call: Call
    number: int


@dataclass
class _Batch:
    """The tries that are still to be drawn of some, and how many of them its next task takes."""

    tries: Iterator[_Try]
    n_left: int
    n_most: int = _MOST_TOGETHER
    n_together: int = 1


@dataclass
class _Waiting:
    """The batches that still have tries, in their turn, and how many those are together."""

    batches: deque[_Batch]
    n_tries: int


class _Task(NamedTuple):
    """Tries at work, and the batch that they were drawn from."""

    tries: list[_Try]
    batch: _Batch


class _Done(NamedTuple):
    """What a task's calls gave, a value or an error each, and how long they took.

    None where none succeeded or the task was lost, which tells nothing of that.
    """

    results: list[tuple[Any, str | None]]
    seconds_a_call: float | None


def _places_in_flight(need: Need) -> Iterator[int]:
    """How many tasks may be submitted and not yet ended, of the cluster as it is now."""
    while True:
        # of one that scales up from nothing a task is worth the asking
        n_places = max(1, 2 * _slots(need))
        next_look = time.monotonic() + _LOOK_SECONDS
        while time.monotonic() < next_look:
            yield n_places


def _add(waiting: _Waiting, batch: _Batch) -> None:
    """Have a batch wait for its turn."""
    waiting.batches.append(batch)
    waiting.n_tries += batch.n_left


def _next_task(waiting: _Waiting, n_places: int) -> _Task:
    """Draw tries of the batch whose turn it is, leaving as many for each of the other places."""
    batch = waiting.batches.popleft()
    share = max(math.ceil(waiting.n_tries / n_places), batch.n_together // _SHORTEST)
    drawn = list(itertools.islice(batch.tries, min(batch.n_together, share)))
    waiting.n_tries -= len(drawn)
    batch.n_left -= len(drawn)
    if batch.n_left:
        waiting.batches.append(batch)
    return _Task(drawn, batch)


def _learn_length(task: _Task, done: _Done) -> None:
    """Have the next task of a batch take as long as one should, by the calls of this one."""
    if done.seconds_a_call is not None:
        in_time = int(_TASK_SECONDS / done.seconds_a_call)
        n_together = min(in_time, _GROWTH * len(task.tries), task.batch.n_most)
        task.batch.n_together = max(1, n_together)


def _settled(task: _Task, done: _Done) -> tuple[list[Outcome], list[_Try]]:
    """The outcomes of those calls that need no more tries, and the next tries of the others."""
    outcomes, again = [], []
    for tried, (value, error) in zip(task.tries, done.results, strict=True):
        if error is None or tried.number == _TRIES:
            outcomes.append(Outcome(tried.call.key, value, error))
        else:
            again.append(tried._replace(number=tried.number + 1))
    return outcomes, again


def _packed(tries: Sequence[_Try]) -> list[Any]:
    """Where each call's arguments stand among all of them; the plain ones; then the shared ones.

    Each is there once, however many calls have it. The shared ones are the task's own arguments:
    Ray looks for them no deeper.
    """
    calls = [tried.call.arguments for tried in tries]
    every = {id(argument): argument for argument in itertools.chain.from_iterable(calls)}
    is_shared = {name: isinstance(value, ray.ObjectRef) for name, value in every.items()}
    names = sorted(every, key=is_shared.__getitem__)
    place_of = {name: place for place, name in enumerate(names)}
    chosen = [[place_of[id(argument)] for argument in arguments] for arguments in calls]
    plain = [every[name] for name in names if not is_shared[name]]
    return [chosen, plain, *(every[name] for name in names[len(plain) :])]


def _in_turn(function: Callable[..., Any]) -> Callable[..., _Done]:
    """The function that a task is: the given one, called once for each choice of the arguments."""

    def in_turn(chosen: list[list[int]], plain: list[Any], *shared_ones: Any) -> _Done:
        arguments = [*plain, *shared_ones]
        results: list[tuple[Any, str | None]] = []
        start = time.perf_counter()
        for places in chosen:
            try:
                results.append((function(*[arguments[place] for place in places]), None))
            except Exception as error:
                results.append((None, f"{type(error).__name__}: {error}"))
        seconds = (time.perf_counter() - start) / len(chosen)
        return _Done(results, seconds if any(error is None for _, error in results) else None)

    return in_turn


def _slots(need: Need) -> int:
    """How many calls fit into the cluster at once."""
    return cluster_places("GPU", need.gpus) if need.gpus else cluster_places("CPU", need.cpus)


def _ended(running: dict[Any, _Task]) -> Iterator[tuple[_Task, _Done]]:
    done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
    for reference in done:
        task = running.pop(reference)
        try:
            yield task, ray.get(reference)
        except ray.exceptions.RayError as error:
            # a shared value may be gone, or a result such that it cannot be sent
            cause = cause_of(error)
            first_line = str(cause).partition("\n")[0]
            lost = (None, f"{type(cause).__name__}: {first_line}")
            yield task, _Done([lost] * len(task.tries), None)
