"""What is computed of each field, and the series that it is gathered into.

Two steps, each a plain function of files to files or rows that a Ray task calls: the diagrams
of both trees of one (run, split, epoch), as soon as its loss table is complete; then, once the
reference epoch has its own, the measures of those diagrams.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lltopo.diagrams import (
    PersistencePairs,
    both_persistence_pairs,
    diagram_of,
    total_persistence,
)
from lltopo.distances import wasserstein_distance
from lltopo.errors import InputError
from lltopo.graph_files import MadeGraph
from lltopo.recorder import split_metrics
from lltopo.schemas import DIAGRAM
from lltopo.sections import SPLITS
from lltopo.storage import Place
from lltopo.study import Analysis
from lltopo.tables import (
    TREES,
    Field,
    Tree,
    diagram_file,
    footer,
    losses_digest,
    own_metadata,
    read_losses,
    read_table,
    recorded_digest,
    write_columns,
)
from lltopo.trees import contour_counts

Row = dict[str, Any]


class Reference(NamedTuple):
    """The epoch that others of its run are compared with, and its diagrams on one split.

    Attributes
    ----------
    epoch : int
    join, split : (m, 2) float64
        Points (birth, death), as `read_points` gives them.
    """

    epoch: int
    join: NDArray[np.float64]
    split: NDArray[np.float64]


class FieldDiagrams(NamedTuple):
    """Both trees' pairs of one field.

    ``metadata``, kept in both files, holds the digests of the losses and the graph, ``status``
    (``ok`` or ``diverged``), ``n_nonfinite``, perhaps a ``reason``, and the sizes of the contour
    tree where they were asked for.
    """

    join: PersistencePairs
    split: PersistencePairs
    metadata: Mapping[str, str]


def field_diagrams(loss: NDArray[np.float32], made: MadeGraph) -> FieldDiagrams:
    """Compute the diagrams of one field of losses on a split's graph.

    Parameters
    ----------
    loss : (n,) float32
        A field with a loss that is not finite is ``diverged`` and has empty diagrams.
    made
        The split's graph.

    Raises
    ------
    InputError
        Unless there is one loss a vertex.
    """
    if len(loss) != made.graph.n_vertices:
        raise InputError(
            f"loss: does not fit the graph: expected {made.graph.n_vertices} samples, got "
            f"{len(loss)}. Give losses and features of the same samples."
        )
    n_nonfinite = int(np.count_nonzero(~np.isfinite(loss)))
    metadata = {"losses": losses_digest(loss), "graph": made.digest, "status": "ok"}
    metadata["n_nonfinite"] = str(n_nonfinite)
    if n_nonfinite:
        metadata["status"] = "diverged"
        metadata["reason"] = f"{n_nonfinite} of {len(loss)} losses are not finite"
        none = _pairs_of(DIAGRAM.empty_table())
        return FieldDiagrams(none, none, metadata)
    return FieldDiagrams(*both_persistence_pairs(made.graph, loss), metadata)


def write_field_diagrams(
    losses: Place, out: Place, field: Field, made: MadeGraph, analysis: Analysis
) -> Mapping[str, str]:
    """Read one loss table, compute its diagrams and write them.

    Parameters
    ----------
    losses, out
        The folder of the loss tables, and that of the results.
    field, made
        Which field, and its split's graph.
    analysis
        Says whether the contour tree is to be counted as well.

    Returns
    -------
    mapping
        The files' metadata: that of `FieldDiagrams` and, as JSON, the table's `split_metrics`.
    """
    table = read_losses(losses, field)
    found = field_diagrams(table.loss, made)
    metadata = dict(found.metadata)
    metadata["metrics"] = json.dumps(split_metrics(field.split, table))
    if analysis.contour and metadata["status"] == "ok":
        metadata["contour"] = json.dumps(contour_counts(made.graph, table.loss)._asdict())
    for tree in TREES:
        pairs = found.join if tree == "join" else found.split
        columns = [
            pairs.birth,
            pairs.death,
            pairs.birth_vertex.astype(np.int32),
            pairs.death_vertex.astype(np.int32),
            pairs.essential,
        ]
        table = pa.table(columns, schema=DIAGRAM)
        write_columns(diagram_file(out, field, tree), table, metadata)
    return metadata


def read_pairs(out: Place, field: Field, tree: Tree) -> PersistencePairs:
    """Read the pairs in a diagram's file; InputError where it is absent or damaged."""
    return _pairs_of(read_table(diagram_file(out, field, tree)))


def read_points(out: Place, field: Field, tree: Tree, analysis: Analysis) -> NDArray[np.float64]:
    """Read a diagram as points, essential ones as the study wants them."""
    return diagram_of(read_pairs(out, field, tree), analysis.essential, tree)


def current_metadata(
    losses: Place, out: Place, field: Field, graph_digest: str
) -> dict[str, str] | None:
    """Return the metadata of a field's diagrams where they need not be computed again.

    Parameters
    ----------
    losses, out, field
        As in `write_field_diagrams`.
    graph_digest
        Of the split's graph as it is now.

    Returns
    -------
    dict or None
        None unless both files are complete and were made of this very loss table and graph.
    """
    found = [footer(diagram_file(out, field, tree)) for tree in TREES]
    if found[0] is None or found[0] != found[1] or found[0].get("graph") != graph_digest:
        return None
    return found[0] if found[0].get("losses") == recorded_digest(losses, field) else None


