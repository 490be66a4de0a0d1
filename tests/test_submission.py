"""Ray jobs: what is submitted, and how it is followed, with a stub of the job server."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from aiohttp import ServerDisconnectedError
from ray._private.ray_constants import RAY_RUNTIME_ENV_DEFAULT_EXCLUDES
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobDetails, JobStatus, JobType
from tiny import tiny_raw

import lltopo
from lltopo import submission
from lltopo.errors import InputError, TransientError
from lltopo.study import Study
from lltopo.study_files import resolved_study
from lltopo.submission import (
    Started,
    exit_status,
    follow_job,
    job_details,
    job_lines,
    job_log,
    plain,
    submitted_job,
)

ROOT = Path(__file__).parent.parent
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
    # a checkout may have the package's own name
    archive = tmp_path / f"{len(list(tmp_path.iterdir()))}.zip"
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
