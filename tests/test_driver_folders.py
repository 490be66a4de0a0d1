"""A driver's folders: names short enough for sockets, and none left of a killed driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import DEAD

from lltopo import driver_folders


@pytest.mark.parametrize("n_letters", [1, 6, 11, 16, 30, 90])
def test_sockets_below_the_temporary_folder_have_names_short_enough(
    monkeypatch: pytest.MonkeyPatch, n_letters: int
) -> None:
    usual = "/" + "t" * n_letters
    monkeypatch.setattr(driver_folders.tempfile, "gettempdir", lambda: usual)
    monkeypatch.setattr(driver_folders.os, "getpid", lambda: 4_194_304)  # the largest there is
    folder = driver_folders._short_folder()
    started = f"{folder}/lltopo-ray-4194304-abcdefgh/session_2026-11-25_08-20-26_048150_4194304"
    assert len(f"{started}/sockets/dash_MetricsHead") <= 107
    assert folder == ("/tmp" if n_letters > 10 else usual)


def test_folders_of_killed_drivers_are_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_folders, "_short_folder", lambda: str(tmp_path))
    with driver_folders.temporary_folder() as own:
        for name, mark in (("dead", DEAD), ("elsewhere", "elsewhere-1")):
            (tmp_path / f"lltopo-ray-1-{name}").mkdir()
            (tmp_path / f"lltopo-ray-1-{name}" / "driver").write_text(mark)
        (tmp_path / "lltopo-ray-1-unmarked").mkdir()
        driver_folders.remove_orphaned_folders()
        left = {folder.name for folder in tmp_path.iterdir()}
        assert left == {Path(own).name, "lltopo-ray-1-elsewhere", "lltopo-ray-1-unmarked"}
    assert not Path(own).exists()
