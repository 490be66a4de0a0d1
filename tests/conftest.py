"""What holds for all tests, and the fixtures that several of them share.

A fixture imports what it needs itself, so that the tests of a kernel load neither Ray nor torch.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from commands import Ended
    from pages import Report

    from lltopo.study import Study

# a shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_teardown() -> None:
    from processes import kill_left

    kill_left()


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ended]]:
    """Runs a command in this process; Ray must not be needed to find its input wrong."""
    from commands import Ended

    from lltopo import cli, session, stages

    def no_ray(*_: Any) -> None:
        raise AssertionError("Ray was started")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lltopo", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(caught.value.code or 0), printed.out, printed.err)

    monkeypatch.setattr(session, "study_session", no_ray)
    monkeypatch.setattr(stages, "study_session", no_ray)
    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The file of a tiny study."""
    from tiny import tiny_raw

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_raw(tmp_path)))
    return path


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """What a run sets for its process is put back."""
    import torch

    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def stateful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose every kind of state matters: buffers, dropout, momentum, augmentation."""
    from alone import NETWORK
    from tiny import tiny_raw

    from lltopo.study_files import resolved_study

    (tmp_path / "network_of_a_test.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    raw = tiny_raw(tmp_path)
    raw["model"] = {"python": "network_of_a_test:build"}
    raw["training"] |= {"epochs": 4, "augment": "crop_flip", "milestones": [3], "batch_size": 7}
    return resolved_study(raw, "stateful")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, where only the files and the words matter."""
    from lltopo import report

    monkeypatch.setattr(report, "png_bytes", lambda figure: repr(figure.get_size_inches()).encode())


@pytest.fixture
def small(undrawn: None, tmp_path: Path) -> Report:
    """The report of the smallest study, undrawn."""
    from pages import SMALL, report_of

    return report_of(SMALL, tmp_path)
