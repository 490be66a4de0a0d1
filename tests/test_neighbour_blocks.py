"""The search in blocks against the one in one process, bit for bit; what is kept, and where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import brute_force_neighbours

from lltopo import graphs, neighbour_blocks
from lltopo.candidates import search_work
from lltopo.errors import InputError
from lltopo.fanout import Call, Need, Outcome
from lltopo.graph_files import graph_file, made_graph, read_graph
from lltopo.graph_torch import torch_neighbours
from lltopo.neighbour_blocks import block_neighbours, row_blocks
from lltopo.neighbours import Neighbours, exact_neighbours
from lltopo.session import study_session
from lltopo.storage import Place, files_below, place
from lltopo.study_files import resolved_study

N = 1500 if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0" else 60
K = 6
RNG = np.random.default_rng(6)
ROWS = {
    "pixels": RNG.integers(0, 256, (N, 12)).astype(np.uint8),
    "few values": RNG.integers(0, 3, (N, 5)).astype(np.float32),
    "real numbers": RNG.normal(size=(N, 12)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """About seven blocks."""
    monkeypatch.setattr(neighbour_blocks, "TASK_WORK", search_work(N, N, 12) / 7)
    monkeypatch.setattr(neighbour_blocks, "FEWEST_ROWS", 1)


class Here:
    """A cluster of this process: what its tasks were, and which of them fail."""

    def __init__(self, n_gpus: float = 0.0) -> None:
        self.n_gpus = n_gpus
        self.done: list[range] = []
        self.needs: list[Need] = []
        self.failing: set[int] = set()

    def fan_out(
        self, function: Callable[..., Any], batches: Iterator[Sequence[Call]], need: Need
    ) -> Iterator[Outcome]:
        self.needs.append(need)
        for call in (call for batch in batches for call in batch):
            if call.key.start in self.failing:
                yield Outcome(call.key, None, "OSError: lost")
                continue
            self.done.append(call.key)
            yield Outcome(call.key, function(*call.arguments), None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    cluster = Here()
    monkeypatch.setattr(neighbour_blocks, "fan_out", cluster.fan_out)
    monkeypatch.setattr(neighbour_blocks, "shared", lambda value: value)
    monkeypatch.setattr(
        neighbour_blocks, "cluster_total", lambda what: cluster.n_gpus if what == "GPU" else 2.0
    )
    return cluster


def test_blocks_cover_every_row_once() -> None:
    for n, d, work in ((10, 3, 1e9), (1000, 3, 1e6), (4097, 1, search_work(100, 4097, 1))):
        blocks = row_blocks(n, d, work)
        assert [v for block in blocks for v in block] == list(range(n))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
        assert all(search_work(len(block) - 1, n, d) <= work for block in blocks)


@pytest.mark.parametrize("name", ROWS)
def test_blocks_have_the_bits_of_one_process(name: str, here: Here, tmp_path: Path) -> None:
    found = block_neighbours(ROWS[name], K, None, place(tmp_path))
    known = exact_neighbours(ROWS[name], K)
    assert len(here.done) >= 7
    assert np.array_equal(found.indices, known.indices)
    assert np.array_equal(found.distances, known.distances)
    if name != "real numbers":
        assert np.array_equal(found.indices, brute_force_neighbours(ROWS[name], K))


def test_blocks_that_are_done_are_not_done_again(here: Here, tmp_path: Path) -> None:
    rows, parts = ROWS["few values"], place(tmp_path)
    here.failing = {0}
    with pytest.raises(RuntimeError, match=r"^neighbours of range\(0, \d+\): OSError: lost"):
        block_neighbours(rows, K, None, parts)
    n_done = len(here.done)
    assert len(files_below(parts)) == n_done >= 6
    here.failing = set()
    damaged = tmp_path / files_below(parts)[-1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    fractions: list[float] = []
    found = block_neighbours(rows, K, fractions.append, parts)
    assert len(here.done) == n_done + 2
    assert fractions == pytest.approx([n_done / (n_done + 1), 1.0])
    assert np.array_equal(found.indices, exact_neighbours(rows, K).indices)
    # other features and another k are other work
    changed = rows.copy()
    changed[-1, -1] += 1
    block_neighbours(changed, K, None, parts)
    block_neighbours(rows, K - 1, None, parts)
    assert len(here.done) == 3 * (n_done + 1) + 1


def test_on_a_cluster_with_gpus_a_task_has_one(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour_blocks, "GPU_TASK_WORK", neighbour_blocks.TASK_WORK * 2)
    on_device = neighbour_blocks.searched_block
    devices = []

    def on_cpu(*arguments: Any) -> Any:
        devices.append(arguments[-1])
        return on_device(*arguments[:-1], "cpu")  # what torch does there it does here

    monkeypatch.setattr(neighbour_blocks, "searched_block", on_cpu)
    here.n_gpus = 2.0
    found = block_neighbours(ROWS["real numbers"], K, None, place(tmp_path))
    assert np.array_equal(found.distances, exact_neighbours(ROWS["real numbers"], K).distances)
    assert here.needs == [Need(gpus=1)]
    assert set(devices) == {"cuda"}
    assert 4 <= len(devices) < 7
    block_neighbours(ROWS["real numbers"], K, None, place(tmp_path / "cpu"), "cpu")
    assert here.needs[1:] == [Need()]


def test_wrong_features_are_refused(here: Here, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="k: out of range"):
        block_neighbours(ROWS["pixels"], N, None, place(tmp_path))


# -- the graph of a study --


@pytest.fixture
def given(tmp_path: Path) -> tuple[Any, Place, np.ndarray]:
    """A study of given losses, where its results go, and its features."""
    np.save(tmp_path / "x.npy", ROWS["pixels"])
    np.save(tmp_path / "losses.npy", RNG.exponential(size=(2, N)))
    data = {
        "source": "losses",
        "losses": {"mine": {"train": str(tmp_path / "losses.npy")}},
        "features": {"train": str(tmp_path / "x.npy")},
    }
    study = resolved_study(
        {"data": data, "graph": {"k": K}, "resources": {"local_cpus": 2}}, "given"
    )
    return study, place(tmp_path / "out"), ROWS["pixels"]


def written(study: Any, out: Place) -> bytes:
    graphs.write_new_graph(study, out, "train", None, lambda *_: None)
    assert files_below(out) == ["graph/train.npz"]  # and no blocks
    return Path(graph_file(out, "train").path).read_bytes()


def test_little_is_searched_here(given: Any, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out, rows = given
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    written(study, out)
    assert here.done == []
    made = read_graph(graph_file(out, "train"))
    assert made is not None
    assert made.digest == made_graph(rows, K, "exact", {}).digest


def test_a_gpu_changes_no_byte(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out, _ = given
    before = written(study, out)
    monkeypatch.setattr(graphs, "LITTLE_WORK", 0.0)
    monkeypatch.setattr("lltopo.graph_torch.gpu_device", lambda: "cpu")
    searched = []

    def search(features: Any, k: int, progress: Any, device: str) -> Neighbours:
        searched.append(device)
        return torch_neighbours(features, k, progress, device)

    monkeypatch.setattr("lltopo.graph_torch.torch_neighbours", search)
    assert written(study, out) == before
    assert searched == ["cpu"]
    spared = study.resources.model_copy(update={"device": "cpu"})
    assert written(study.model_copy(update={"resources": spared}), out) == before
    assert searched == ["cpu"]


def test_a_cluster_changes_no_byte(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out, _ = given
    before = written(study, out)
    monkeypatch.setattr(graphs, "LITTLE_WORK", 0.0)
    monkeypatch.setattr("lltopo.graph_torch.gpu_device", lambda: None)
    assert written(study, out) == before
    blocks = []

    def search(features: Any, k: int, progress: Any, parts: Place, device: str) -> Neighbours:
        found = block_neighbours(features, k, progress, parts, device)
        blocks.extend(files_below(parts))
        return found

    monkeypatch.setattr(neighbour_blocks, "block_neighbours", search)
    with study_session(study):
        assert written(study, out) == before
    assert len(blocks) >= 7
