"""The search with torch against the one with numpy, bit for bit, and against brute force."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from reference import brute_force_neighbours

from lltopo import graph_torch
from lltopo.candidates import centred, n_candidates, row_candidates
from lltopo.errors import InputError
from lltopo.graph_torch import gpu_device, torch_candidates, torch_neighbours
from lltopo.neighbours import exact_neighbours

N = 300 if os.environ.get("NUMBA_DISABLE_JIT", "0") == "0" else 40
RNG = np.random.default_rng(5)
DEVICES = ["cpu", *filter(None, [gpu_device()])]

ROWS = {
    "pixels": RNG.integers(0, 256, (N, 48)).astype(np.uint8),
    "few values": RNG.integers(0, 3, (N, 6)).astype(np.uint8),
    "single precision": RNG.normal(size=(N, 30)).astype(np.float32),
    "far off": RNG.normal(size=(N, 30)) * 1e-3 + 1e6,
    "all scales": RNG.normal(size=(N, 6)) * 10.0 ** RNG.integers(-20, 20, (N, 1)),
    "equal": np.ones((N, 5)),
}


@pytest.fixture(autouse=True, params=[7, 64, None])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(graph_torch, "LARGEST_TILE", request.param)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 9, N - 1])
@pytest.mark.parametrize("name", ROWS)
def test_the_answer_has_the_bits_of_the_search_without_torch(
    name: str, k: int, device: str
) -> None:
    found = torch_neighbours(ROWS[name], k, None, device)
    known = exact_neighbours(ROWS[name], k)
    assert np.array_equal(found.indices, known.indices)
    assert np.array_equal(found.distances, known.distances)
    if ROWS[name].dtype == np.uint8:
        assert np.array_equal(found.indices, brute_force_neighbours(ROWS[name], k))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROWS)
def test_no_bound_exceeds_its_distance_and_none_left_out_is_smaller(name: str, device: str) -> None:
    rows, chosen, width = ROWS[name], range(5, N - 4), n_candidates(N, 4)
    space = centred(rows)
    candidates = torch_candidates(space, chosen, width, device)
    wide = rows.astype(np.float64) / space.scale
    halved = ((wide[chosen.start : chosen.stop, None] - wide) ** 2).sum(axis=2) / 2
    kept = np.take_along_axis(halved, candidates.ids, axis=1)
    assert (candidates.bounds <= kept).all()
    assert (candidates.ids != np.array(chosen)[:, None]).all()
    assert all(len(set(row)) == width for row in candidates.ids.tolist())
    np.put_along_axis(halved, candidates.ids, np.inf, axis=1)
    halved[np.arange(len(chosen)), chosen] = np.inf
    assert np.array_equal(candidates.limit, candidates.bounds.max(axis=1))
    assert (halved.min(axis=1) >= candidates.limit).all()
    # of the same products' bounds, up to what an order of summation may move them by
    known = row_candidates(space, chosen, width)
    scale = np.abs(space.half_norms).max()
    np.testing.assert_allclose(candidates.limit, known.limit, rtol=0, atol=1e-5 * max(scale, 1e-30))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_products_are_float32_ones_whatever_was_set(precision: str) -> None:
    seen = []
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        torch_neighbours(
            ROWS["pixels"],
            3,
            lambda _: seen.append(torch.backends.cuda.matmul.allow_tf32),
            "cpu",
        )
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert not seen[0]


def test_progress_rises_to_one() -> None:
    fractions: list[float] = []
    torch_neighbours(ROWS["pixels"], 3, fractions.append, "cpu")
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_features_that_do_not_fit_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    known = exact_neighbours(ROWS["pixels"], 5)
    monkeypatch.setattr(graph_torch, "_free_bytes", lambda device: ROWS["pixels"].nbytes)
    found = torch_neighbours(ROWS["pixels"], 5, None, DEVICES[-1])
    assert np.array_equal(found.distances, known.distances)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(InputError, match="k: out of range"):
        torch_neighbours(ROWS["pixels"], N, None, "cpu")
