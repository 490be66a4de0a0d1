"""Places: paths and URIs, files that are whole or absent, safe names."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from processes import DEAD
from pyarrow import fs as pafs

from lltopo import storage
from lltopo.errors import InputError, StorageError, TransientError
from lltopo.orphans import own_mark
from lltopo.storage import (
    Place,
    exists,
    file_size,
    files_below,
    place,
    read_bytes,
    read_end,
    read_part,
    remove,
    remove_partial_files,
    safe_name,
    write_bytes,
)
from lltopo.study_files import resolved_study
from lltopo.tables import footer, read_table, write_table


@pytest.fixture(params=["disk", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder on a disk, and one in a store that has keys but no folders, as s3 has."""
    if request.param == "disk":
        return place(tmp_path / "not" / "yet" / "there")
    filesystem = MemoryFileSystem()
    filesystem.store.clear()
    return Place(pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), "/bucket/prefix")


def test_what_is_written_is_read_back(root: Place) -> None:
    assert not exists(root / "a/b.bin")
    write_bytes(root / "a/b.bin", b"\x00first")
    assert read_bytes(root / "a/b.bin") == b"\x00first"
    write_bytes(root / "a/b.bin", b"2")
    assert read_bytes(root / "a/b.bin") == b"2"
    assert exists(root / "a/b.bin")
    assert exists(root / "a")


def test_files_are_listed_below_a_folder(root: Place) -> None:
    assert files_below(root) == []
    for name in ("b/z", "b/a", "top"):
        write_bytes(root / name, b"x")
    assert files_below(root) == ["b/a", "b/z", "top"]
    assert files_below(Place(root.filesystem, root.path + "/")) == ["b/a", "b/z", "top"]
    assert files_below(root / "b") == ["a", "z"]
    assert files_below(root / "top") == []


def test_a_file_and_a_folder_can_be_removed(root: Place) -> None:
    for name in ("b/z", "b/a", "top"):
        write_bytes(root / name, b"x")
    remove(root / "top")
    remove(root / "b")
    remove(root / "never")
    assert files_below(root) == []


def test_a_missing_file_is_missing(root: Place) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(root / "never")


def test_a_place_travels_to_another_process(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(place(tmp_path))) == place(tmp_path)


def test_places_that_have_travelled_share_their_connections() -> None:
    store = place("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=x", 7.0)
    elsewhere = place("s3://bucket/x?endpoint_override=127.0.0.1:8&scheme=http&region=x")
    first, second, third = (
        pickle.loads(pickle.dumps(one)) for one in (store, store / "y", elsewhere)
    )
    assert first.filesystem is second.filesystem
    assert first.filesystem != third.filesystem
    assert (first, second) == (store, store / "y")


# -- whole or absent --


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = place(tmp_path / "file")
    write_bytes(target, b"before")

    def full_disk(self: Path, content: bytes) -> None:
        with open(self, "wb") as stream:
            stream.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(StorageError, match=r"file: cannot be written: No space left .*Make room"):
        write_bytes(target, b"after")
    assert os.listdir(tmp_path) == ["file"]
    assert read_bytes(target) == b"before"


