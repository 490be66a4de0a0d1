"""Ray Train around the training loop, the runs of a study side by side.

Our own tables and checkpoints are the record: they are written by the loop under fixed names,
so a run whose worker was killed goes on from its last checkpoint at once, and Train keeps no
second copy. Nor does Train connect the workers: torch's rendezvous would listen on all of a
machine's addresses and ask nobody for a token, whereas ours listens on the node's own alone, and
only where a run has several workers. The trainers of a study share one process apart from the
driver: where Ray ends first, as at Ctrl-C, a thread that waits for a trainer may never wake.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lltopo.errors import InputError
from lltopo.fanout import cause_of, cluster_places, cluster_total, takes_gpu, unmet_need
from lltopo.jump_files import Trajectory
from lltopo.opening import check_opened
from lltopo.storage import Place
from lltopo.study import Study
from lltopo.study_data import LossesData
from lltopo.study_files import resolved_study

if TYPE_CHECKING:
    from lltopo.loop import Worker

_MAX_FAILURES = 3
_GATHERING = timedelta(minutes=5)
_TRAIN_SETTINGS = ("RAY_TRAIN_", "RAY_CHDIR_TO_TRIAL_DIR")  # of Train, in the environment


class _Unconnected(ray.train.torch.TorchConfig):
    """Workers that know their device and are not connected by Train."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


class Loop(NamedTuple):
    """What each of some workers does: a function of one mapping, and that mapping."""

    name: str
    function: Callable[[dict[str, Any]], None]
    config: dict[str, Any]
    n_workers: int | tuple[int, int]
    """So many, or, where they work apart, from so few to so many as there is room for."""


@contextmanager
def training_runs(
    study: Study, out: Place, names: Sequence[str], state: Place
) -> Iterator[Mapping[str, Future[None]]]:
    """Train the named runs in the background, as many at once as fit into the cluster.

    ``state`` is a folder for Train's own notes. As nothing is reported to it, its controller alone
    looks there, on the driver's node.

    Yields
    ------
    mapping
        Each run's future, which ends when the run does.
    """
    needs = _worker_needs(study)
    with _trainers(parallel_runs(study, names)) as fit:
        yield {name: fit(needs, _run_loop(study, out, name), state) for name in names}


@contextmanager
def sampled_trajectories(
    study: Study, out: Place, trajectories: Sequence[Trajectory], state: Place
) -> Iterator[Future[None]]:
    """Sample trajectories of one run in the background, as many at once as fit into the cluster.

    One trainer serves them all: its workers deal them out among themselves, and each trains
    alone. ``state`` is as for `training_runs`.

    Yields
    ------
    future
        Ends when all trajectories have.
    """
    most = min(len(trajectories), _slots(study, 1))
    # nodes that are started at need are not all waited for
    n_workers = most if most == 1 or study.resources.device == "auto" else (1, most)
    config = {"study": study.model_dump(mode="json"), "trajectories": trajectories, "out": out}
    loop = Loop(f"jump-{trajectories[0].run}", _jump_worker, config, n_workers)
    with _trainers(1) as fit:
        yield fit(_worker_needs(study), loop, state)


def waited_for(study: Study, n_workers: int) -> str | None:
    """What workers are waited for, where the cluster as it is has no room for so many."""
    [(resource, each)] = _worker_needs(study).items()
    return unmet_need(resource, each, n_workers)


def parallel_runs(study: Study, names: Sequence[str]) -> int:
    """How many of the runs fit side by side into the cluster, within ``resources``."""
    slots = _slots(study, max(study.runs[name].training.workers for name in names))
    return min(len(names), slots)


def _slots(study: Study, n_workers: int) -> int:
    """How many groups of ``n_workers`` fit side by side into the cluster, within ``resources``."""
    need = study.resources
    [(resource, each)] = _worker_needs(study).items()
    slots = cluster_places(resource, each) // n_workers
    if need.device != "auto":
        # what the cluster has now is not what it may have
        return need.parallel_runs or max(1, slots)
    if slots < 1:
        raise InputError(
            f"resources: the cluster is too small for one run: expected {n_workers} workers with "
            f"{each:g} {resource} of one node each, got {cluster_total(resource):g} {resource} in "
            "all. Lower "
            f"training.workers or resources.{resource.lower()}s_per_worker, or, where the cluster "
            "starts its nodes at need, set resources.device."
        )
    return min(slots, need.parallel_runs or slots)


def _worker_needs(study: Study) -> dict[str, float]:
    """What one worker takes of the cluster: GPUs or CPUs, never both (see `fanout.Need`)."""
    need = study.resources
    if takes_gpu(need.device):
        return {"GPU": need.gpus_per_worker}
    return {"CPU": need.cpus_per_worker}


