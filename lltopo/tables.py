"""Every Parquet file below ``--out``: where it lies, and how it is written and read.

The folders are Hive partitions, so that pandas, polars, DuckDB and pyarrow read run, split,
tree and epoch as columns.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lltopo.errors import InputError
from lltopo.schemas import LOSSES
from lltopo.side_by_side import answers
from lltopo.storage import Place, files_below, read_bytes, read_end, write_bytes

Tree = Literal["join", "split"]
TREES: tuple[Tree, Tree] = ("join", "split")

_FOOTER_BYTES = 2**14
_ROWS_AT_A_TIME = 4096
_LOSSES_NAME = re.compile(r"run=([^/]+)/split=([^/]+)/epoch=(\d+)/part-0\.parquet")
_EPOCH_NAME = re.compile(r"epoch=(\d+)/part-0\.parquet")


class Field(NamedTuple):
    """Name a field: the losses of one split's samples after one epoch of one run."""

    run: str
    split: str
    epoch: int


class LossTable(NamedTuple):
    """Per-sample losses in sample order.

    Attributes
    ----------
    loss : (n,) float32
    label, prediction : (n,) int16
        -1 where unknown; None where all are.
    """

    loss: NDArray[np.float32]
    label: NDArray[np.int16] | None
    prediction: NDArray[np.int16] | None


def losses_file(losses: Place, field: Field) -> Place:
    """Return where a field's loss table lies in a ``losses`` folder."""
    return losses / f"run={field.run}/split={field.split}/epoch={field.epoch:05d}/part-0.parquet"


def metrics_file(out: Place, run: str, epoch: int) -> Place:
    """Return where the metrics of a run's splits after one epoch lie."""
    return out / f"metrics/run={run}/epoch={epoch:05d}/part-0.parquet"


def diagram_file(out: Place, field: Field, tree: Tree) -> Place:
    """Return where a field's persistence diagram of one tree lies."""
    epoch = f"epoch={field.epoch:05d}"
    return out / f"diagrams/run={field.run}/split={field.split}/tree={tree}/{epoch}/part-0.parquet"


def fields_in(losses: Place) -> list[Field]:
    """List the fields whose loss tables lie in a ``losses`` folder, sorted."""
    names = [_LOSSES_NAME.fullmatch(name) for name in files_below(losses)]
    return sorted(Field(name[1], name[2], int(name[3])) for name in names if name)


def recorded_epochs(out: Place, run: str) -> set[int]:
    """Return the epochs of a run whose metrics, which are written last, are there."""
    names = (_EPOCH_NAME.fullmatch(name) for name in files_below(out / f"metrics/run={run}"))
    return {int(name[1]) for name in names if name}


def complete_epochs(out: Place, run: str, splits: Sequence[str]) -> set[int]:
    """Return the epochs of a run of which `is_complete` holds."""
    epochs = recorded_epochs(out, run)
    complete = answers(lambda epoch: is_complete(out, run, epoch, splits), epochs, out)
    return set(itertools.compress(epochs, complete))


def is_complete(out: Place, run: str, epoch: int, splits: Sequence[str]) -> bool:
    """Say whether an epoch's metrics and the loss tables of all ``splits`` are there, whole."""
    files = [metrics_file(out, run, epoch)]
    files += [losses_file(out / "losses", Field(run, split, epoch)) for split in splits]
    return all(footer(file) is not None for file in files)


def write_losses(losses: Place, field: Field, table: LossTable) -> None:
    """Write one field's loss table; its metadata holds the digest of the losses alone."""
    n = len(table.loss)
    columns = {
        "sample": pa.array(np.arange(n, dtype=np.int32)),
        "loss": pa.array(np.ascontiguousarray(table.loss, dtype=np.float32)),
        "label": _nullable(table.label, n),
        "prediction": _nullable(table.prediction, n),
    }
    content = pa.table(columns, schema=LOSSES)
    encodings = {"sample": "DELTA_BINARY_PACKED", "loss": "BYTE_STREAM_SPLIT"}
    _write(
        losses_file(losses, field),
        content.replace_schema_metadata({"losses": losses_digest(table.loss)}),
        column_encoding=encodings,
        use_dictionary=["label", "prediction"],
    )


