"""A study of many runs whose tasks are stand-ins: what its driver alone needs.

As a program, ``planned.py RUNS EPOCHS FOLDER`` carries the study's fields from plan to series and
prints the largest resident memory (bytes) that this took, and the seconds.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from lltopo import fanout, reduction, stages
from lltopo.analysis import Row, field_rows, write_field_diagrams
from lltopo.fanout import Call, Outcome
from lltopo.reduction import Findings, write_series
from lltopo.sections import SPLITS
from lltopo.session import Session
from lltopo.storage import place
from lltopo.study import Study
from lltopo.study_files import resolved_study
from lltopo.tables import TREES, Field


def planned_study(n_runs: int, n_epochs: int) -> Study:
    """A study of so many runs of so many epochs, epoch 0 among them."""
    training = {"epochs": n_epochs - 1, "lr": 0.1, "milestones": []}
    runs: dict[str, Any] = {f"architecture-{i:02d}": {} for i in range(n_runs)}
    raw = {"data": {"source": "digits"}, "model": {"name": "mlp"}, "training": training}
    return resolved_study({**raw, "runs": runs, "analysis": {"verify": 0}}, "planned")


def pretended(function: Any, batches: Iterator[Iterable[Call]]) -> Iterator[Outcome]:
    """In place of Ray: what each task would have brought back, of a true one's size."""
    answers = {write_field_diagrams: pretended_metadata, field_rows: pretended_rows}
    for batch in batches:
        for call in batch:
            yield Outcome(call.key, answers[function](call.key), None)


def pretended_metadata(field: Field) -> dict[str, str]:
    """Metadata as a worker's answer has them: no text is shared with another's."""
    digest = hashlib.sha256(repr(field).encode()).hexdigest()
    graph = hashlib.sha256(field.split.encode()).hexdigest()
    found = {"losses": digest, "graph": graph, "status": "ok", "n_nonfinite": "0"}
    return {bytes(k, "ascii").decode(): bytes(v, "ascii").decode() for k, v in found.items()}


def pretended_rows(field: Field) -> list[Row]:
    """Rows of the series for one field."""
    measures = {"n_pairs": 1000 + field.epoch, "n_nonfinite": 0, "status": "ok", "degree": 1.0}
    measures |= {"total_persistence": field.epoch / 7, "wasserstein": field.epoch / 9}
    common = {**field._asdict(), **measures, "max_persistence": 1.5, "essential": "cap"}
    return [common | {"tree": tree, "order": 1.0, "reference_epoch": 9} for tree in TREES]


def pretended_metrics(_: object, study: Study, fields: object) -> Iterator[Row]:
    """Rows of the metrics for every epoch of every run."""
    for run in study.runs:
        for epoch in range(study.runs[run].training.epochs + 1):
            measures = {"loss": 1 / (epoch + 1), "accuracy": epoch / 1000, "seconds": 1.5}
            for split in SPLITS:
                yield {"run": run, "epoch": epoch, "split": split, **measures}


def carry_out(n_runs: int, n_epochs: int, folder: Path) -> None:
    """Plan, gather and write the series of a study whose tasks are stand-ins."""
    for module in (stages, reduction, fanout):
        module.fan_out = pretended  # type: ignore[assignment]
    reduction._recorded_metrics = pretended_metrics  # type: ignore[assignment]
    reduction.reference_diagrams = lambda out, last, analysis: last  # type: ignore[assignment,return-value]
    reduction.shared = lambda value: value  # type: ignore[assignment]
    study, out = planned_study(n_runs, n_epochs), place(folder)
    # the driver of a study that trains has it loaded
    import_module("lltopo.training")
    session = Session(study, out, lambda *_: None)
    fields = [Field(run, s, e) for run in study.runs for e in range(n_epochs) for s in SPLITS]
    made = dict.fromkeys(SPLITS)
    findings = stages._with_diagrams(session, made, Findings(fields, {}, {}), {})
    problems = write_series(out, study, findings, made)
    assert problems == []
    assert len(findings.metadata) == 2 * n_runs * n_epochs


if __name__ == "__main__":
    start = time.perf_counter()
    carry_out(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak, time.perf_counter() - start)