class _Trainers:
    """Trainers at work in the threads of an actor, whose end is theirs and their workers'."""

    def fit(self, needs: dict[str, float], loop: Loop, state: Place) -> None:
        """Have as many workers as a loop wants, each with these needs, do it to its end."""
        trainer = ray.train.torch.TorchTrainer(
            loop.function,
            train_loop_config=loop.config,
            torch_config=_Unconnected(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=loop.n_workers,  # type: ignore[arg-type]
                use_gpu="GPU" in needs,
                resources_per_worker=needs,
            ),
            run_config=ray.train.RunConfig(
                # never a name that Train has seen: it would go on from its notes, not from ours
                name=f"{loop.name}-{uuid.uuid4().hex[:8]}",
                storage_path=state.path,
                storage_filesystem=state.filesystem,
                failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except ray.train.WorkerGroupError as error:
            raise _told_failure(error.worker_failures.values()) from error


@contextmanager
def _trainers(n_together: int) -> Iterator[Callable[[dict[str, float], Loop, Place], Future[None]]]:
    """Trainers in the background, so many at once; what is at work when the block is left ends."""
    # where the folder for Train's notes lies
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    names = [name for name in os.environ if name.startswith(_TRAIN_SETTINGS)]
    # never restarted: what Ray may restart it kills first where memory runs out, and the places of
    # trainers that are lost with it would stay taken
    actor: Any = (
        ray.remote(_Trainers)
        .options(
            num_cpus=0,
            max_concurrency=n_together,
            scheduling_strategy=here,
            runtime_env={"env_vars": {name: os.environ[name] for name in names}},
        )
        .remote()
    )
    try:
        yield lambda *arguments: _future(actor.fit.remote(*arguments))
    finally:
        ray.kill(actor)


def _future(reference: Any) -> Future[None]:
    """Ends when a remote call does, and with the very error that ended it."""
    future: Future[None] = Future()

    # called by a thread of Ray's own, which must not be made to wait for Ray
    def end(ended: Future[None]) -> None:
        error = ended.exception()
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(cause_of(error))

    reference.future().add_done_callback(end)
    return future


def _told_failure(causes: Iterable[BaseException]) -> Exception:
    """What to tell of workers' failures, each of which is a whole traceback.

    A wrong input where there is one; and of others, that which is no mere loss of a connection: the
    workers that a failed one leaves behind lose theirs.
    """
    found = list(causes)
    for cause in found:
        if isinstance(cause, InputError):
            return cause
    told = [" ".join(str(cause).split()[-60:]) for cause in found]
    own = [text for text in told if "connection" not in text.lower()]
    return RuntimeError((own or told or ["its workers failed"])[0])


def _run_loop(study: Study, out: Place, name: str) -> Loop:
    config = {"study": study.model_dump(mode="json"), "run": name, "out": out}
    return Loop(name, _train_worker, config, study.runs[name].training.workers)


def _train_worker(config: dict[str, Any]) -> None:
    from lltopo.data import load_data
    from lltopo.loop import train_run

    study = resolved_study(config["study"], "study")
    assert not isinstance(study.data, LossesData)
    check_opened(config["out"])
    worker = _worker()
    with _process_group(worker):
        train_run(study, config["run"], load_data(study.data), config["out"], worker)


def _jump_worker(config: dict[str, Any]) -> None:
    from lltopo.data import load_data
    from lltopo.jump import sample_trajectories

    study = resolved_study(config["study"], "study")
    assert not isinstance(study.data, LossesData)
    check_opened(config["out"])
    data = load_data(study.data)
    sample_trajectories(study, data, config["trajectories"], config["out"], _worker())


def _worker() -> Worker:
    from lltopo.loop import Worker

    context = ray.train.get_context()
    return Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


@contextmanager
def _process_group(worker: Worker) -> Iterator[None]:
    """The workers of a run connected by torch, where there are several."""
    if worker.size == 1:
        yield
        return
    node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    listener = socket.create_server((node, 0)) if worker.rank == 0 else None
    host, port = broadcast_from_rank_zero(listener and listener.getsockname())
    if host == "127.0.0.1":
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        worker.size,
        is_master=listener is not None,
        timeout=_GATHERING,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    backend = "gloo" if worker.device.type == "cpu" else "nccl"
    dist.init_process_group(backend, store=store, rank=worker.rank, world_size=worker.size)
    try:
        yield
    finally:
        dist.destroy_process_group()
