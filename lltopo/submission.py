"""A study as a Ray job: submitted to a cluster's address, followed, and found again.

The job is lltopo's own command line on the cluster. What is uploaded is small: the study as
resolved here, the modules of its own functions, and this very package, so that the cluster runs
the code that was read. A job's name comes from its study and ``--out``, and the results say what
is done: to submit again is to go on, and a job that still works on an ``--out`` is attached to,
never started twice. (Ray's Jobs API; https://docs.ray.io/en/latest/cluster/running-applications/job-submission)
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lltopo
from lltopo.errors import InputError, TransientError
from lltopo.sections import nearest
from lltopo.storage import check_no_credentials, safe_name
from lltopo.study import Study
from lltopo.study_data import PythonData
from lltopo.study_files import study_yaml
from lltopo.study_models import PythonModel

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_STUDY = "lltopo_study"
"""The key of a job's metadata that says which study it runs."""

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0
_OVERRULING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_NOT_UPLOADED = ["__pycache__"]


class Submission(NamedTuple):
    """What a job does: a study, where its results go, and what it is called."""

    study: Study
    out: str
    name: str


class Started(NamedTuple):
    """A job of a cluster, and whether it was running before it was asked for."""

    job: str
    was_running: bool


def submission(study: Study, out: str, name: str) -> Submission:
    """Return a submission whose ``out`` means the same on every machine.

    Parameters
    ----------
    study
        As resolved: its paths are absolute, and are those of the cluster's nodes.
    out
        A URI, or a folder that all nodes share; a relative one is relative to the working folder.
    name
        What the job's name starts with: a safe file name.

    Raises
    ------
    InputError
        For an unsafe name, or a URI that holds credentials: a job's command can be read by all
        who reach the cluster.
    """
    safe_name(name, "--name")
    if "://" not in out:
        return Submission(study, str(Path(out).expanduser().absolute()), name)
    check_no_credentials(out)
    return Submission(study, out.rstrip("/"), name)


@contextmanager
def job_client(address: str) -> Iterator[JobSubmissionClient]:
    """A client of a cluster's job server, whose faults are told in a line.

    Parameters
    ----------
    address
        That of the dashboard, such as http://127.0.0.1:8265.

    Raises
    ------
    InputError
        For an address that is malformed, does not answer or is not Ray's, and for a missing or
        wrong token.
    """
    from ray.exceptions import AuthenticationError

    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"--address: {address!r} is malformed: expected the dashboard's, such as "
            "http://127.0.0.1:8265."
        )
    try:
        yield _connected(address)
    except AuthenticationError as error:
        fault = "asks for a" if "required" in str(error) else "takes another"
        raise InputError(
            f"{address}: the cluster {fault} token. Set RAY_AUTH_MODE=token, and put the cluster's "
            "token into ~/.ray/auth_token or RAY_AUTH_TOKEN."
        ) from error
    except BrokenPipeError:
        raise  # whoever reads what is printed has gone
    except OSError as error:
        # requests' own are among them
        raise InputError(
            f"{address}: no job server of Ray answers: {_first_line(str(error))} Check --address, "
            "and that the cluster is up and its dashboard forwarded (ray dashboard cluster.yaml)."
        ) from error


def submitted_job(
    client: JobSubmissionClient, wanted: Submission, forwarded: Sequence[str] = ()
) -> Started:
    """Start a job, or find the one that is at it already.

    Parameters
    ----------
    client
        Of `job_client`.
    wanted
        Of `submission`.
    forwarded
        Names of environment variables to hand on. Whoever reaches the cluster can read their
        values in the job's description.

    Raises
    ------
    InputError
        Where another study is running with the same ``out``, and for a variable that is not set.
    """
    environment = {name: _variable(name) for name in forwarded}
    earlier = _attempts(client, wanted.out)
    for _, details in earlier:
        if not details.status.is_terminal():
            return Started(_attached(wanted, str(details.submission_id), details), True)
    attempt = 1 + max((number for number, _ in earlier), default=0)
    job = f"{wanted.name}-{_digest(wanted.out)}-{attempt}"
    with tempfile.TemporaryDirectory(prefix="lltopo-") as folder:
        _write_working_folder(Path(folder), wanted.study)
        try:
            client.submit_job(
                entrypoint=_entrypoint(wanted),
                submission_id=job,
                metadata={_STUDY: _study_digest(wanted.study)},
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(Path(lltopo.__file__).parent)],
                    "excludes": _NOT_UPLOADED,
                    "env_vars": environment,
                },
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            # somebody else has just submitted the same, and Ray takes a name once
            return Started(_attached(wanted, job, job_details(client, job)), True)
    return Started(job, False)


