"""The command line: parsing, progress, exit status (0 done, 2 wrong input, 1 other failures)."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from lltopo.errors import InputError, StorageError, TransientError, VerificationError
from lltopo.job_commands import commands as job_commands
from lltopo.options import SetOption, StudyArgument
from lltopo.plan_command import commands as plan_commands
from lltopo.progress import shown_progress
from lltopo.sections import SPLITS
from lltopo.storage import Place, place
from lltopo.study import Study
from lltopo.study_files import read_study, resolved_study, with_section

app = typer.Typer(
    help="Topological analysis of neural-network loss landscapes, sample by sample.\n\n"
    "A study (one YAML file) names the data, the runs to train and what to compute of them. "
    "Everything is written below one folder and is resumed from there: the same command again "
    "goes on where it stopped.\n\n"
    "Start with: lltopo run jobs/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

OutOption = Annotated[
    str | None,
    typer.Option(
        "--out", help="Folder or URI (file, s3, gs) for all results. Default: results/STUDY's name."
    ),
]

_MADE = {
    "graph": "graph",
    "train": "losses",
    "analyze": "series.parquet",
    "surface": "surfaces",
    "jump": "jump",
    "report": "report.html",
}
"""The stages in their order, and what each makes."""


@app.command()
def run(study: StudyArgument, out: OutOption = None, override: SetOption = None) -> None:
    """Everything the study asks for, resuming whatever is done."""
    wanted = read_study(study, override or ())
    optional = {"surface": wanted.surface, "jump": wanted.jump}
    stages = [stage for stage in _MADE if optional.get(stage, stage) is not None]
    _carry_out(wanted, _out(out, study), stages)


@app.command()
def train(
    study: StudyArgument,
    run: Annotated[
        str | None, typer.Option(help="Only this run, without Ray, and pack its loss tables.")
    ] = None,
    until_epoch: Annotated[
        int | None, typer.Option(help="Stop after this epoch (with --run).", min=0)
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            "--for", help="Stop at a whole epoch within this time, such as 9m (with --run)."
        ),
    ] = None,
    out: OutOption = None,
    override: SetOption = None,
) -> None:
    """Train the study's runs side by side and record the loss of every sample.

    With --run one of them alone, in this process, on any machine with torch; the same command
    later goes on from the last checkpoint.
    """
    wanted = read_study(study, override or ())
    if run is None:
        for option, value in (("--until-epoch", until_epoch), ("--for", within)):
            if value is not None:
                raise InputError(f"{option}: has no use without --run. Name a run.")
        _carry_out(wanted, _out(out, study), ("train",))
        return
    from lltopo.session import Session
    from lltopo.slices import Limits, train_slice

    target, console = _patient(_out(out, study), wanted), Console()
    limits = Limits(until_epoch, math.inf if within is None else _seconds(within))
    with _interruptible(console), shown_progress(console) as notify:
        packs = train_slice(Session(wanted, target, notify), run, limits)
    for pack in packs:
        console.print(f"packed: {pack}", markup=False, soft_wrap=True)


@app.command()
def unpack(
    study: StudyArgument,
    packed: Annotated[str, typer.Argument(help="A folder of packs.", metavar="PACKED")],
    out: OutOption = None,
    override: SetOption = None,
) -> None:
    """Write the loss tables that lltopo train --run has packed, to be analyzed here."""
    from lltopo.opening import open_results
    from lltopo.packs import unpack as unpacked_epochs

    wanted, console = read_study(study, override or ()), Console()
    target = _patient(_out(out, study), wanted)
    open_results(wanted, target)
    with _interruptible(console), shown_progress(console) as notify:
        epochs = unpacked_epochs(wanted, place(packed), target, notify)
    console.print(f"unpacked: {len(epochs)} epochs into {target / 'losses'}", soft_wrap=True)


@app.command()
def graph(study: StudyArgument, out: OutOption = None, override: SetOption = None) -> None:
    """Build the k-nearest-neighbour graph of both splits."""
    _carry_out(read_study(study, override or ()), _out(out, study), ("graph",))


@app.command()
def surface(study: StudyArgument, out: OutOption = None, override: SetOption = None) -> None:
    """Losses on planes through trained weights, along filter-normalised random directions."""
    wanted = with_section(read_study(study, override or ()), "surface")
    _carry_out(wanted, _out(out, study), ("surface",))


@app.command()
def jump(study: StudyArgument, out: OutOption = None, override: SetOption = None) -> None:
    """Jump away from trained weights, train again from there, and embed the trajectories."""
    wanted = with_section(read_study(study, override or ()), "jump")
    _carry_out(wanted, _out(out, study), ("jump",))


@app.command()
def report(study: StudyArgument, out: OutOption = None, override: SetOption = None) -> None:
    """Draw the figures and write report.html from the tables that are there."""
    _carry_out(read_study(study, override or ()), _out(out, study), ("report",))


@app.command()
def analyze(
    study: Annotated[
        Path | None, typer.Argument(help="The study, unless --losses are given.", metavar="STUDY")
    ] = None,
    losses: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[RUN:]SPLIT=FILE.npy",
            help="Somebody else's losses, (epochs, samples) a file, repeatable; or a folder.",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT=FILE.npy", help="The samples' features, (samples, d)."),
    ] = None,
    first_epoch: Annotated[
        int | None, typer.Option(help="The epoch of a file's first row. Default: 1.", min=0)
    ] = None,
    out: OutOption = None,
    override: SetOption = None,
) -> None:
    """Diagrams, distances, series and report, of a study's losses or of somebody else's.

    lltopo analyze --losses train=a.npy --losses val=b.npy --features train=x.npy
    --features val=y.npy --out results/mine
    """
    if (study is None) == (losses is None):
        raise InputError(
            "analyze: needs either a STUDY or --losses: expected one of them. See analyze --help."
        )
    for option, value in (("--features", features or None), ("--first-epoch", first_epoch)):
        if study is not None and value is not None:
            raise InputError(f"{option}: has no use without --losses. Name it in the study.")
    stages = ("analyze", "report")
    if study is not None:
        _carry_out(read_study(study, override or ()), _out(out, study), stages)
        return
    if out is None:
        raise InputError("--out: is missing. Say where the results should go.")
    raw: dict[str, Any] = {
        "data": {
            "source": "losses",
            "losses": _given_losses(losses or []),
            "features": _given_features(features or []),
            "first_epoch": 1 if first_epoch is None else first_epoch,
        }
    }
    _carry_out(resolved_study(raw, "analyze", override or ()), place(out), stages)


app.add_typer(plan_commands)
app.add_typer(job_commands)


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # said of every study on few cores, and read by Ray as soon as it is imported
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    try:
        status = app(standalone_mode=False)
    except InputError as error:
        _refuse(str(error))
    except (VerificationError, StorageError, TransientError) as error:
        print("lltopo:", error, file=sys.stderr)
        sys.exit(1)
    except typer.TyperException as error:
        _refuse(error.format_message() and f"{error.format_message()} See lltopo --help.")
    sys.exit(status)


def _refuse(complaint: str) -> NoReturn:
    """End the process for a wrong study, option or input, with one line that says what is wrong."""
    if complaint:
        print("lltopo:", " ".join(complaint.split()), file=sys.stderr)
    sys.exit(2)


def _carry_out(study: Study, out: Place, stages: Sequence[str]) -> None:
    from lltopo.session import Session
    from lltopo.stages import run_stages

    console = Console()
    with _interruptible(console), shown_progress(console) as notify:
        problems = run_stages(Session(study, _patient(out, study), notify), stages)
    for problem in problems:
        console.print(f"failed: {problem}", markup=False, soft_wrap=True)
    _print_summary(console, out, stages)
    if problems:
        raise typer.Exit(1)


@contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    """Tell at Ctrl-C how to go on, and end with the status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["lltopo", *sys.argv[1:]])
        console.print(
            f"Interrupted. What is done is kept; go on with:\n  {command}", soft_wrap=True
        )
        raise typer.Exit(130) from None


