"""Does a store that fails leave its mark on a study?

The study of ``tests/test_faults.py`` (2 runs of 12 epochs, both trees, two orders, the matrix of
distances) is run twice: to a local folder, undisturbed, and to ``s3://``, a real S3 API over HTTP
(moto's server) behind a proxy that answers 5% of all requests with 503 (half of those after the
store has done what it was asked) and refuses all connections for 20 s in mid-run. After each
fault every file in the store that is new or another is read to its end, and all of them at last;
all results must then be the local ones, byte for byte. Then the losses are analyzed once more
from ``s3://`` to ``s3://``.

    python jobs/bench_store.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import ray
import yaml
from pyarrow.fs import FileSelector

import lltopo
from lltopo.data import load_data
from lltopo.storage import Place, files_below, place, read_bytes
from lltopo.study_files import resolved_study

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from flaky_proxy import FlakyProxy, flaky_proxy
from processes import start
from s3 import BUCKET, is_whole, s3_environment, s3_store
from test_faults import STUDY

AWAY_SECONDS = 20.0
PATIENCE = 1800.0
FAULTY_FRACTION = 0.05
SAME = ("losses/", "diagrams/", "graph/", "series.", "correlations.", "contours.", "distances.")
"""Files that must be the same; others hold times of day or how long something took."""


class Inspector:
    """Reads every file in the store after each fault, and takes the store away once."""

    def __init__(self, out: Place, proxy: FlakyProxy) -> None:
        self.inspections = self.read = 0
        self.partial: set[str] = set()
        self.away_s = 0.0
        self._out, self._proxy = out, proxy
        self._versions: dict[str, object] = {}
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._inspect, self._take_away)]

    def _inspect(self) -> None:
        seen = -1
        while not self._ended.wait(0.05):
            if self._proxy.faults != seen:
                seen = self._proxy.faults
                self.inspections += 1
                self.inspect()

    def inspect(self) -> None:
        """Read to its end every file that is not the one that was read before."""
        filesystem, path, _ = self._out
        selector = FileSelector(path, recursive=True, allow_not_found=True)
        for info in filesystem.get_file_info(selector):
            name, version = info.path.removeprefix(f"{path}/"), (info.size, info.mtime)
            if not info.is_file or self._versions.get(name) == version:
                continue
            self._versions[name] = version
            self.read += 1
            if not is_whole(name, read_bytes(self._out / name)):
                self.partial.add(name)

    def _take_away(self) -> None:
        while not all(self._n_epochs(run) >= 3 for run in STUDY["runs"]):
            if self._ended.wait(0.2):
                return
        before = time.monotonic()
        self._proxy.refuse(AWAY_SECONDS)
        self.away_s = time.monotonic() - before

    def _n_epochs(self, run: str) -> int:
        return len(files_below(self._out / f"metrics/run={run}"))

    def __enter__(self) -> Inspector:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def run(arguments: Sequence[str], log: Path) -> float:
    """Run ``lltopo`` to its end; the seconds that it took."""
    before = time.perf_counter()
    process = start(arguments, log)
    try:
        assert process.wait(timeout=PATIENCE) == 0, log.read_text()[-4000:]
    finally:
        process.terminate()
        process.wait()
    return time.perf_counter() - before


def different(local: Place, stored: Place, prefixes: Sequence[str]) -> list[str]:
    """The files of some folders that are not the same in both places."""
    ours, theirs = (
        {name for name in files_below(folder) if name.startswith(tuple(prefixes))}
        for folder in (local, stored)
    )
    unequal = {n for n in ours & theirs if read_bytes(local / n) != read_bytes(stored / n)}
    return sorted(unequal | (ours ^ theirs))


def write_features(folder: Path) -> list[str]:
    """Write what the graphs are made of; the options that name it."""
    options = []
    data = load_data(resolved_study(STUDY, "bench_store").data)
    for split in ("train", "val"):
        np.save(folder / f"{split}.npy", data.split(split).x)
        options += ["--features", f"{split}={folder}/{split}.npy"]
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, s3_store() as store:
        study, log = Path(scratch) / "study.yaml", Path(scratch) / "log"
        study.write_text(yaml.safe_dump(STUDY))
        local = place(Path(scratch) / "local")
        local_s = run(["run", str(study), "--out", local.path], log)
        with flaky_proxy(store.port, FAULTY_FRACTION) as proxy:
            os.environ |= s3_environment(proxy.port)
            out = f"s3://{BUCKET}/study"
            direct = place(f"{out}?endpoint_override=127.0.0.1:{store.port}&scheme=http")
            with Inspector(direct, proxy) as inspector:
                stored_s = run(["run", str(study), "--out", out], log)
            # all of them once more
            last = Inspector(direct, proxy)
            last.inspect()
            requests, faults = dict(proxy.requests), proxy.faults
            losses = ["--losses", f"{out}/losses", *write_features(Path(scratch))]
            settings = ["--set", f"analysis={json.dumps(STUDY['analysis'])}"]
            settings += ["--set", f"graph.k={STUDY['graph']['k']}"]
            again = ["analyze", *losses, *settings, "--out", f"s3://{BUCKET}/again"]
            again_s = run(again, log)
        # the same losses on the same graph
        reanalyzed = different(direct / "diagrams", direct.parent / "again/diagrams", ("run",))
        wrong = {
            "partial": sorted(inspector.partial | last.partial),
            "different": different(local, direct, SAME),
            "analyzed_again": reanalyzed,
        }
        n_files = len(files_below(direct))
    assert not any(wrong.values()), wrong
    assert inspector.away_s >= AWAY_SECONDS, "the study had ended before its store went away"
    figures = {
        "local_s": local_s,
        "stored_s": stored_s,
        "analyzed_from_store_s": again_s,
        "away_s": inspector.away_s,
        "requests": requests,
        "faults_503": faults,
        "inspections": inspector.inspections,
        "files_read_in_them": inspector.read,
        "partial_files": 0,
        "different_files": 0,
        "files": n_files,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (lltopo, ray, pyarrow)},
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
