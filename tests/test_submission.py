"""Ray jobs: what is submitted, followed and found again, with a stub and on a real cluster."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen
from zipfile import ZipFile

import psutil
import pytest
import yaml
from aiohttp import ServerDisconnectedError
from processes import finish, wait_until
from ray._private.ray_constants import RAY_RUNTIME_ENV_DEFAULT_EXCLUDES
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobDetails, JobStatus, JobType
from s3 import BUCKET, SECRETS, s3_environment, s3_store
from tiny import tiny_raw

import lltopo
from lltopo import cli, submission
from lltopo.errors import InputError, TransientError
from lltopo.storage import Place, exists, place, read_bytes
from lltopo.study import Study
from lltopo.study_files import resolved_study
from lltopo.submission import (
    Started,
    exit_status,
    follow_job,
    job_client,
    job_details,
    job_lines,
    job_log,
    plain,
    submitted_job,
)

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MOST_UPLOADED = 2_000_000
"""Bytes of all that a job uploads, before they are packed."""


def details(job: str, status: JobStatus, **more: Any) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION, submission_id=job, status=status, entrypoint="lltopo", **more
    )


class Jobs:
    """A job server that keeps what it is told and has some tails of logs to tell."""

    def __init__(self, *jobs: JobDetails, tails: Sequence[Sequence[str | Exception]] = ()) -> None:
        self.jobs = {str(job.submission_id): job for job in jobs}
        self.tails = [list(tail) for tail in tails]
        self.requests: list[dict[str, Any]] = []
        self.uploaded: dict[str, str] = {}

    def list_jobs(self) -> list[JobDetails]:
        return list(self.jobs.values())

    def get_job_info(self, job: str) -> JobDetails:
        if job not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist.")
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        return f"\x1b[1mlog of\x1b[0m {job}\n"

    def submit_job(self, **request: Any) -> str:
        folder = Path(request["runtime_env"]["working_dir"])
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.uploaded = {str(path.relative_to(folder)): path.read_text() for path in files}
        self.requests.append(request)
        job = str(request["submission_id"])
        if job in self.jobs:
            raise RuntimeError(f"Job with submission_id {job} already exists.")
        self.jobs[job] = details(job, JobStatus.RUNNING, metadata=request["metadata"])
        return job

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for said in self.tails.pop(0):
            if isinstance(said, Exception):
                raise said
            yield said


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return resolved_study(tiny_raw(tmp_path), "tiny")


@pytest.fixture
def wanted(study: Study) -> submission.Submission:
    return submission.submission(study, "s3://bucket/results", "tiny")


# -- what is submitted --


def test_job_runs_the_study_as_resolved(wanted: submission.Submission) -> None:
    jobs = Jobs()
    job, was_running = submitted_job(jobs, wanted)
    assert not was_running
    [request] = jobs.requests
    assert request["submission_id"] == job
    assert re.fullmatch(r"tiny-[0-9a-f]{8}-1", job)
    command = ["python", "-m", "lltopo", "run", "study.yaml", "--out", "s3://bucket/results"]
    assert shlex.split(request["entrypoint"]) == command
    assert [*jobs.uploaded] == ["study.yaml"]
    assert resolved_study(yaml.safe_load(jobs.uploaded["study.yaml"]), "job") == wanted.study
    assert request["runtime_env"]["py_modules"] == [str(ROOT / "lltopo")]


def test_no_secret_is_handed_on_unless_named(
    wanted: submission.Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    jobs = Jobs()
    submitted_job(jobs, wanted)
    assert "hush-hush" not in repr(jobs.requests) + repr(jobs.uploaded)
    assert jobs.requests[0]["runtime_env"]["env_vars"] == {}
    jobs = Jobs()
    submitted_job(jobs, wanted, ["AWS_SECRET_ACCESS_KEY"])
    [request] = jobs.requests
    assert request["runtime_env"]["env_vars"] == {"AWS_SECRET_ACCESS_KEY": "hush-hush"}
    with pytest.raises(InputError, match="--env: NO_SUCH_VARIABLE is not set"):
        submitted_job(Jobs(), wanted, ["NO_SUCH_VARIABLE"])


def test_secret_in_a_uri_is_refused_and_not_repeated(study: Study) -> None:
    with pytest.raises(InputError, match="URI: holds credentials") as caught:
        submission.submission(study, "s3://key:hush-hush@bucket/results", "tiny")
    assert "hush-hush" not in str(caught.value)


def test_folder_for_results_is_made_absolute(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submission.submission(study, "out", "tiny").out == str(tmp_path / "out")
    with pytest.raises(InputError, match="--name: 'a/b' is no safe file name"):
        submission.submission(study, "out", "a/b")


def test_own_modules_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "single.py").write_text("ONE = 1\n")
    (tmp_path / "package" / "__pycache__").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text("TWO = 2\n")
    (tmp_path / "package" / "__pycache__" / "inner.pyc").write_text("")
    (tmp_path / "unnamed.py").write_text("")
    raw = tiny_raw(tmp_path) | {"data": {"python": "single:data"}}
    raw["runs"] = {
        "own": {"model": {"name": "python", "python": "package.inner:network"}},
        "installed": {"model": {"name": "python", "python": "json:loads"}},
    }
    jobs = Jobs()
    submitted_job(jobs, submission.Submission(resolved_study(raw, "tiny"), "s3://b/r", "tiny"))
    assert {*jobs.uploaded} == {
        "study.yaml",
        "single.py",
        "package/__init__.py",
        "package/inner.py",
    }


@pytest.mark.parametrize("ended", [JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED])
def test_submitting_again_goes_on(wanted: submission.Submission, ended: JobStatus) -> None:
    jobs = Jobs(details("tiny-00000000-7", JobStatus.RUNNING))
    first = submitted_job(jobs, wanted).job
    # somebody else's of that name, with another --out, does not matter
    assert first.endswith("-1")
    assert submitted_job(jobs, wanted) == Started(first, True)
    assert len(jobs.requests) == 1
    jobs.jobs[first] = jobs.jobs[first].model_copy(update={"status": ended})
    again = submitted_job(jobs, wanted)
    assert again == Started(first.removesuffix("1") + "2", False)


def test_running_job_of_another_study_is_not_attached_to(wanted: submission.Submission) -> None:
    jobs = Jobs()
    job = submitted_job(jobs, wanted).job
    other = wanted.study.model_copy(update={"runs": {}})
    with pytest.raises(InputError, match=f"{job}: is running with another study"):
        submitted_job(jobs, wanted._replace(study=other))


def test_job_of_another_name_at_the_same_results_is_attached_to(study: Study) -> None:
    jobs = Jobs()
    first = submitted_job(jobs, submission.submission(study, "s3://bucket/results", "tiny")).job
    same = submission.submission(study, "s3://bucket/results/", "other")
    assert submitted_job(jobs, same) == Started(first, True)
    jobs.jobs[first] = jobs.jobs[first].model_copy(update={"status": JobStatus.FAILED})
    again = submitted_job(jobs, same).job
    assert again == "other" + first.removeprefix("tiny").removesuffix("1") + "2"


def test_two_at_once_start_one_job(
    wanted: submission.Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs()
    job = submitted_job(jobs, wanted).job
    monkeypatch.setattr(jobs, "list_jobs", list)  # the other's is not seen as yet
    assert submitted_job(jobs, wanted) == Started(job, True)
    monkeypatch.setattr(jobs, "submit_job", lambda **_: jobs.get_job_info("gone"))
    with pytest.raises(RuntimeError, match="404"):
        submitted_job(jobs, wanted)


def packed(folder: Path, tmp_path: Path, *excludes: str) -> dict[str, int]:
    """What Ray would upload of a folder: the size of each file."""
    archive = tmp_path / f"{folder.name}.zip"
    create_package(str(folder), archive, include_gitignore=True, excludes=list(excludes))
    with ZipFile(archive) as zipped:
        return {info.filename: info.file_size for info in zipped.infolist()}


def test_what_is_uploaded_is_small(tmp_path: Path) -> None:
    project = packed(ROOT, tmp_path, *RAY_RUNTIME_ENV_DEFAULT_EXCLUDES.split(","))
    assert {"lltopo/cli.py", "lltopo/templates/report.html.j2", "jobs/quickstart.yaml"} <= {
        *project
    }
    assert sum(project.values()) < MOST_UPLOADED
    assert not [name for name in project if name.startswith((".", "tests", "jobs/results"))]
    package = packed(Path(lltopo.__file__).parent, tmp_path, *submission._NOT_UPLOADED)
    assert {"cli.py", "templates/report.html.j2"} <= {*package}
    assert sum(package.values()) < MOST_UPLOADED


# -- how it is followed --


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
        (JobStatus.STOPPED, -15, 130),
    ],
)
def test_exit_status_is_the_driver_s(status: JobStatus, code: int | None, expected: int) -> None:
    job = details("a-1", status, driver_exit_code=code)
    assert exit_status(job) == expected
    written: list[str] = []
    assert follow_job(Jobs(job, tails=[["done\n"]]), "a-1", written.append) == expected
    assert written == ["done\n"]


def test_log_is_shown_without_what_steers_a_terminal() -> None:
    coloured = "\x1b[32mgreen\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07 \x1b[2K\rtab\t∞\n"
    assert plain(coloured) == "green link tab\t∞\n"
    assert job_log(Jobs(details("a-1", JobStatus.RUNNING)), "a-1") == "log of a-1\n"


@pytest.mark.parametrize(
    "fault", [RuntimeError("WebSocket closed"), OSError("no route"), ServerDisconnectedError()]
)
def test_broken_connection_is_made_again(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)
    jobs = Jobs(
        details("a-1", JobStatus.RUNNING),
        tails=[["one\n", "two\n", fault], [fault], ["one\ntwo\nth", fault], ["one\ntwo\nthree\n"]],
    )
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if text.endswith("ree\n"):
            jobs.jobs["a-1"] = details("a-1", JobStatus.SUCCEEDED)

    assert follow_job(jobs, "a-1", write) == 0
    assert "".join(written) == "one\ntwo\nthree\n"


def test_cluster_that_answers_no_more_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(submission, "_PATIENCE_SECONDS", 0.05)
    jobs = Jobs(details("a-1", JobStatus.RUNNING), tails=[[OSError("no route")]] * 100)
    with pytest.raises(TransientError, match="not answered for a minute: no route"):
        follow_job(jobs, "a-1", print)


def test_silence_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(submission, "_PATIENCE_SECONDS", 1.0)
    jobs = Jobs(details("a-1", JobStatus.RUNNING))
    tails = iter([0.01, 30, 0.02])

    async def tail(_: str) -> AsyncIterator[str]:
        import asyncio

        yield "one\n"
        seconds = next(tails)
        await asyncio.sleep(seconds)
        if seconds == 0.02:
            jobs.jobs["a-1"] = details("a-1", JobStatus.FAILED, driver_exit_code=2)

    monkeypatch.setattr(jobs, "tail_job_logs", tail)
    written: list[str] = []
    assert follow_job(jobs, "a-1", written.append) == 2
    assert written == ["one\n"]
    assert next(tails, None) is None


def test_job_that_is_not_there_is_told_with_the_nearest() -> None:
    jobs = Jobs(details("tiny-1234-1", JobStatus.RUNNING))
    with pytest.raises(InputError, match=r"tiny-1234-2: is no job.* Did you mean tiny-1234-1\?"):
        job_details(jobs, "tiny-1234-2")
    with pytest.raises(InputError, match="There is none as yet"):
        follow_job(Jobs(), "tiny-1234-2", print)


def test_state_of_a_job() -> None:
    moments = {"start_time": 1_700_000_000_000, "end_time": 1_700_000_060_000}
    job = details("a-1", JobStatus.FAILED, driver_exit_code=2, **moments)
    assert job_lines("a-1", job) == [
        "a-1: failed, exit status 2",
        "started: 2023-11-14 22:13:20 UTC",
        "ended: 2023-11-14 22:14:20 UTC",
        "command: lltopo",
    ]
    assert job_lines("a-1", details("a-1", JobStatus.RUNNING))[0] == "a-1: running"
    lost = details("a-1", JobStatus.FAILED, message="Worker setup failed\nTraceback")
    assert job_lines("a-1", lost)[-1] == "reason: Worker setup failed."


# -- wrong input --

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Runs a command in this process: its exit status, and what it has printed."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lltopo", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    return path


@pytest.fixture
def web_server() -> Iterator[Callable[[int], str]]:
    """Starts a web server that has one answer to everything; its address."""
    servers = []

    def start(status: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"no")

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, args=[0.05]).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_wrong_study_is_told_before_the_cluster_is_asked(
    command: Command, study_file: Path
) -> None:
    nowhere = ["--out", "s3://b/r", "--address", f"http://127.0.0.1:{free_port()}"]
    ended = command("submit", str(study_file), *nowhere, "--set", "training.epoch=3")
    assert ended == (2, "", ended[2])
    assert "epoch: unknown key. Did you mean epochs?" in ended[2]


@pytest.mark.parametrize("arguments", [["status", "a-1"], ["logs", "a-1"], ["logs", "a-1", "-f"]])
def test_nobody_at_the_address(command: Command, arguments: list[str]) -> None:
    if arguments[-1] == "-f":
        arguments[-1] = "--follow"
    address = f"http://127.0.0.1:{free_port()}"
    code, _, error = command(*arguments, "--address", address)
    assert code == 2
    assert f"{address}: no job server of Ray answers" in error
    code, _, error = command(*arguments, "--address", "localhost:8265")
    assert code == 2
    assert "--address: 'localhost:8265' is malformed" in error


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the cluster asks for a token. Set RAY_AUTH_MODE=token"),
        (403, "the cluster takes another token. Set RAY_AUTH_MODE=token"),
        (404, "no job server of Ray answers"),
        (500, "no job server of Ray answers"),
        (200, "no job server of Ray answers"),
    ],
)
def test_somebody_else_at_the_address(
    command: Command, web_server: Callable[[int], str], status: int, said: str
) -> None:
    address = web_server(status)
    code, _, error = command("status", "a-1", "--address", address)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{address}: {said}" in error


def test_address_counts_for_more_than_ray_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, here = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    monkeypatch.setenv("RAY_ADDRESS", elsewhere)
    with pytest.raises(InputError, match=here), job_client(here):
        pass
    assert os.environ["RAY_ADDRESS"] == elsewhere


# -- on a real cluster --

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
