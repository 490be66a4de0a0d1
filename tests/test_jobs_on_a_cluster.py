"""Ray jobs on a real head with a token, their results in a store."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import psutil
import pytest
from processes import finish, free_port, wait_until
from s3 import BUCKET, SECRETS, s3_environment, s3_store

from lltopo.storage import Place, exists, place, read_bytes

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

TINY = {
    "data.train_samples": "200",
    "data.val_samples": "100",
    "graph.k": "5",
    "model": "{name: mlp, hidden: [8]}",
    "training.epochs": "1",
    "training.milestones": "[]",
    "runs": "{only: {training: {lr: 0.05}}}",
    "analysis.verify": "0",
}
"""What makes a study of the README so small that it is done in a moment."""

GATED = """
import time
from pathlib import Path

from torch import nn


class Gated(nn.Sequential):
    '''Stands still in the second epoch's training while there is no file at the gate.'''

    def forward(self, x):
        self.batches += self.training
        while self.batches > 2 and not self.gate.exists():
            time.sleep(0.1)
        return super().forward(x)


def network(input_shape, n_classes, gate):
    model = Gated(nn.Flatten(), nn.Linear(64, n_classes))
    model.batches, model.gate = 0, Path(gate)
    return model
"""


class Cluster(NamedTuple):
    """A cluster of this machine alone, and the environment in which a person would reach it."""

    address: str
    environment: dict[str, str]
    logs: Path


@pytest.fixture(scope="module")
def results() -> Iterator[str]:
    """Where the results of all jobs go: a store that the environment opens, here and there."""
    with s3_store() as store, pytest.MonkeyPatch.context() as patched:
        for name, value in s3_environment(store.port).items():
            patched.setenv(name, value)
        yield f"s3://{BUCKET}/jobs"


def answers(address: str, token: str) -> bool:
    """Say whether a job server is up."""
    time.sleep(0.2)
    asked = Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})
    try:
        with urlopen(asked, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def cluster(results: str) -> Iterator[Cluster]:
    """``ray start --head`` with a token, on a node whose environment opens the store."""
    folder = Path(tempfile.mkdtemp(prefix="lltopo-"))  # pytest's own is too long for its sockets
    dashboard, *ports = (free_port() for _ in range(5))
    address = f"http://127.0.0.1:{dashboard}"
    (folder / "token").write_text("t0ken" * 8)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    start = ["ray", "start", "--head", "--block", f"--temp-dir={folder}", "--disable-usage-stats"]
    start += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    start += [f"--dashboard-port={dashboard}", f"--port={ports[0]}"]
    start += [f"--dashboard-agent-listen-port={ports[1]}", f"--metrics-export-port={ports[2]}"]
    start += [f"--ray-client-server-port={ports[3]}"]
    start += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000"]
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(address, (folder / "token").read_text()), head)
        environment["RAY_API_SERVER_ADDRESS"] = address
        yield Cluster(address, environment, (folder / "session_latest" / "logs").resolve())
    finally:
        family = [psutil.Process(head.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            process.kill()
        psutil.wait_procs(family)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def started(cluster: Cluster, arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """A command of a person's shell in some folder, its output going to the file ``log`` there."""
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            arguments, cwd=folder, env=cluster.environment, stdout=log, stderr=log
        )


def ended(cluster: Cluster, arguments: Sequence[str], folder: Path, status: int = 0) -> str:
    """Run such a command to its end; what it has printed."""
    process = started(cluster, arguments, folder)
    finish(process, folder / "log", status)
    return (folder / "log").read_text()


def follow_up(printed: str, after: str) -> list[str]:
    """The command that stands below a line of a message."""
    return shlex.split(printed.partition(after)[2].split("\n")[1])


def soon_there(target: Place) -> bool:
    """Say whether a file is there, but not so often that the store has nothing else to do."""
    time.sleep(0.5)
    return exists(target)


def overrides(changed: dict[str, str]) -> list[str]:
    return [word for key, value in changed.items() for word in ("--set", f"{key}={value}")]


def losses_of(results: str, epoch: int) -> Place:
    name = f"losses/run=only/split=val/epoch={epoch:05d}/part-0.parquet"
    return place(f"{results}/gated") / name


