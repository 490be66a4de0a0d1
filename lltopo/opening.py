"""The folder of results, opened for one study and refused to any other."""

from __future__ import annotations

import socket

from lltopo.errors import InputError
from lltopo.ingestion import losses_folder
from lltopo.storage import Place, exists, read_bytes, write_bytes
from lltopo.study import Study, changed_keys
from lltopo.study_data import LossesData
from lltopo.study_files import parsed_study, study_yaml


def check_opened(out: Place) -> None:
    """Raise an InputError where this node does not see the folder that the driver has opened."""
    if not exists(out / "study.yaml"):
        raise InputError(
            f"{out}: is not seen from the node {socket.gethostname()}: expected a folder that all "
            "nodes share. Give such a one, or a store's URI, as --out."
        )


def open_results(study: Study, out: Place) -> None:
    """Claim a folder for a study, or find it claimed by the same one.

    A claim holds as soon as there are losses or diagrams: before, nothing is there that another
    study would spoil (a graph says how it was made), and a wrong study may be mended.

    Raises
    ------
    InputError
        Where another study, or nobody known, made the results there; names the keys that differ.
    """
    target = out / "study.yaml"
    content = study_yaml(study).encode()
    before = read_bytes(target) if exists(target) else None
    made = [name for name in ("losses", "diagrams") if exists(out / name)]
    given = isinstance(study.data, LossesData) and isinstance(study.data.losses, str)
    # a LossRecorder's folder may be analyzed where it lies
    in_place = given and made == ["losses"] and losses_folder(study, out) == out / "losses"
    if before is None and made and not in_place:
        raise InputError(
            f"{out}: holds {made[0]} of no known study: there is no study.yaml beside them. "
            "Choose another --out."
        )
    if before is not None and made:
        changed = changed_keys(parsed_study(before, str(target)), study)
        if changed:
            raise InputError(
                f"{target}: the results there were made by another study: {'; '.join(changed)}. "
                "Choose another --out, or set these back."
            )
    if before != content:
        write_bytes(target, content)