def job_details(client: JobSubmissionClient, job: str) -> JobDetails:
    """Return what the cluster knows of a job; InputError where it knows none of that name."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        known = [str(details.submission_id) for details in client.list_jobs()]
        advice = nearest(job, known) if known else "There is none as yet."
        raise InputError(f"{job}: is no job of this cluster. {advice}") from error


def job_log(client: JobSubmissionClient, job: str) -> str:
    """Return what a job has printed so far; InputError where there is no such job."""
    job_details(client, job)
    return plain(client.get_job_logs(job))


def follow_job(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> int:
    """Hand on what a job prints, from its start until it ends; return its exit status.

    A connection that breaks is made again, and what was handed on is not handed on twice.

    Raises
    ------
    InputError
        Where there is no such job.
    TransientError
        Where the cluster does not answer for a minute; the job may well go on.
    """
    details, n_written, heard = job_details(client, job), 0, time.monotonic()
    while True:
        try:
            for chunk in _tail(client, job, n_written):
                write(plain(chunk))
                n_written += len(chunk)
                heard = time.monotonic()
            details = client.get_job_info(job)
            heard = time.monotonic()
        except BrokenPipeError:
            raise  # whoever reads what is written has gone
        except (OSError, RuntimeError) as error:
            if time.monotonic() - heard > _PATIENCE_SECONDS:
                raise TransientError(
                    f"{job}: the cluster has not answered for a minute: "
                    f"{_first_line(str(error))} The job may well go on."
                ) from error
        if details.status.is_terminal():
            return exit_status(details)
        time.sleep(_POLL_SECONDS)


def exit_status(details: JobDetails) -> int:
    """Return the exit status of a job that has ended: its driver's own, as a shell shows it.

    130 where it was stopped, and 1 where its driver never ran.
    """
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return 130
    code = details.driver_exit_code or 1
    return code if code > 0 else 128 - code


def job_lines(job: str, details: JobDetails) -> list[str]:
    """Return what became of a job as lines of text: state, times, command."""
    state = str(details.status).lower()
    if details.status == "FAILED":
        state += f", exit status {exit_status(details)}"
    lines = [f"{job}: {state}"]
    for word, moment in (("started", details.start_time), ("ended", details.end_time)):
        if moment:
            when = datetime.fromtimestamp(moment / 1000, UTC)
            lines.append(f"{word}: {when:%Y-%m-%d %H:%M:%S} UTC")
    lines.append(f"command: {plain(details.entrypoint)}")
    if details.status == "FAILED" and details.driver_exit_code is None:
        # the driver never ran: no log says why
        lines.append(f"reason: {plain(_first_line(details.message or 'unknown'))}")
    return lines


def plain(text: str) -> str:
    """Return text without colours and whatever else would steer a terminal."""
    return _ESCAPES.sub("", text)


def _tail(client: JobSubmissionClient, job: str, n_written: int) -> Iterator[str]:
    """What a job prints, but for its first characters, until it ends or has long said nothing."""
    tail, seen = client.tail_job_logs(job), 0
    with asyncio.Runner() as runner:
        # where a network drops packets without a word, silence is all that is to be heard of it
        while chunk := runner.run(_next(tail)):
            new = chunk[max(0, n_written - seen) :]
            seen += len(chunk)
            if new:
                yield new


async def _next(tail: AsyncIterator[str]) -> str:
    from aiohttp import ClientError

    try:
        return await asyncio.wait_for(anext(tail, ""), _PATIENCE_SECONDS)
    except TimeoutError:
        return ""
    except ClientError as error:
        raise ConnectionError(str(error)) from error


def _digest(out: str) -> str:
    return hashlib.sha256(out.encode()).hexdigest()[:8]


def _attempts(client: JobSubmissionClient, out: str) -> list[tuple[int, JobDetails]]:
    """The jobs that have worked on these results, with the number at their names' end."""
    named = re.compile(rf".+-{_digest(out)}-(\d+)")
    found = ((named.fullmatch(job.submission_id or ""), job) for job in client.list_jobs())
    return [(int(match[1]), job) for match, job in found if match]


def _attached(wanted: Submission, job: str, details: JobDetails) -> str:
    if (details.metadata or {}).get(_STUDY) != _study_digest(wanted.study):
        raise InputError(
            f"{job}: is running with another study: expected this one, whose results would go to "
            f"the same --out. Stop it (ray job stop {job}), or choose another --out."
        )
    return job


def _study_digest(study: Study) -> str:
    return hashlib.sha256(study_yaml(study).encode()).hexdigest()


def _entrypoint(wanted: Submission) -> str:
    return shlex.join(["python", "-m", "lltopo", "run", "study.yaml", "--out", wanted.out])


def _write_working_folder(folder: Path, study: Study) -> None:
    """Write what the job needs beside the package: the study, and the modules that it names.

    Those that are not in the working folder are taken to be installed on the cluster.
    """
    (folder / "study.yaml").write_text(study_yaml(study))
    for module in _named_modules(study):
        if Path(module).is_dir():
            shutil.copytree(module, folder / module, ignore=shutil.ignore_patterns(*_NOT_UPLOADED))
        elif Path(f"{module}.py").is_file():
            shutil.copy(f"{module}.py", folder)


def _named_modules(study: Study) -> set[str]:
    """The top-level modules of one's own functions."""
    sections = (study.data, *(run.model for run in study.runs.values()))
    own = (section for section in sections if isinstance(section, PythonData | PythonModel))
    return {section.python.partition(":")[0].partition(".")[0] for section in own}


def _variable(name: str) -> str:
    if name not in os.environ:
        raise InputError(f"--env: {name} is not set here: expected a variable. Export it first.")
    return os.environ[name]


def _connected(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    for logger in _TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
    # to Ray they count for more than the address that it is given
    taken = {name: os.environ.pop(name) for name in _OVERRULING if name in os.environ}
    try:
        return JobSubmissionClient(address)
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error  # a web server, but none of Ray's
    finally:
        os.environ.update(taken)


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0].rstrip(".") + "."
