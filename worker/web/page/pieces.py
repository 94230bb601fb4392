"""The time of a run in pieces, each of which went to one thing: the line of time and its legend are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from worker.web.views import BatchView

#: The reasons of a sample that are the walk's own work.
WORK = ("work", "lock")
#: Samples with less time between them belong to the same process.
_GAP = timedelta(seconds=1.5)


class Piece(NamedTuple):
    """A piece of time.

    Attributes:
        kind: what the run did: one of the story's kinds, `lock` or `ended`.
        begin: its begin.
        end: its end.
        reason: of a throttle; empty for other kinds.
    """

    kind: str
    begin: datetime
    end: datetime
    reason: str = ""

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.begin).total_seconds()


class _Block(NamedTuple):
    """Samples in a row of which most of the time went to the same thing.

    Attributes:
        begin: the begin of the first sample.
        end: the end of the last one.
        seconds: what the time went to.
    """

    begin: datetime
    end: datetime
    seconds: dict[str, float]


def divide(
    parts: Iterable[tuple[str, datetime, datetime]],
    batches: Sequence[BatchView],
    delays: Sequence[Piece],
    *,
    least: timedelta,
) -> list[Piece]:
    """Return the pieces of a run's time, oldest first. Each moment is in one piece.

    Args:
        parts: what the run did when, by its events.
        batches: the samples of its walks: they divide the time at work.
        delays: times without progress and the present throttle: they are no work.
        least: samples are put together until they have this length.
    """
    blocks = _join(batches, least)
    pieces: list[Piece] = []
    for kind, begin, end in parts:
        if kind != "running":
            pieces.append(Piece(kind, begin, end))
            continue
        free = [(begin, end)]
        for delay in delays:
            first, last = max(begin, delay.begin), min(end, delay.end)
            taken = [(max(first, one), min(last, two)) for one, two in free]
            pieces += [Piece(delay.kind, one, two, delay.reason) for one, two in taken if one < two]
            free = [span for one, two in free for span in ((one, min(two, first)), (max(one, last), two))]
            free = [(one, two) for one, two in free if one < two]
        for one, two in free:
            pieces += _divide_work(one, two, blocks)
    return sorted((piece for piece in pieces if piece.begin < piece.end), key=lambda piece: piece.begin)


def _join(batches: Sequence[BatchView], least: timedelta) -> list[_Block]:
    """Return the samples as blocks, in their order. A sample is of the time that it counts, until it was taken."""
    blocks: list[_Block] = []
    for sample in sorted(batches, key=lambda one: one.at):
        begin = sample.at - timedelta(seconds=sum(sample.seconds.values()))
        last = blocks[-1] if blocks else None
        if last is not None:
            begin = max(last.end, begin)
        if begin >= sample.at:
            continue
        is_same = last is not None and _find_most(last.seconds) == _find_most(sample.seconds)
        if last is not None and is_same and begin - last.end < _GAP and last.end - last.begin < least:
            names = dict.fromkeys([*last.seconds, *sample.seconds])
            sums = {name: last.seconds.get(name, 0.0) + sample.seconds.get(name, 0.0) for name in names}
            blocks[-1] = _Block(last.begin, sample.at, sums)
        else:
            blocks.append(_Block(begin, sample.at, sample.seconds))
    return blocks


def _find_most(seconds: dict[str, float]) -> str:
    most = max(seconds, key=lambda name: seconds[name])
    return "work" if most in WORK else most


def _divide_work(begin: datetime, end: datetime, blocks: Iterable[_Block]) -> list[Piece]:
    """Return the pieces of a time at work: of each block in it, work first, then the waits."""
    pieces: list[Piece] = []
    for block in blocks:
        first, last = max(begin, block.begin), min(end, block.end)
        if first >= last:
            continue
        pieces.append(Piece("running", begin, first))
        length = (last - first) / timedelta(seconds=1)
        known = max(sum(block.seconds.values()), (block.end - block.begin).total_seconds())
        waits = [(name, length * spent / known) for name, spent in block.seconds.items() if name != "work"]
        begin = first + timedelta(seconds=max(0.0, length - sum(spent for _, spent in waits)))
        pieces.append(Piece("running", first, begin))
        for name, spent in waits:
            until = min(last, begin + timedelta(seconds=spent))
            kind, reason = ("lock", "") if name == "lock" else ("throttled", name)
            pieces.append(Piece(kind, begin, until, reason))
            begin = until
        begin = last
    return [*pieces, Piece("running", begin, end)]
