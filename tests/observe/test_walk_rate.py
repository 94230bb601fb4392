"""The rate of a run and the time that is left, over whole walks whose rows, keys, batches and hands are known."""

from __future__ import annotations

import random

import pytest

from worker.observe.walk_rate import WalkRate


class Walked:
    """A walk of several hands with one pace, as the run reports it: a batch of its own, or the rows of others."""

    def __init__(self, pace: float, hands: int, size: int, seed: int) -> None:
        dice = random.Random(seed)
        self.rate = WalkRate()
        self.rate.begin(0.0, 0)
        wait = size * hands / pace
        #: When each batch ends, and of which hand it is: each hand waits for its part of the pace behind its batch.
        self.ends = sorted(
            (dice.uniform(0, 0.5) + number * wait + dice.uniform(0, 0.2), hand)
            for hand in range(hands)
            for number in range(round(400 / wait))
        )
        self.hands, self.size, self.wait = hands, size, wait

    def play(self, total: int) -> list[tuple[float, int, float, float | None]]:
        """Return time, rows, rate and time left after each report."""
        shown, rows, held = [], 0, self.wait
        for at, hand in self.ends:
            rows += self.size
            own = self.size if hand == 0 else 0
            self.rate.note(at, rows, min(1.0, rows / total), hands=self.hands, batch_rows=own)
            held = at + self.wait if hand == 0 else held
            self.rate.hold(max(at, held))
            shown.append((at, rows, self.rate.rate, self.rate.seconds_left))
        return shown


@pytest.mark.parametrize(
    ("pace", "hands", "size"), [(260, 4, 500), (67, 3, 250), (60, 2, 1200), (60, 1, 100), (210, 1, 250)]
)
@pytest.mark.parametrize("seed", range(5))
def test_the_rate_is_that_of_all_hands_over_the_last_seconds(pace: float, hands: int, size: int, seed: int) -> None:
    """A rate of one hand, of a moment, or with a wait too many is outside of these bounds."""
    shown = Walked(pace, hands, size, seed).play(total=10**6)
    for at, _, rate, left in shown:
        if at > 60:
            assert 0.75 * pace < rate < 1.3 * pace
            assert left is not None
    late = [rate for at, _, rate, _ in shown if at > 60]
    assert sum(late) / len(late) == pytest.approx(pace, rel=0.1)


@pytest.mark.parametrize("size", [1, 100, 700])
def test_a_pace_is_the_rate_from_the_first_batch_on(size: int) -> None:
    rate, at = WalkRate(), 0.0
    rate.begin(at, 0)
    for number in range(1, 40):
        at += 0.01
        rate.note(at, number * size, None, batch_rows=size)
        rate.hold(at + size / 70)
        assert rate.rate == pytest.approx(70, rel=0.45 if size == 1 else 0.02)
        at += size / 70


def test_a_later_attempt_tells_the_time_left_from_its_second_batch_on() -> None:
    rate = WalkRate()
    rate.begin(0.0, 5_000)
    rate.note(1.0, 5_100, 0.51, batch_rows=100)
    rate.note(2.0, 5_200, 0.52, batch_rows=100)
    assert rate.seconds_left == pytest.approx(48)


def test_the_rows_of_earlier_attempts_of_a_shared_walk_are_no_rate() -> None:
    """They are known with the first look at its ranges, and not when the attempt begins."""
    rate = WalkRate()
    rate.begin(0.0, 0)
    rate.note(0.1, 90_000, 0.5, hands=2)
    assert (rate.rate, rate.seconds_left) == (0.0, None)
    for second in range(1, 20):
        rate.note(float(second), 90_000 + 100 * second, 0.5 + 0.001 * second, hands=2, batch_rows=50)
        assert rate.rate == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize(("before", "after"), [(260, 100), (100, 260)])
def test_the_time_left_follows_another_pace_within_seconds(before: int, after: int) -> None:
    rate, rows, total = WalkRate(), 0, 100_000
    rate.begin(0.0, 0)
    for second in range(1, 150):
        pace = before if second <= 120 else after
        rows += pace
        rate.note(float(second), rows, rows / total, batch_rows=pace)
        if second > 132:
            assert rate.seconds_left == pytest.approx((total - rows) / after, rel=0.25)


def test_a_lower_pace_is_shown_while_the_walk_waits_for_it() -> None:
    rate = WalkRate()
    rate.begin(0.0, 0)
    for second in range(60):
        rate.note(second, 100 * second, None, batch_rows=100)
    rate.hold(59 + 1_000)
    assert rate.rate < 2


def clumped(rows: int, total: int) -> float:
    """Return the position of a key: half of the rows have keys in a hundredth of the line, in a clump at its begin."""
    part = rows / total
    return part / 50 if part < 0.5 else 0.01 + (part - 0.5) * 1.98


def test_the_time_left_is_right_or_not_shown_where_keys_are_clumped() -> None:
    """The rows for a part of the line change by a factor of a hundred: the time cannot be told at the change."""
    rate, total = WalkRate(), 100_000
    rate.begin(0.0, 0)
    shown = []
    for number in range(1, 1_000):
        rate.note(number * 1.0, number * 100, clumped(number * 100, total), batch_rows=100)
        if number == 560:
            assert rate.seconds_left is None
        if rate.seconds_left is not None and number > 600:
            shown.append(rate.seconds_left / (1_000 - number))
    assert all(0.5 < one < 2 for one in shown)


@pytest.mark.parametrize("seed", range(5))
def test_the_time_left_does_not_jump(seed: int) -> None:
    """Batches are uneven, and rows are spread unevenly over the keys, but not clumped."""
    dice, rate, total, rows, at, share = random.Random(seed), WalkRate(), 120_000, 0, 0.0, 0.0
    rate.begin(at, rows)
    before: float | None = None
    for _ in range(1_199):
        at += dice.choice((0.2, 0.8))
        rows += 100
        share += 100 / total * dice.uniform(0.6, 1.4)
        rate.note(at, rows, min(share, 0.9999), batch_rows=100)
        if at > 60 and rows < 0.9 * total:
            left = rate.seconds_left
            assert left == pytest.approx((total - rows) / 200, rel=0.25)
            assert before is None or left == pytest.approx(before, rel=0.1)
            before = left


def test_no_time_is_left_to_tell_of_a_walk_with_more_rows_than_estimated() -> None:
    rate = WalkRate()
    rate.begin(0.0, 0)
    for second in range(1, 100):
        rate.note(second, 100 * second, min(1.0, second / 50), batch_rows=100)
    assert rate.seconds_left is None
