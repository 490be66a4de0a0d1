"""Packs: what is packed is unpacked byte for byte, in files that stay small."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest
from tiny import tiny_study

from lltopo.errors import InputError
from lltopo.packs import PACK_BYTES, unpack, write_packs
from lltopo.recorder import LossRecorder
from lltopo.storage import files_below, place, read_bytes, write_bytes
from lltopo.study import Study


def record(out: Path, epochs: range, n: dict[str, int]) -> None:
    """Losses as training leaves them: a mantissa of noise, most of them small."""
    recorder = LossRecorder(out, "only")
    for epoch in epochs:
        rng = np.random.default_rng(epoch)
        for split, size in n.items():
            losses = np.exp(rng.normal(-3, 2, size))
            labels = np.arange(size) % 10
            wrong = rng.random(size) < 0.1
            predictions = np.where(wrong, rng.integers(0, 10, size), labels)
            recorder.update(
                losses, np.arange(size), split, epoch, labels=labels, predictions=predictions
            )
        recorder.close_epoch(epoch, learning_rate=0.1, seconds=1.5)


def contents(folder: Path) -> dict[str, bytes]:
    where = place(folder)
    return {name: read_bytes(where / name) for name in files_below(where)}


def ignore(*_: object) -> None:
    """Progress that nobody follows."""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


def test_two_hundred_epochs_of_cifar10_fit_into_sixty_mebibytes(
    tmp_path: Path, study: Study
) -> None:
    n_epochs = 70
    record(tmp_path / "out", range(n_epochs), {"train": 50_000, "val": 10_000})
    packs = write_packs(study, "only", place(tmp_path / "out"), place(tmp_path / "packed"))
    sizes = [len(read_bytes(pack)) for pack in packs]
    assert len(packs) == 2
    assert max(sizes) <= PACK_BYTES
    assert sum(sizes) * 200 / n_epochs <= 60 * 2**20
    unpack(study, place(tmp_path / "packed"), place(tmp_path / "there"), ignore)
    assert contents(tmp_path / "there/losses") == contents(tmp_path / "out/losses")


def test_later_epochs_go_into_further_packs(tmp_path: Path, study: Study) -> None:
    out, packed = place(tmp_path / "out"), place(tmp_path / "packed")
    for epochs in (range(2), range(2, 3)):
        record(tmp_path / "out", epochs, {"train": 12, "val": 5})
        assert len(write_packs(study, "only", out, packed)) == 1
    assert write_packs(study, "only", out, packed) == []
    assert files_below(packed) == [
        "run=only/epochs=00000-00001/part-0.parquet",
        "run=only/epochs=00002-00002/part-0.parquet",
    ]
    there = place(tmp_path / "there")
    assert unpack(study, packed, there, ignore) == [("only", epoch) for epoch in range(3)]
    for name in ("losses", "metrics"):
        assert contents(tmp_path / "there" / name) == contents(tmp_path / "out" / name)
    assert unpack(study, packed, there, ignore) == []


def test_a_gap_between_epochs_ends_a_pack(tmp_path: Path, study: Study) -> None:
    for epochs in (range(2), range(4, 6)):
        record(tmp_path / "out", epochs, {"train": 12, "val": 5})
    packs = write_packs(study, "only", place(tmp_path / "out"), place(tmp_path / "packed"))
    assert ["00000-00001" in str(pack) or "00004-00005" in str(pack) for pack in packs] == [1, 1]


def test_losses_without_classes_are_packed(tmp_path: Path, study: Study) -> None:
    recorder = LossRecorder(tmp_path / "out", "only")
    for split in ("train", "val"):
        recorder.update([0.5, np.nan], [0, 1], split, 0)
    recorder.close_epoch(0)
    write_packs(study, "only", place(tmp_path / "out"), place(tmp_path / "packed"))
    unpack(study, place(tmp_path / "packed"), place(tmp_path / "there"), ignore)
    assert contents(tmp_path / "there/losses") == contents(tmp_path / "out/losses")


def test_a_pack_is_a_table_for_others(tmp_path: Path, study: Study) -> None:
    record(tmp_path / "out", range(3), {"train": 12, "val": 5})
    write_packs(study, "only", place(tmp_path / "out"), place(tmp_path / "packed"))
    found = duckdb.sql(
        f"select epoch, split, count(*) from '{tmp_path}/packed/**/*.parquet' "
        "group by all order by all"
    ).fetchall()
    assert found == [(e, s, n) for e in range(3) for s, n in (("train", 12), ("val", 5))]


def test_what_is_no_pack_of_this_study_is_refused(tmp_path: Path, study: Study) -> None:
    record(tmp_path / "out", range(1), {"train": 12, "val": 5})
    packed, there = place(tmp_path / "packed"), place(tmp_path / "there")
    with pytest.raises(InputError, match="packed: holds no packs"):
        unpack(study, packed, there, ignore)
    [pack] = write_packs(study, "only", place(tmp_path / "out"), packed)
    with pytest.raises(InputError, match=r"part-0\.parquet: was made by another study"):
        unpack(tiny_study(tmp_path, lr=0.2), packed, there, ignore)
    foreign = Study.model_validate(study.model_dump() | {"runs": {"other": study.runs["only"]}})
    with pytest.raises(InputError, match="holds run only, which is no run of this study"):
        unpack(foreign, packed, there, ignore)
    content = bytearray(read_bytes(pack))
    content[200] ^= 0xFF
    write_bytes(pack, bytes(content))
    with pytest.raises(InputError, match=r"part-0\.parquet: is damaged"):
        unpack(study, packed, there, ignore)
    assert files_below(there) == []
