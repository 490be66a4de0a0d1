"""The commands that work on a cluster from afar: submit, status, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lltopo.options import SetOption, StudyArgument
from lltopo.study_files import read_study

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

commands = typer.Typer()

JobArgument = Annotated[
    str, typer.Argument(help="The job, by the name that lltopo submit has told.", metavar="JOB")
]
AddressOption = Annotated[
    str,
    typer.Option(
        help="The cluster's dashboard. With a token: RAY_AUTH_MODE=token and ~/.ray/auth_token.",
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
    ),
]
_HERE = "http://127.0.0.1:8265"


@commands.command()
def submit(
    study: StudyArgument,
    out: Annotated[
        str, typer.Option(help="URI (s3, gs) or a folder that all nodes share, for all results.")
    ],
    address: AddressOption = _HERE,
    name: Annotated[
        str | None, typer.Option(help="What the job is called. Default: STUDY's name.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Hand on this environment variable; repeatable. WARNING: whoever reaches the "
            "cluster can read its value. Rather give the cluster's nodes a role.",
        ),
    ] = None,
    override: SetOption = None,
) -> None:
    """Run a study on a cluster as a Ray job, and follow it; the exit status is the job's own.

    Ctrl-C leaves the job running. The same command again follows a job that runs, or goes on
    where one has stopped.
    """
    from lltopo.submission import job_client, submission, submitted_job

    wanted = submission(read_study(study, override or ()), out, name or study.stem)
    with job_client(address) as client:
        job, was_running = submitted_job(client, wanted, env or ())
        typer.echo(f"{job}: {'is running already' if was_running else 'submitted'}")
        _follow(client, job, address)


@commands.command()
def status(job: JobArgument, address: AddressOption = _HERE) -> None:
    """Tell what has become of a job."""
    from lltopo.submission import job_client, job_details, job_lines

    with job_client(address) as client:
        for line in job_lines(job, job_details(client, job)):
            typer.echo(line)


@commands.command()
def logs(
    job: JobArgument,
    address: AddressOption = _HERE,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until the job ends, with its exit status.")
    ] = False,
) -> None:
    """Print what a job has printed."""
    from lltopo.submission import job_client, job_log

    with job_client(address) as client:
        if follow:
            _follow(client, job, address)
        typer.echo(job_log(client, job), nl=False)


def _follow(client: JobSubmissionClient, job: str, address: str) -> NoReturn:
    """Print what a job prints until it ends, and end with its exit status."""
    from lltopo.submission import follow_job

    try:
        ended = follow_job(client, job, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        typer.echo(
            f"\nDetached; the job goes on. Follow it again with:\n"
            f"  lltopo logs {job} --follow --address {address}\n"
            f"Stop it with:\n  ray job stop {job} --address {address}"
        )
        raise typer.Exit(130) from None
    raise typer.Exit(ended)
