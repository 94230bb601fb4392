"""The line of time of a run, made of its events and of the samples of its batches."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from worker.web.page import plots
from worker.web.page.story import KINDS, Story, tell
from worker.web.views import BatchView, EventView, RunDetail

BEGIN = datetime(2026, 11, 27, 3, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return a time of the story."""
    return BEGIN + timedelta(seconds=seconds)


def event(seconds: float, name: str, **fields: str) -> EventView:
    """Return an event."""
    return EventView(id=f"{seconds}-0", event=name, fields={"at": at(seconds).isoformat(), "worker": "w"} | fields)


def sample(seconds: float, rows: int, attempt: int = 1, **spent: float) -> BatchView:
    """Return a sample."""
    return BatchView(
        step="1", at=at(seconds), attempt=attempt, rows=rows, batches=rows, rows_per_second=None, seconds=spent
    )


def told(events: list[EventView], batches: list[BatchView], end: float = 100, state: str = "succeeded") -> Story:
    """Return the story of a run of some seconds."""
    run = RunDetail(
        id="r",
        job="j",
        state=state,
        created_at=BEGIN,
        finished_at=at(end),
        in_ledger=True,  # type: ignore[arg-type]
    )
    story = tell(run, events, batches)
    assert story is not None
    return story


def spans(story: Story) -> list[tuple[str, float, float]]:
    """Return the spans of a story: kind, begin and end."""
    return [(one.kind, round(one.place), round(one.place + one.width)) for one in story.spans]


def test_story_has_waits_pauses_throttles_and_a_worker_that_died() -> None:
    story = told(
        [
            event(10, "started", attempt="1"),
            event(50, "started", attempt="1"),  # of the worker that took it over, which says nothing of the death
            event(50.1, "resumed", rows="7", takeovers="1"),
            event(60, "paused"),
            event(80, "started", attempt="1"),
            event(100, "succeeded"),
        ],
        [sample(20, 10, work=10), sample(40, 20, work=2, pace=18), sample(90, 30, 2, work=10)],
    )
    assert spans(story) == [
        ("waiting", 0, 10),
        ("running", 10, 20),
        ("throttled", 20, 40),
        ("gone", 40, 50),
        ("running", 50, 60),
        ("paused", 60, 80),
        ("running", 80, 100),
    ]
    assert {name: round(seconds) for name, _, seconds, _ in story.shares} == {
        "worked": 22,
        "throttled: pace": 18,
        "waited in the queue": 10,
        "without a worker": 10,
        "paused": 20,
    }


def test_reasons_of_throttles_are_told_apart_by_letter_pattern_and_legend() -> None:
    reasons = ["pace", "WAL rate", "replication lag", "<script>", "e", "f", "g"]
    samples = [sample(10, 1, work=1)]
    samples += [sample(20 + 10 * at, 2, work=1, **{reason: 9}) for at, reason in enumerate(reasons)]
    story = told([event(0, "started")], samples)
    assert [one.reason for one in story.spans if one.kind == "throttled"] == reasons
    drawn = plots.story(story, KINDS)
    assert re.findall(r"url\(#tone-(\d)\)", drawn) == list("0123455"), "further reasons share the last pattern"
    assert re.findall(r'class="letter"[^>]*>(\w)', drawn) == list("ABCDEFF")
    assert "throttled: &lt;script&gt;" in drawn and "<script>" not in drawn
    lag = next(one for one in story.shares if one.reason == "replication lag")
    assert "#tone-2" in plots.swatch(story, lag) and ">C<" in plots.swatch(story, lag)
    worked = next(one for one in story.shares if one.kind == "running")
    assert "is-running" in plots.swatch(story, worked)


def test_time_between_two_lives_of_a_run_is_no_part_of_its_story() -> None:
    story = told(
        [event(0, "started"), event(20, "dead", error="x"), event(60, "started"), event(80, "succeeded")], [], 80
    )
    assert spans(story) == [("running", 0, 25), ("running", 75, 100)]


def test_story_without_events_knows_when_it_began() -> None:
    run = RunDetail(
        id="r", job="j", state="succeeded", created_at=BEGIN, started_at=at(25), finished_at=at(100), in_ledger=True
    )
    story = tell(run, [], [])
    assert story is not None
    assert spans(story) == [("waiting", 0, 25), ("running", 25, 100)]
    assert tell(RunDetail(id="r", job="j", state="unknown", in_ledger=False), [], []) is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"order": "pace", "by": "web:ada", "targets": '["r"]', "details": '{"rows_per_second": 50}'},
            "Pace set to 50 rows/s by web:ada (r).",
        ),
        ({"order": "pause", "by": "redis-cli", "targets": '["*"]', "details": "{}"}, "Paused by redis-cli (*)."),
        ({"order": "odd", "by": "x", "targets": "no JSON", "details": "[["}, "Odd by x."),
    ],
    ids=["pace", "pause", "hostile"],
)
def test_orders_say_who_gave_them(fields: dict[str, str], text: str) -> None:
    assert told([event(5, "ordered", **fields)], []).moments[0].text == text
