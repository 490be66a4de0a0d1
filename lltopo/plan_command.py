"""The command that tells what a study will take before it is run."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lltopo.options import SetOption, StudyArgument
from lltopo.study_files import read_study

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lltopo.plan import Machines, Plan, Sizes
    from lltopo.rates import Rates
    from lltopo.study import Study

commands = typer.Typer()

_UNITS = ("B", "kB", "MB", "GB", "TB")


@commands.command()
def plan(
    study: StudyArgument,
    nodes: Annotated[int, typer.Option(help="Machines of the cluster.", min=1)] = 1,
    cpus: Annotated[
        int | None, typer.Option(help="Cores of each. Default: as many as here.", min=1)
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs of each.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with the rates.")] = False,
    override: SetOption = None,
) -> None:
    """Tell what a study will take: tasks, bytes, memory and time. Nothing is run or written.

    For some seconds the study's own networks, trees and distances are timed on this machine; the
    cluster's are taken to be like it, and the study to begin with nothing.
    """
    from lltopo.plan import Machines

    wanted = read_study(study, override or ())
    here = wanted.resources.local_cpus or os.cpu_count() or 1
    machines = Machines(nodes, cpus or here, gpus)
    sizes, rates, found = _measured_plan(wanted, machines)
    if as_json:
        typer.echo(json.dumps(_as_json(sizes, rates, found, machines), indent=2))
    else:
        _show(Console(), found, machines)


def _measured_plan(study: Study, machines: Machines) -> tuple[Sizes, Rates, Plan]:
    from lltopo.data import graph_features, load_data
    from lltopo.ingestion import check_lengths, given_features, given_fields
    from lltopo.plan import Sizes, planned, study_fields
    from lltopo.rates import measured_rates
    from lltopo.sections import SPLITS
    from lltopo.study_data import LossesData

    fields: Mapping[str, int]
    features: Mapping[str, NDArray[Any]]
    if isinstance(study.data, LossesData):
        check_lengths(study.data)
        data, fields = None, Counter(str(field.split) for field in given_fields(study.data))
        features = {split: given_features(study.data, split) for split in fields}
    else:
        data, fields = load_data(study.data), study_fields(study)
        features = {s: graph_features(data.split(s).x, study.graph.features) for s in SPLITS}
    samples = {split: len(rows) for split, rows in features.items()}
    largest = max(features.values(), key=len)
    n_bytes = 0 if data is None else data.train.x.nbytes + data.val.x.nbytes
    sizes = Sizes(samples, largest.size // len(largest), n_bytes)
    rates = measured_rates(study, data, samples, largest)
    return sizes, rates, planned(study, fields, sizes, rates, machines)


def _show(console: Console, found: Plan, machines: Machines) -> None:
    table = Table("what", *("tasks", "one by one", "written", "memory a task"))
    for column in table.columns[1:]:
        column.justify = "right"
    for work in found.work:
        table.add_row(
            work.name,
            f"{work.n_tasks:,}",
            _duration(work.seconds),
            _size(work.written),
            _size(work.memory),
        )
    console.print(table)
    on = f"{machines.nodes} x ({machines.cpus} cores, {machines.gpus} GPUs)"
    console.print(f"driver: {_size(found.driver_memory)}", highlight=False)
    console.print(f"time on {on}: about {_duration(found.seconds)}", highlight=False)


def _as_json(sizes: Sizes, rates: Rates, found: Plan, machines: Machines) -> dict[str, object]:
    measured = rates._asdict()
    measured |= {
        key: {name: rate._asdict() for name, rate in measured[key].items()}
        for key in ("runs", "fields")
    }
    return {
        "machines": machines._asdict(),
        "work": [work._asdict() for work in found.work],
        "driver_memory": found.driver_memory,
        "seconds": found.seconds,
        "sizes": sizes._asdict(),
        "rates": measured,
    }


def _duration(seconds: float) -> str:
    """Three figures at most, in the unit that a person would take."""
    for unit, length in (("s", 1.0), ("min", 60.0), ("h", 3600.0)):
        if seconds < 100 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.3g} d"


def _size(n_bytes: float) -> str:
    unit = 0
    while n_bytes >= 999.5 and unit < len(_UNITS) - 1:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.3g} {_UNITS[unit]}"
