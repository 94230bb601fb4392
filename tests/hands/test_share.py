"""The part of a walk over ranges that is done: it does not jump when a range ends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from worker.ledger.records import WalkState

BEGUN = WalkState(True, True, True, ranges=32, done=0, failed=0, hands=4, rows=0, rows_of_done=0, batches=0, error=None)


@pytest.mark.parametrize("seed", range(10))
def test_the_share_of_ranges_follows_their_rows(seed: int) -> None:
    dice = random.Random(seed)
    sizes = [dice.randint(900, 1_100) for _ in range(32)]
    done, rows, before = [0] * 32, 0, 0.0
    while rows < sum(sizes):
        at = dice.choice([number for number in range(32) if done[number] < sizes[number]][:4])
        step = min(100, sizes[at] - done[at])
        done[at], rows = done[at] + step, rows + step
        ended = [size for number, size in enumerate(sizes) if done[number] == size]
        hands = min(4, 32 - len(ended))
        state = replace(BEGUN, done=len(ended), hands=hands, rows=rows, rows_of_done=sum(ended))
        assert state.share is not None
        assert len(ended) / 32 <= state.share <= 1
        if ended:
            assert state.share == pytest.approx(rows / sum(sizes), abs=0.06)
            assert not before or state.share - before < 0.03
            before = state.share
    assert state.share == 1


def test_the_share_is_unknown_without_ranges_and_that_of_whole_ranges_if_these_have_no_rows() -> None:
    assert replace(BEGUN, ranges=0).share is None
    assert BEGUN.share == 0
    assert replace(BEGUN, done=8).share == 0.25
