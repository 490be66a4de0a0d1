"""Places in a real S3 API over HTTP, at rest and while it fails, and what must not be in them."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from flaky_proxy import FlakyProxy, flaky_proxy
from processes import PATIENCE, start
from s3 import BUCKET, SECRETS, Store, s3_environment, s3_store
from tiny import tiny_raw

from lltopo import cli
from lltopo.errors import InputError, TransientError
from lltopo.storage import Place, exists, files_below, place, read_bytes, remove, write_bytes
from lltopo.tables import footer, write_table

BIG = np.random.default_rng(0).bytes(12 * 2**20)
"""More than one part of an upload."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as running:
        yield running


@pytest.fixture
def proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A way to the store that fails when it is told to; this process goes that way."""
    with flaky_proxy(store.port, fraction=0.0) as running:
        for name, value in s3_environment(running.port).items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def root(proxy: FlakyProxy, request: pytest.FixtureRequest) -> Place:
    """An empty folder in the store, by way of the proxy."""
    return place(f"s3://{BUCKET}/{abs(hash(request.node.name))}")


def direct(store: Store, folder: Place) -> Place:
    """The same folder, without the proxy between."""
    option = f"endpoint_override=127.0.0.1:{store.port}&scheme=http"
    return place(f"s3://{folder.path}?{option}")


def contents(folder: Place) -> dict[str, bytes]:
    """All files of a folder."""
    return {name: read_bytes(folder / name) for name in files_below(folder)}


# -- at rest --


def test_files_are_written_listed_read_and_removed(root: Place) -> None:
    assert files_below(root) == []
    written = {"a/b": b"1", "a/c": b"", "d": BIG}
    for name, content in written.items():
        assert not exists(root / name)
        write_bytes(root / name, content)
    assert contents(root) == written
    assert exists(root / "a")
    assert files_below(root / "a") == ["b", "c"]
    write_bytes(root / "a/b", b"another")
    assert read_bytes(root / "a/b") == b"another"
    with pytest.raises(FileNotFoundError):
        read_bytes(root / "never")
    for name in ("d", "a", "never"):
        remove(root / name)
    assert files_below(root) == []


def test_a_footer_is_read_without_the_file(root: Place, proxy: FlakyProxy) -> None:
    assert footer(root / "table.parquet") is None
    schema = pa.schema([("x", pa.int8())])
    write_table(root / "table.parquet", [{"x": 1}], schema, {"long": "x" * 100_000, "made": "of"})
    write_bytes(root / "larger.parquet", BIG + read_bytes(root / "table.parquet"))
    proxy.requests.clear()
    proxy.sent = 0
    found = footer(root / "table.parquet")
    assert found is not None
    assert found["made"] == "of"
    assert proxy.requests.total() <= 4
    proxy.sent = 0
    assert footer(root / "larger.parquet") == found
    assert proxy.sent < 400_000 < len(BIG)


def test_a_place_travels_without_its_credentials(root: Place, proxy: FlakyProxy) -> None:
    write_bytes(root / "file", b"content")
    travelling = pickle.dumps(root / "file")
    assert not any(secret.encode() in travelling for secret in SECRETS)
    code = "import pickle, sys; from lltopo.storage import read_bytes; "
    code += "print(read_bytes(pickle.load(sys.stdin.buffer)))"
    there = subprocess.run(
        [sys.executable, "-c", code], input=travelling, capture_output=True, timeout=60, check=True
    )
    assert there.stdout.strip() == b"b'content'"


# -- while it fails --


def test_a_store_of_which_requests_fail_holds_whole_files(
    root: Place, proxy: FlakyProxy, store: Store
) -> None:
    proxy.fraction = 0.05
    written = {f"folder-{i % 3}/{i}": bytes([i]) * (1000 * i) for i in range(60)}
    for name, content in written.items():
        write_bytes(root / name, content)
    write_bytes(root / "big", BIG)
    assert contents(root) == written | {"big": BIG} == contents(direct(store, root))
    remove(root / "folder-0")
    assert not any(name.startswith("folder-0") for name in files_below(direct(store, root)))
    assert proxy.faults >= 3


def test_a_store_that_is_away_is_waited_for_and_holds_no_partial_file(
    root: Place, proxy: FlakyProxy, store: Store
) -> None:
    # longer than the client's own six seconds of patience
    away = threading.Timer(0.3, proxy.refuse, (8.0,))
    versions = [bytes([i]) * 300_000 for i in range(250)]
    big_versions = [bytes([i]) * (6 * 2**20) for i in range(2)]
    seen = _Watcher(direct(store, root), {*versions, *big_versions})
    started = time.monotonic()
    away.start()
    with seen:
        for i, version in enumerate(versions):
            write_bytes(root / f"{i % 5}", version)
            if i < len(big_versions):
                write_bytes(root / "big", big_versions[i])
            if time.monotonic() > started + 10.0:
                break
    away.join()
    assert seen.looks > 3
    assert contents(root) == contents(direct(store, root))
    assert read_bytes(root / f"{i % 5}") == versions[i]


class _Watcher:
    """Reads all files of a folder again and again: each is one that was written, and whole."""

    def __init__(self, folder: Place, whole: set[bytes]) -> None:
        self.looks = 0
        self._folder, self._whole = folder, whole
        self._partial: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            found = contents(self._folder)
            self._partial += [name for name, content in found.items() if content not in self._whole]
            self.looks += 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        assert self._partial == []


def test_waiting_ends_with_one_line(root: Place, proxy: FlakyProxy) -> None:
    proxy.close()
    with pytest.raises(TransientError, match=r"^s3://bucket/.*/x: cannot be written: ") as caught:
        write_bytes(root._replace(retry_s=0.0) / "x", b"x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("refused", ["?uploads", "partNumber=2", "POST /bucket", "PUT /bucket", ""])
def test_a_large_file_that_is_refused_in_part_is_absent(
    root: Place, proxy: FlakyProxy, store: Store, refused: str
) -> None:
    write_bytes(root / "kept", b"as it was")
    proxy.denied = refused
    for name in ("new", "kept"):
        with pytest.raises(InputError, match="access is denied"):
            write_bytes(root / name, BIG)
    assert contents(direct(store, root)) == {"kept": b"as it was"}


# -- one clear line --


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run ``lltopo`` to its refusal; its only line."""
    sys.argv = ["lltopo", *arguments]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert not any(secret in printed.out + printed.err for secret in SECRETS)
    return line


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    return str(tmp_path / "study.yaml")


