"""The order in which blocks of vertices are compared."""

from __future__ import annotations

from itertools import groupby

import pytest

from lltopo.candidates import _pairs


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 8, 13])
def test_every_pair_of_blocks_comes_once_and_no_block_twice_a_round(n_blocks: int) -> None:
    pairs = list(_pairs(n_blocks))
    assert sorted(pairs) == [(a, b) for a in range(n_blocks) for b in range(a, n_blocks)]
    rounds = [[*group] for _, group in groupby(pairs, key=lambda pair: sum(pair) % n_blocks)]
    assert len(rounds) == n_blocks
    for pairs_at_once in rounds:
        blocks = [block for pair in pairs_at_once for block in {*pair}]
        assert len(blocks) == len({*blocks})