def _seconds(text: str) -> float:
    """The seconds of a duration such as 540, 90s, 9m or 1h30m."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    if not found or not text:
        raise InputError(f"--for: {text!r} is no duration: expected one such as 90s, 9m or 1h30m.")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def _print_summary(console: Console, out: Place, stages: Sequence[str]) -> None:
    for stage in stages:
        console.print(f"{stage + ':':9} {out / _MADE[stage]}", markup=False, soft_wrap=True)


def _out(out: str | None, study: Path) -> Place:
    return place(out or Path("results") / study.stem)


def _patient(out: Place, study: Study) -> Place:
    """The place, where a store that is away is waited for as long as the study says."""
    return out._replace(retry_s=study.storage.retry_s)


def _given_losses(given: Sequence[str]) -> str | dict[str, dict[str, str]]:
    if len(given) == 1 and _is_folder(given[0]):
        return given[0]
    losses: dict[str, dict[str, str]] = {}
    for text in given:
        name, _, file = text.partition("=")
        run, _, split = name.rpartition(":")
        _check_split(split, "--losses", text)
        if not file or split in losses.get(run or "run", {}):
            raise InputError(
                f"--losses: {text!r} is malformed or given twice: expected [RUN:]SPLIT=FILE.npy."
            )
        losses.setdefault(run or "run", {})[split] = file
    return losses


def _is_folder(text: str) -> bool:
    """Say whether ``--losses`` names a folder or URI, whose path may hold a '=', and no split."""
    before, equals, _ = text.partition("=")
    return not equals or "://" in before or Path(text).expanduser().is_dir()


def _given_features(given: Sequence[str]) -> dict[str, str]:
    features = {}
    for text in given:
        split, _, file = text.partition("=")
        _check_split(split, "--features", text)
        features[split] = file
    return features


def _check_split(split: str, option: str, text: str) -> None:
    if split not in SPLITS:
        raise InputError(
            f"{option}: {text!r} names no split: expected train or val before '=', got {split!r}."
        )