def read_losses(losses: Place, field: Field) -> LossTable:
    """Read one field's loss table, perhaps somebody else's.

    Raises
    ------
    InputError
        Where the file is damaged, lacks a column, has one of another type, or its samples are
        not 0, 1, 2, ...
    """
    source = losses_file(losses, field)
    table = read_table(source)
    sample, loss = (_column(source, table, name).to_numpy() for name in ("sample", "loss"))
    if not np.array_equal(sample, np.arange(len(sample))):
        raise InputError(
            f"{source}: sample: is not in sample order: expected 0, 1, 2, ... once each. "
            "Sort the table by sample."
        )
    label, prediction = (_optional_column(source, table, name) for name in ("label", "prediction"))
    return LossTable(np.ascontiguousarray(loss, dtype=np.float32), label, prediction)


def losses_digest(loss: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the losses' bytes."""
    return hashlib.sha256(np.ascontiguousarray(loss, dtype="<f4").tobytes()).hexdigest()


def recorded_digest(losses: Place, field: Field) -> str | None:
    """Return the digest of a table's losses, from its metadata where it is there.

    Labels and predictions have no part in it: diagrams are made of losses alone. None for a table
    that is absent or cut short.
    """
    metadata = footer(losses_file(losses, field))
    if metadata is None:
        return None
    return metadata.get("losses") or losses_digest(read_losses(losses, field).loss)


def read_table(source: Place, schema: pa.Schema | None = None) -> pa.Table:
    """Read a whole Parquet file, checking its pages; InputError where it is absent or damaged."""
    try:
        content = pa.BufferReader(read_bytes(source))
        table = pq.ParquetFile(content, page_checksum_verification=True).read(use_threads=False)
        return table if schema is None else table.select(schema.names).cast(schema)
    except FileNotFoundError as error:
        raise InputError(f"{source}: is missing. Run the study again.") from error
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{source}: is damaged: {reason}. Delete it and run the study again."
        ) from error


def write_table(
    target: Place,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write rows as one Parquet file, with metadata of ours."""
    write_columns(target, as_columns(rows, schema), metadata or {})


def as_columns(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Gather rows into a table, a few of them at a time as Python's objects."""
    left = iter(rows)
    parts = iter(lambda: list(itertools.islice(left, _ROWS_AT_A_TIME)), [])
    gathered = (pa.Table.from_pylist(part, schema=schema) for part in parts)
    return pa.concat_tables([schema.empty_table(), *gathered])


def write_columns(target: Place, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write a table as one Parquet file, with metadata of ours."""
    # a dictionary of numbers is larger than they are, and takes longer
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    _write(target, table.replace_schema_metadata(dict(metadata)), use_dictionary=texts)


def footer(source: Place) -> dict[str, str] | None:
    """Return our metadata of a complete Parquet file; None where it is absent or cut short."""
    try:
        end = read_end(source, _FOOTER_BYTES)
        # the length of the footer, then the magic, are a Parquet file's last eight bytes
        n_bytes = int.from_bytes(end[-8:-4], "little") + 8
        if n_bytes > len(end):
            end = read_end(source, n_bytes)
        # read by now: whatever goes wrong from here on is the file's fault
        return own_metadata(pq.read_schema(pa.BufferReader(end)))
    except (pa.ArrowException, OSError):
        return None


def own_metadata(schema: pa.Schema) -> dict[str, str]:
    """Return our metadata of a table that was read."""
    metadata = schema.metadata or {}
    return {
        key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"
    }


def _write(target: Place, table: pa.Table, **encoding: Any) -> None:
    buffer = io.BytesIO()
    pq.write_table(
        table.combine_chunks(),  # where a chunk ends, a page would
        buffer,
        compression="zstd",
        write_page_checksum=True,
        **encoding,
    )
    write_bytes(target, buffer.getvalue())


def _nullable(values: NDArray[np.int16] | None, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, pa.int16())
    return pa.array(np.asarray(values, dtype=np.int16), mask=np.asarray(values) < 0)


def _column(source: Place, table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column in the type that it has in `LOSSES`."""
    if name not in table.column_names:
        raise InputError(
            f"{source}: {name}: no such column: expected {LOSSES.names}, "
            f"got {table.column_names}. Write it with LossRecorder."
        )
    wanted = LOSSES.field(name).type
    try:
        return table[name].cast(wanted)
    except pa.ArrowException as error:
        raise InputError(
            f"{source}: {name}: has a wrong type: expected {wanted}, got {table[name].type}: "
            f"{str(error).splitlines()[0]}. Write it with LossRecorder."
        ) from error


def _optional_column(source: Place, table: pa.Table, name: str) -> NDArray[np.int16] | None:
    if name not in table.column_names or table[name].null_count == len(table):
        return None
    filled: NDArray[np.int16] = _column(source, table, name).fill_null(-1).to_numpy()
    return filled
