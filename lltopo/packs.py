"""Loss tables of many epochs in a few files of bounded size, to be carried from place to place.

A pack holds, as row groups of one Parquet file, the tables of whole epochs of one run, and in its
metadata their metrics and the digest of the settings that made them. It is named for the epochs in
it and never changes; unpacked, the tables are byte for byte what the run had written.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lltopo.errors import InputError
from lltopo.progress import Notify
from lltopo.schemas import LOSSES, METRICS_PART
from lltopo.sections import SPLITS
from lltopo.storage import Place, files_below, read_bytes, write_bytes
from lltopo.study import Study, run_digest
from lltopo.tables import (
    Field,
    LossTable,
    complete_epochs,
    losses_file,
    metrics_file,
    read_table,
    write_losses,
    write_table,
)

PACK_BYTES = 15 * 2**20

PACK = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        *LOSSES,
    ]
)
_ENCODINGS = {"sample": "DELTA_BINARY_PACKED", "loss": "BYTE_STREAM_SPLIT"}
_DICTIONARIES = ["split", "epoch", "label", "prediction"]
_PACK_NAME = re.compile(r"run=([^/]+)/epochs=(\d+)-(\d+)/part-0\.parquet")


def pack_file(packed: Place, run: str, epochs: Sequence[int]) -> Place:
    """Return where the pack of some epochs of a run lies in a folder of packs."""
    return packed / f"run={run}/epochs={epochs[0]:05d}-{epochs[-1]:05d}/part-0.parquet"


def write_packs(study: Study, run: str, out: Place, packed: Place) -> list[Place]:
    """Pack the epochs of a run that no pack there holds yet.

    Parameters
    ----------
    study, run
        Who made the tables.
    out
        Where they are.
    packed
        The folder of packs.

    Returns
    -------
    list of Place
        The new packs: each of at most `PACK_BYTES`, unless one epoch alone is larger.
    """
    held = {epoch for first, last in _packs_in(packed, run) for epoch in range(first, last + 1)}
    digest = run_digest(study, run)
    made = []
    for epochs in _grouped(out, run, sorted(complete_epochs(out, run, SPLITS) - held)):
        target = pack_file(packed, run, epochs)
        write_bytes(target, _pack_bytes(out, run, epochs, digest))
        made.append(target)
    return made


def unpack(study: Study, packed: Place, out: Place, notify: Notify) -> list[tuple[str, int]]:
    """Write the loss tables and metrics of all packs in a folder; what is there already stays.

    Parameters
    ----------
    study
        Which must have made the packs.
    packed
        A folder of packs, as it was made or copied.
    out
        Where the tables go.
    notify
        Told of every pack.

    Returns
    -------
    list of (str, int)
        The runs and epochs written.

    Raises
    ------
    InputError
        For a folder without packs, and a pack that is damaged or another study's.
    """
    names = [name for name in files_below(packed) if _PACK_NAME.fullmatch(name)]
    if not names:
        raise InputError(
            f"{packed}: holds no packs: expected run=R/epochs=...-.../part-0.parquet. "
            "Give the folder that lltopo train --run wrote."
        )
    written = []
    there = {run: complete_epochs(out, run, SPLITS) for run in study.runs}
    for done, name in enumerate(names, start=1):
        run = name.partition("/")[0].removeprefix("run=")
        _check_run(study, packed / name, run)
        for epoch in _unpacked(packed / name, study, run, out, there[run]):
            written.append((run, epoch))
        notify("unpack", done, len(names), f"run {run}")
    return written


def _packs_in(packed: Place, run: str) -> list[tuple[int, int]]:
    """The first and last epoch of each pack of a run."""
    found = [_PACK_NAME.fullmatch(name) for name in files_below(packed)]
    return sorted((int(name[2]), int(name[3])) for name in found if name and name[1] == run)


def _grouped(out: Place, run: str, epochs: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive epochs whose files together are small enough for one pack."""
    group: list[int] = []
    size = 0
    for epoch in epochs:
        files = [losses_file(out / "losses", Field(run, split, epoch)) for split in SPLITS]
        # a row group is as large as the table's own file, with its footer
        more = sum(len(read_bytes(file)) for file in files)
        if group and (size + more > PACK_BYTES or epoch != group[-1] + 1):
            yield group
            group, size = [], 0
        group.append(epoch)
        size += more
    if group:
        yield group


def _pack_bytes(out: Place, run: str, epochs: Sequence[int], digest: str) -> bytes:
    metrics = [
        {"epoch": epoch} | row
        for epoch in epochs
        for row in read_table(metrics_file(out, run, epoch), METRICS_PART).to_pylist()
    ]
    metadata = {"run_digest": digest, "metrics": json.dumps(metrics)}
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        PACK.with_metadata(metadata),
        compression="zstd",
        use_dictionary=_DICTIONARIES,
        column_encoding=_ENCODINGS,
        write_page_checksum=True,
    ) as writer:
        for epoch in epochs:
            for split in SPLITS:
                table = read_table(losses_file(out / "losses", Field(run, split, epoch)), LOSSES)
                n = len(table)
                names = [pa.array([split] * n), pa.array(np.full(n, epoch, dtype=np.int32))]
                rows = pa.Table.from_arrays([*names, *table.columns], schema=PACK)
                writer.write_table(rows, row_group_size=n)
    return buffer.getvalue()


def _check_run(study: Study, source: Place, run: str) -> None:
    if run not in study.runs:
        raise InputError(
            f"{source}: holds run {run}, which is no run of this study: expected one of "
            f"{', '.join(study.runs)}. Give the study that made it."
        )


def _unpacked(source: Place, study: Study, run: str, out: Place, there: set[int]) -> Iterator[int]:
    """Write the epochs of one pack that are not there yet; yield each."""
    table = read_table(source)
    found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if found.get("run_digest") != run_digest(study, run):
        raise InputError(
            f"{source}: was made by another study: its settings are not these. "
            "Give the study that made it."
        )
    metrics: list[dict[str, Any]] = json.loads(found["metrics"])
    tables = dict(_tables(table, run))
    for epoch in sorted({row["epoch"] for row in metrics} - there):
        for split in SPLITS:
            field = Field(run, split, epoch)
            write_losses(out / "losses", field, tables[field])
        own = [{k: row[k] for k in METRICS_PART.names} for row in metrics if row["epoch"] == epoch]
        # they come last: an epoch counts as recorded once its metrics are there
        write_table(metrics_file(out, run, epoch), own, METRICS_PART)
        yield epoch


def _tables(table: pa.Table, run: str) -> Iterator[tuple[Field, LossTable]]:
    """The loss tables in a pack's rows, which stand one after the other."""
    epoch = table["epoch"].to_numpy()
    split = table["split"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, (epoch[1:] != epoch[:-1]) | (split[1:] != split[:-1])])
    for start, end in pairwise([*starts, len(table)]):
        rows = table.slice(start, end - start)
        label, prediction = (_classes(rows[name]) for name in ("label", "prediction"))
        field = Field(run, str(split[start]), int(epoch[start]))
        yield field, LossTable(rows["loss"].to_numpy(), label, prediction)


def _classes(column: pa.ChunkedArray) -> NDArray[np.int16] | None:
    if column.null_count == len(column):
        return None
    classes: NDArray[np.int16] = column.fill_null(-1).to_numpy()
    return classes