def test_a_store_that_may_not_be_entered_is_refused(
    proxy: FlakyProxy,
    study: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    proxy.denied = ""
    line = _refused(["graph", study, "--out", "s3://bucket/x"], capsys)
    assert line == (
        "lltopo: s3://bucket/x/study.yaml: cannot be read: access is denied. Check the credentials "
        "in the environment and what they allow."
    )


def test_a_bucket_that_is_not_there_is_refused(
    proxy: FlakyProxy,
    study: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    line = _refused(["graph", study, "--out", "s3://no-bucket/x"], capsys)
    assert line == (
        "lltopo: s3://no-bucket/x/study.yaml: cannot be written: there is no bucket no-bucket. "
        "Make it, or choose another --out."
    )


# -- a full disk --


def test_a_full_disk_ends_in_one_line_and_no_partial_file(tmp_path: Path, study: str) -> None:
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = [sys.executable, "-c", "from lltopo.cli import main; main()", "train", study]
    command += ["--run", "only", "--out"]

    def run(folder: Path, limit: int, status: int) -> str:
        ended = subprocess.run(
            [*command, str(folder)],
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert ended.returncode == status, ended.stderr
        return ended.stderr

    run(undisturbed, resource.RLIM_INFINITY, 0)
    checkpoint = undisturbed / "checkpoints/run=only/last.pt"
    stderr = run(out, checkpoint.stat().st_size - 1, 1)
    [line] = stderr.splitlines()
    assert line.startswith(f"lltopo: {out}/checkpoints/run=only/last.pt: cannot be written: ")
    assert "Make room" in line
    assert not list(out.rglob("*.partial"))
    tables = sorted(out.rglob("*.parquet"))
    assert len(tables) == 6
    for table in tables:
        assert table.read_bytes() == (undisturbed / table.relative_to(out)).read_bytes() or (
            "metrics" in str(table)  # holds the seconds that it took
        )
    run(out, resource.RLIM_INFINITY, 0)
    for part in undisturbed.rglob("losses/**/*.parquet"):
        assert (out / part.relative_to(undisturbed)).read_bytes() == part.read_bytes()


# -- secrets --


@pytest.mark.cluster
def test_a_study_in_a_store_keeps_the_secrets_of_its_environment(
    root: Place, proxy: FlakyProxy, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.fraction = 0.05
    study = {
        "data": {"source": "digits"},
        "model": {"name": "mlp", "hidden": [16]},
        "training": {"epochs": 2, "lr": 0.1},
        "runs": {"only": {}},
        "resources": {"local_cpus": 2, "object_store_mb": 100},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setenv("LLTOPO_TEST_TOKEN", SECRETS[0] + "-another")
    log = tmp_path / "log"
    with tempfile.TemporaryDirectory(prefix="s3", dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", short)
        process = start(["run", str(tmp_path / "study.yaml"), "--out", str(root)], log)
        ray_files: dict[str, bytes] = {}
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            ray_files |= _files(Path(short))
            time.sleep(1.0)
        assert process.wait(timeout=1) == 0, log.read_text()[-3000:]
    found = contents(direct(store, root))
    assert {"report.html", "series.parquet", "study.yaml"} <= found.keys()
    assert any(name.endswith(".log") for name in ray_files)
    for name, content in [*found.items(), *ray_files.items(), ("log", log.read_bytes())]:
        assert not any(secret.encode() in content for secret in SECRETS), name
    # two epochs and the one before, of two splits; each of two trees
    assert sum(name.startswith("losses/") for name in found) == 6
    assert sum(name.startswith("diagrams/") for name in found) == 12
    assert proxy.faults > 0


def _files(folder: Path) -> Mapping[str, bytes]:
    """The content of a folder's regular files, as far as they stay to be read."""
    content = {}
    # which leaves out a folder that goes while it is read; Path.rglob does not
    for parent, _, names in os.walk(folder):
        for path in (Path(parent) / name for name in names):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    content[str(path)] = path.read_bytes()
    return content