def interned(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a field's metadata to be kept beside those of many others, which mostly say the same.

    Its keys and values are shared with theirs.
    """
    return {sys.intern(key): sys.intern(value) for key, value in metadata.items()}


def reference_epochs(
    metadata: Mapping[Field, Mapping[str, str]],
) -> dict[str, int]:
    """Return the epoch that a run's others are compared with: its last that is ok in all splits."""
    splits: dict[str, set[str]] = {}
    ok: dict[tuple[str, int], set[str]] = {}
    for field, found in metadata.items():
        splits.setdefault(field.run, set()).add(field.split)
        if found["status"] == "ok":
            ok.setdefault((field.run, field.epoch), set()).add(field.split)
    return {run: epoch for (run, epoch), found in sorted(ok.items()) if found == splits[run]}


def reference_diagrams(out: Place, field: Field, analysis: Analysis) -> Reference:
    """Read what the other epochs of a field's run and split are compared with.

    Raises
    ------
    InputError
        Where a diagram is absent or damaged.
    """
    join, split = (read_points(out, field, tree, analysis) for tree in TREES)
    return Reference(field.epoch, join, split)


def field_rows(
    out: Place, field: Field, reference: Reference | None, analysis: Analysis
) -> list[Row]:
    """Measure the diagrams of one field.

    Parameters
    ----------
    out, field
        Whose diagrams are there.
    reference
        Of the field's run and split; None where no epoch of them is ok.
    analysis
        The orders, the degree, and what becomes of essential pairs.

    Returns
    -------
    list of dict
        Rows of ``series.parquet``, one for each tree and order.

    Raises
    ------
    InputError
        Where a diagram is absent or damaged.
    """
    rows = []
    for tree in TREES:
        table = read_table(diagram_file(out, field, tree))
        metadata = own_metadata(table.schema)
        common = _row(field, tree, analysis) | {
            "n_nonfinite": int(metadata["n_nonfinite"]),
            "status": metadata["status"],
            "reason": metadata.get("reason"),
        }
        if metadata["status"] != "ok":
            rows += [common | {"order": order} for order in analysis.order]
            continue
        dgm = diagram_of(_pairs_of(table), analysis.essential, tree)
        common |= {
            "n_pairs": len(dgm),
            "total_persistence": total_persistence(dgm, analysis.degree),
            "max_persistence": float(np.abs(dgm[:, 1] - dgm[:, 0]).max(initial=0.0)),
        }
        if reference is None:
            rows += [common | {"order": order} for order in analysis.order]
            continue
        common["reference_epoch"] = reference.epoch
        last = reference.join if tree == "join" else reference.split
        rows += [
            common | {"order": order, "wasserstein": wasserstein_distance(dgm, last, order)}
            for order in analysis.order
        ]
    return rows


def failed_rows(field: Field, reason: str, analysis: Analysis) -> list[Row]:
    """Return the rows of the series of a field whose diagrams could not be computed."""
    failed = {"n_nonfinite": 0, "status": "failed", "reason": reason}
    return [
        _row(field, tree, analysis) | failed | {"order": order}
        for tree in TREES
        for order in analysis.order
    ]


def contour_rows(metadata: Mapping[Field, Mapping[str, str]]) -> Iterator[Row]:
    """Yield the sizes of the contour trees, where they were asked for."""
    for field, found in metadata.items():
        if "contour" in found:
            yield {**field._asdict(), **json.loads(found["contour"])}


def series_digests(
    metadata: Mapping[Field, Mapping[str, str]], analysis: Analysis
) -> dict[str, str]:
    """Return, for each run, the SHA-256 of all that its series is made of."""
    settings = analysis.model_dump(mode="json", exclude={"verify"})
    digests = {}
    for run, fields in itertools.groupby(sorted(metadata), key=lambda field: field.run):
        inputs = [(metadata[field], field) for field in fields]
        parts = [settings, *([*field, found["losses"], found["graph"]] for found, field in inputs)]
        digests[run] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return digests


def in_study_order(table: pa.Table, runs: Sequence[str]) -> pa.Table:
    """Sort a table by run (in the order of ``runs``), split, and its tree, epoch and order."""
    keys = {
        name: pc.index_in(table[name], pa.array(values, pa.string()))
        for name, values in (("run", runs), ("split", SPLITS))
    }
    keys |= {name: table[name] for name in ("tree", "epoch", "order") if name in table.column_names}
    order = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
    return table.take(order)


def _row(field: Field, tree: Tree, analysis: Analysis) -> Row:
    return {
        **field._asdict(),
        "tree": tree,
        "degree": analysis.degree,
        "essential": analysis.essential,
    }


def _pairs_of(table: pa.Table) -> PersistencePairs:
    return PersistencePairs(*(column.to_numpy() for column in table.combine_chunks().columns))