@pytest.fixture(scope="module")
def readme_job(
    cluster: Cluster, results: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.Popen[bytes], Path]:
    """The README's command at work beside the other tests, and the folder of its log."""
    [line] = re.findall(r"^ray job submit .*-- lltopo run .*$", README.read_text(), re.MULTILINE)
    words = shlex.split(line, comments=True)
    words[words.index("--out") + 1] = f"{results}/readme"
    working_dir = words.index("--working-dir") + 1
    assert words[working_dir] == "."
    words[working_dir] = str(ROOT)
    folder = tmp_path_factory.mktemp("readme")
    return started(cluster, [*words, *overrides(TINY)], folder), folder


@pytest.mark.cluster
@pytest.mark.usefixtures("readme_job")
def test_job_is_left_found_again_stopped_and_resumed(
    cluster: Cluster, results: str, tmp_path: Path
) -> None:
    (tmp_path / "gated.py").write_text(GATED)
    own = f"{{python: 'gated:network', options: {{gate: {tmp_path / 'gate'}}}}}"
    changed = TINY | {"model": own, "training.epochs": "3", "training.batch_size": "100"}
    submit = ["lltopo", "submit", str(ROOT / "jobs/quickstart.yaml"), "--name", "gated"]
    submit += ["--out", f"{results}/gated", *overrides(changed)]

    first = started(cluster, submit, tmp_path)
    wait_until(lambda: soon_there(losses_of(results, 1)), first)
    first.send_signal(signal.SIGINT)
    finish(first, tmp_path / "log", 130)
    printed = (tmp_path / "log").read_text()
    job = printed.partition(":")[0]
    again, stop = (follow_up(printed, line) for line in ("Follow it again with", "Stop it with"))
    assert again[:3] == ["lltopo", "logs", job]
    assert ended(cluster, ["lltopo", "status", job], tmp_path).startswith(f"{job}: running\n")

    second = started(cluster, submit, tmp_path)
    wait_until(lambda: "entrypoint" in (tmp_path / "log").read_text(), second)
    ended(cluster, stop, tmp_path / "..")
    finish(second, tmp_path / "log", 130)
    assert f"{job}: is running already\n" in (tmp_path / "log").read_text()
    made = read_bytes(losses_of(results, 1))
    assert not exists(losses_of(results, 2))

    (tmp_path / "gate").touch()
    printed = ended(cluster, submit, tmp_path)
    assert printed.startswith(f"{job.removesuffix('1')}2: submitted\n")
    assert "report: " in printed
    assert "\x1b" not in printed
    assert exists(losses_of(results, 3))
    assert read_bytes(losses_of(results, 1)) == made
    assert exists(place(f"{results}/gated") / "report.html")


@pytest.mark.cluster
def test_ray_job_submit_as_the_readme_has_it(
    readme_job: tuple[subprocess.Popen[bytes], Path], cluster: Cluster, results: str
) -> None:
    process, folder = readme_job
    finish(process, folder / "log")
    assert exists(place(f"{results}/readme") / "report.html")
    [job] = set(re.findall(r"raysubmit_\w+", (folder / "log").read_text()))
    assert ended(cluster, ["lltopo", "status", job], folder).startswith(f"{job}: succeeded\n")


@pytest.mark.cluster
def test_failing_study_gives_its_own_exit_status(
    cluster: Cluster, results: str, tmp_path: Path
) -> None:
    missing = TINY | {"data": f"{{source: npz, path: {tmp_path / 'missing.npz'}}}"}
    submit = ["lltopo", "submit", str(ROOT / "jobs/quickstart.yaml"), "--out", f"{results}/none"]
    printed = ended(cluster, [*submit, *overrides(missing)], tmp_path, status=2)
    assert f"{tmp_path / 'missing.npz'}: " in printed
    assert "Traceback" not in printed
    job = printed.partition(":")[0]
    assert ended(cluster, ["lltopo", "logs", job], tmp_path) in printed


@pytest.mark.cluster
def test_no_secret_is_in_any_log(cluster: Cluster) -> None:
    logs = [path for path in cluster.logs.rglob("*") if path.is_file()]
    # the jobs above have run, on nodes whose environment holds the store's credentials
    assert sum(path.name.startswith("job-driver-") for path in logs) >= 3
    for path in logs:
        content = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], path