def test_a_file_appears_only_under_its_whole_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        assert files_below(place(tmp_path)) == []
        seen.append((self.name, self.parent == target.parent, self.read_bytes(), target.exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_bytes(place(tmp_path / "file.parquet"), b"content")
    [(name, same_folder, content, existed)] = seen
    assert same_folder
    assert content == b"content"
    assert not existed
    # readers that take every file of a folder pass over it
    assert name.startswith(".")
    assert not name.endswith(".parquet")


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    left = {
        "dead": f".part-0.parquet.{DEAD}.{1:032x}.partial",
        "living": f".part-0.parquet.{own_mark()}.{2:032x}.partial",
        "elsewhere": f".part-0.parquet.elsewhere-1.{3:032x}.partial",
        "long ago": f".part-0.parquet.elsewhere-1.{4:032x}.partial",
    }
    (tmp_path / "a").mkdir()
    others = ["part-0.parquet", "x.partial", ".x.partial", "mine.tar.partial"]
    for name in (*others, *left.values()):
        (tmp_path / "a" / name).write_bytes(b"x")
    long_ago = time.time() - 7200
    for name in (*others, left["long ago"]):
        os.utime(tmp_path / "a" / name, (long_ago, long_ago))
    # they count as absent before, too
    assert files_below(place(tmp_path)) == ["a/part-0.parquet"]
    remove_partial_files(place(tmp_path))
    assert {*os.listdir(tmp_path / "a")} == {*others, left["living"], left["elsewhere"]}


@pytest.mark.parametrize("below", ["file", "file/deeper", "file/deeper/still"])
def test_a_place_below_a_regular_file_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("regular")
    target = place(tmp_path / below) / "study.yaml"
    assert not exists(target)
    with pytest.raises(InputError, match=r"cannot be written: .*Choose another folder with --out"):
        write_bytes(target, b"x")
    assert (tmp_path / "file").read_text() == "regular"


def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_bytes(place(tmp_path / "folder"), b"x")
    assert os.listdir(tmp_path) == ["folder"]


# -- faults --


class Faulty(MemoryFileSystem):
    """A store that fails as it is told to: by the name of an operation, with an error."""

    faults: ClassVar[dict[str, BaseException]] = {}

    def info(self, path: str, **options: Any) -> Any:
        self._fail("info")
        return super().info(path, **options)

    def find(self, path: str, **options: Any) -> Any:
        self._fail("find")
        return super().find(path, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._fail(mode)
        return super()._open(path, mode, **options)

    def _fail(self, operation: str) -> None:
        if operation in self.faults:
            raise self.faults[operation]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(Faulty, "faults", {})
    filesystem = Faulty(skip_instance_cache=True)
    filesystem.store.clear()
    return Place(pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), "/bucket", retry_s=0.0)


USES = {
    "info": exists,
    "find": files_below,
    "rb": lambda root: read_part(root / "file", 0, 1),
    "wb": lambda root: write_bytes(root / "other", b"x"),
}


@pytest.mark.parametrize("operation", USES)
def test_a_store_that_does_not_answer_may_be_tried_again(faulty: Place, operation: str) -> None:
    write_bytes(faulty / "file", b"x")
    Faulty.faults[operation] = OSError("no answer")
    with pytest.raises(
        TransientError, match=r"/bucket.*: cannot be .*: .*no answer.* Try again\.$"
    ):
        USES[operation](faulty)
    Faulty.faults.clear()
    USES[operation](faulty)


def test_a_store_that_may_not_be_entered_is_refused(faulty: Place) -> None:
    Faulty.faults["info"] = PermissionError(errno.EACCES, "no")
    with pytest.raises(InputError, match=r"/bucket: cannot be read: Permission denied\."):
        exists(faulty)


def test_a_store_that_is_away_is_waited_for(faulty: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(faulty / "file", b"x")
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 6:
            Faulty.faults.clear()

    monkeypatch.setattr(storage.time, "sleep", sleep)
    for operation, use in USES.items():
        waits.clear()
        Faulty.faults[operation] = OSError("no answer")
        use(faulty._replace(retry_s=60.0))
        assert len(waits) == 6
        # doubling, less a random part of at most a half
        assert all(0.1 * 2**i <= wait <= 0.2 * 2**i for i, wait in enumerate(waits[:5]))
        assert waits[5] <= 5.0


def test_waiting_ends_when_its_time_is_over(faulty: Place) -> None:
    Faulty.faults["info"] = OSError("no answer")
    started = time.monotonic()
    with pytest.raises(TransientError, match="no answer"):
        exists(faulty._replace(retry_s=0.5))
    assert 0.5 <= time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "access is"),
        ("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation: x", "does not know the cred"),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: x", "there is no bucket"),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: x", "Check the region"),
    ],
)
def test_what_a_store_refuses_is_not_asked_for_again(
    faulty: Place, monkeypatch: pytest.MonkeyPatch, answer: str, told: str
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("was waited for"))
    Faulty.faults["info"] = OSError(f"When getting information for key 'x': {answer}")
    with pytest.raises(InputError, match=rf"/bucket: cannot be read: .*{told}") as caught:
        exists(faulty._replace(retry_s=60.0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", ["404", "409", "429", "500", "503"])
def test_a_store_that_is_busy_is_asked_again(faulty: Place, status: str) -> None:
    Faulty.faults["info"] = OSError(f"AWS Error UNKNOWN (HTTP status {status}) during HeadObject")
    with pytest.raises(TransientError, match=status):
        exists(faulty)


def test_a_store_that_is_away_does_not_make_a_file_damaged(faulty: Place) -> None:
    write_table(faulty / "file", [{"x": 1}], pa.schema([("x", pa.int8())]), {"made": "of"})
    assert footer(faulty / "file") == {"made": "of"}
    Faulty.faults["rb"] = OSError("no answer")
    for read in (footer, read_table):
        with pytest.raises(TransientError, match="no answer"):
            read(faulty / "file")


def test_an_interrupted_write_is_a_whole_one(
    faulty: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Faulty._open

    def interrupted(self: Faulty, path: str, mode: str = "rb", **options: Any) -> Any:
        stream = opened(self, path, mode, **options)
        if mode == "wb":
            # between opening and writing, when pyarrow would commit an empty file
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)
        return stream

    monkeypatch.setattr(Faulty, "_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(faulty / "file", b"whole")
    assert read_bytes(faulty / "file") == b"whole"


@pytest.mark.parametrize("n_bytes", [0, 1, 5, 6, 1000])
def test_the_end_of_a_file(root: Place, n_bytes: int) -> None:
    write_bytes(root / "file", b"012345")
    assert read_end(root / "file", n_bytes) == b"012345"[max(0, 6 - n_bytes) :]
    with pytest.raises(FileNotFoundError):
        read_end(root / "never", n_bytes)


@pytest.mark.parametrize(("start", "n_bytes"), [(0, 6), (0, 0), (2, 3), (4, 9), (6, 1)])
def test_a_part_of_a_file(root: Place, start: int, n_bytes: int) -> None:
    write_bytes(root / "file", b"012345")
    assert read_part(root / "file", start, n_bytes) == b"012345"[start : start + n_bytes]
    with pytest.raises(FileNotFoundError):
        read_part(root / "never", start, n_bytes)


def test_the_size_of_a_file(root: Place) -> None:
    write_bytes(root / "folder/file", b"012345")
    assert file_size(root / "folder/file") == 6
    for name in ("never", "folder"):
        with pytest.raises(FileNotFoundError, match=name):
            file_size(root / name)


@pytest.mark.parametrize("operation", [exists, files_below, read_bytes, remove])
def test_a_path_that_cannot_be_reached_is_refused(
    tmp_path: Path, operation: Callable[[Place], Any]
) -> None:
    with pytest.raises(
        InputError, match=r"x: cannot be (read|removed): File name too long\. Choos"
    ):
        operation(place(tmp_path / ("x" * 300)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_that_may_not_be_entered_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises(InputError, match=r"shut/x: cannot be read: Permission denied\."):
        exists(place(tmp_path / "shut/x"))


# -- paths and URIs --


def test_relative_paths_are_the_working_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of-a-person")
    assert str(place("a/b")) == f"{tmp_path}/a/b"
    assert str(place("~/b")) == "/home/of-a-person/b"
    assert place("a").is_local
    assert str(place(tmp_path) / "c") == f"{tmp_path}/c"
    assert str(place("/") / "c") == "/c"


def test_a_file_uri_is_the_same_as_its_path(tmp_path: Path) -> None:
    assert place(tmp_path.as_uri()) == place(tmp_path)


@pytest.mark.parametrize("uri", ["ftp://host/x", "file://relative/x", "s3:///key", "a b://x"])
def test_a_uri_that_nobody_takes_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="cannot be opened as a file, s3 or gs URI") as caught:
        place(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:topsecret@bucket/x",
        "s3://topsecret@bucket/x",
        # a secret key may hold a slash
        "s3://AKIA:top/topsecret@bucket/x",
        "s3://bucket/x?secret_key=topsecret",
        "gs://topsecret@bucket/x",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        place(uri)
    assert "topsecret" not in str(caught.value)
    assert "environment" in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:topsecret@bucket/x", "s3://bucket/x?access_key=AKIA&secret_key=topsecret"]
)
def test_credentials_in_a_study_are_refused_before_they_are_written(uri: str) -> None:
    data = {"source": "losses", "losses": uri, "features": {}}
    with pytest.raises(InputError, match="holds credentials") as caught:
        resolved_study({"data": data}, "study.yaml")
    assert "topsecret" not in str(caught.value)


def test_a_store_is_opened_with_what_its_uri_says() -> None:
    found = place("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=x", 7.0)
    assert str(found / "y") == "s3://bucket/x/y"
    assert found.parent.retry_s == (found / "y").retry_s == 7.0
    assert str(place("gs://anonymous@bucket/x")) == "gs://bucket/x"
    # what the URI says counts, on its way to another process too
    patient = place("gs://anonymous@bucket/x?retry_limit_seconds=3").filesystem
    usual = pickle.loads(pickle.dumps(place("gs://anonymous@bucket/x"))).filesystem
    assert patient.default_bucket_location == usual.default_bucket_location
    assert [fs.__reduce__()[1][0]["retry_time_limit"].seconds for fs in (patient, usual)] == [3, 10]


@pytest.mark.parametrize("name", ["a", "0", "lr-0.1_b", "x" * 100])
def test_a_safe_name_is_itself(name: str) -> None:
    assert safe_name(name, "run") == name


@pytest.mark.parametrize("name", ["", ".a", "..", "-a", "a/b", "a\\b", "a=b", "a\n", "x" * 101])
def test_an_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"run: .* is no safe file name"):
        safe_name(name, "run")
