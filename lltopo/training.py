"""Ray Train around the training loop, the runs of a study side by side.

Our own tables and checkpoints are the record: they are written by the loop under fixed names,
so a run whose worker was killed goes on from its last checkpoint at once, and Train keeps no
second copy.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch

from lltopo.errors import InputError
from lltopo.fanout import cluster_total
from lltopo.storage import Place
from lltopo.study import Study
from lltopo.study_data import LossesData
from lltopo.study_files import resolved_study

_MAX_FAILURES = 3


@contextmanager
def training_runs(
    study: Study, out: Place, names: Sequence[str], state: Place
) -> Iterator[Mapping[str, Future[None]]]:
    """Train the named runs in the background, as many at once as fit into the cluster.

    ``state`` is a folder for Train's own notes, which all nodes can reach.

    Yields
    ------
    mapping
        Each run's future, which ends when the run does.
    """
    pool = ThreadPoolExecutor(parallel_runs(study, names), thread_name_prefix="train")
    try:
        yield {name: pool.submit(_fit, study, out, name, state) for name in names}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def parallel_runs(study: Study, names: Sequence[str]) -> int:
    """How many of the runs fit side by side into the cluster, within ``resources``."""
    need = study.resources
    n_workers = max(study.runs[name].training.workers for name in names)
    slots = cluster_total("CPU") / (n_workers * need.cpus_per_worker)
    if _uses_gpu():
        slots = min(slots, cluster_total("GPU") / (n_workers * need.gpus_per_worker))
    if slots < 1:
        raise InputError(
            f"resources: the cluster is too small for one run: expected {n_workers} workers with "
            f"{need.cpus_per_worker:g} CPUs each, got {cluster_total('CPU'):g} CPUs. "
            "Lower training.workers or resources.cpus_per_worker."
        )
    return min(len(names), int(slots), need.parallel_runs or len(names))


def _uses_gpu() -> bool:
    return cluster_total("GPU") > 0


def _fit(study: Study, out: Place, name: str, state: Place) -> None:
    training = study.runs[name].training
    needs = {"CPU": study.resources.cpus_per_worker}
    if _uses_gpu():
        needs["GPU"] = study.resources.gpus_per_worker
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"study": study.model_dump(mode="json"), "run": name, "out": out},
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers, use_gpu=_uses_gpu(), resources_per_worker=needs
        ),
        run_config=ray.train.RunConfig(
            # never a name that Train has seen: it would go on from its notes, not from ours
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=state.path,
            storage_filesystem=state.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        # Train's own message is a whole traceback; the cause says it in a line
        for cause in error.worker_failures.values():
            if isinstance(cause, InputError):
                raise cause from error
            raise RuntimeError(" ".join(str(cause).split()[-60:])) from error
        raise


def _train_worker(config: dict[str, Any]) -> None:
    from lltopo.data import load_data
    from lltopo.loop import Worker, train_run

    study = resolved_study(config["study"], "study")
    assert not isinstance(study.data, LossesData)
    context = ray.train.get_context()
    worker = Worker(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    )
    train_run(study, config["run"], load_data(study.data), config["out"], worker)
