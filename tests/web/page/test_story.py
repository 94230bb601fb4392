"""The line of time of a run, made of its events and of the samples of its batches."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.web.attempts import Attempt, Life, find_life, list_attempts, list_row_runs
from worker.web.page import plots
from worker.web.page.story import KINDS, Story, tell
from worker.web.views import BatchView, EventView, RunDetail

BEGIN = datetime(2026, 11, 27, 3, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return a time of the story."""
    return BEGIN + timedelta(seconds=seconds)


def event(when: float, name: str, **fields: str) -> EventView:
    """Return an event."""
    return EventView(
        id=f"{when}-0", event=name, fields={"event": name, "at": at(when).isoformat(), "worker": "w"} | fields
    )


def sample(seconds: float, rows: int, attempt: int = 1, **spent: float) -> BatchView:
    """Return a sample."""
    return BatchView(
        step="1", at=at(seconds), attempt=attempt, rows=rows, batches=rows, rows_per_second=None, seconds=spent
    )


def told(
    events: list[EventView],
    batches: list[BatchView],
    end: float = 100,
    state: str = "succeeded",
    **present: Any,
) -> Story:
    """Return the story of a run of some seconds."""
    run = RunDetail(
        id="r",
        job="j",
        state=state,  # type: ignore[arg-type]
        created_at=BEGIN,
        finished_at=at(end),  # for a run that has not ended, this is now
        in_ledger=True,
        **present,
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
        ("running", 10, 22),
        ("throttled", 22, 40),
        ("gone", 40, 50),
        ("running", 50, 60),
        ("paused", 60, 80),
        ("running", 80, 100),
    ]
    assert {name: round(seconds) for name, _, seconds, _ in story.shares} == {
        "worked": 42,
        "throttled: pace": 18,
        "waited in the queue": 10,
        "without a worker": 10,
        "paused": 20,
    }


def test_present_throttle_is_shown_while_it_lasts() -> None:
    present = {"throttled": "replication lag 9 s", "throttled_by": "replication lag", "throttled_since": at(60)}
    story = told([event(0, "started")], [sample(20, 1, work=20)], state="running", **present)
    assert spans(story) == [("running", 0, 60), ("throttled", 60, 100)]
    assert (story.reasons, story.spans[-1].reason) == (["replication lag"], "replication lag")
    assert {one.name: one.seconds for one in story.shares} == {"worked": 60, "throttled: replication lag": 40}
    # A pace waits after each batch: since the last sample it has gone on as before.
    batches = [sample(20, 1, work=20), sample(80, 2, work=1, pace=59)]
    present = {"throttled": "5 rows/s at most", "throttled_by": "pace", "throttled_since": at(99)}
    story = told([event(0, "started")], batches, state="running", **present)
    assert spans(story) == [("running", 0, 21), ("throttled", 21, 100)]


def test_time_without_progress_is_no_work() -> None:
    stalled = event(50, "stalled", seconds="20")
    story = told([event(0, "started"), stalled], [sample(20, 1, work=20)], state="running", stalled_since=at(30))
    assert spans(story) == [("running", 0, 30), ("stalled", 30, 100)]
    assert {one.name: one.seconds for one in story.shares} == {"worked": 30, "made no progress": 70}
    story = told([event(0, "started"), stalled], [sample(20, 1, work=20), sample(60, 2, work=10, lock=30)])
    assert spans(story) == [("running", 0, 30), ("stalled", 30, 60), ("running", 60, 100)]
    assert {one.name: one.seconds for one in story.shares} == {
        "worked": 62.5,
        "made no progress": 30,
        "waited for locks": 7.5,
    }


def test_run_that_waits_is_shown_as_paused_since_the_order() -> None:
    pauses = [{"name": "j", "at": at(40), "by": "web:ada"}, {"name": "*", "at": at(70), "by": "web:ada"}]
    held: dict[str, Any] = {"state": "waiting", "paused_by": ["j", "*"], "pauses": pauses}
    assert spans(told([], [], **held)) == [("waiting", 0, 40), ("paused", 40, 100)]
    order = event(40, "ordered", order="pause", by="web:ada", targets='["j"]')
    assert spans(told([order], [], state="waiting")) == [("waiting", 0, 100)], "it was resumed by hand"
    early = [{"name": "j", "at": at(-40)}]  # the job was paused before the run was enqueued
    assert spans(told([], [], state="paused", paused_by=["j"], pauses=early)) == [("paused", 0, 100)]
    unknown: dict[str, Any] = {"paused_by": ["j"], "pauses": [{"name": "j"}], "updated_at": at(90)}
    story = told([], [], state="waiting", **unknown)
    assert spans(story) == [("waiting", 0, 90), ("paused", 90, 100)], "Redis does not know the order any more"


def test_run_that_was_enqueued_again_waits() -> None:
    again = event(60, "ordered", order="dead_letters_retry", by="web:ada", targets='["r"]')
    story = told([event(0, "started"), event(20, "dead", error="x"), again], [], state="waiting")
    assert spans(story) == [("running", 0, 20), ("waiting", 60, 100)]
    assert story.moments[-1].text == "Enqueued again by web:ada (r)."


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


def drawn_of(story: Story) -> dict[tuple[str, str], float]:
    """Return the seconds of the line of time by kind and reason."""
    found: dict[tuple[str, str], float] = {}
    for one in story.spans:
        seconds = one.width / 100 * (story.ended - story.begun).total_seconds()
        found[one.kind, one.reason] = found.get((one.kind, one.reason), 0.0) + seconds
    return found


@pytest.mark.parametrize("count", [3, 400, 3000])
def test_legend_adds_up_to_the_line_which_is_drawn_from_it(count: int) -> None:
    events = [event(0, "started"), event(20, "retry"), event(22, "started"), event(30, "dead"), event(60, "started")]
    step = 10 / count  # a throttle in each sample, and another one at times
    batches = [sample(0.059, 1, work=0.059)]
    batches += [
        sample(2 + step * n, n, work=0.6 * step, pace=0.3 * step, **{"WAL rate" if n % 9 else "lock": 0.1 * step})
        for n in range(1, count)
    ]
    story = told([*events, event(61, "stalled", seconds="1"), event(80, "succeeded")], batches, 80)
    shares = {(one.name, one.kind, one.reason): one.seconds for one in story.shares}
    assert sum(shares.values()) == pytest.approx(80, abs=0.1)
    drawn = drawn_of(story)
    assert sum(drawn.values()) == pytest.approx(50)
    for kind, reason in drawn:
        told_of = sum(seconds for (_, one, why), seconds in shares.items() if (one, why) == (kind, reason))
        assert drawn[kind, reason] == pytest.approx(told_of, abs=0.2)
    assert shares["had ended, before it was run again", "ended", ""] == pytest.approx(30)
    assert shares["throttled: pace", "throttled", "pace"] == pytest.approx(0.3 * step * (count - 1))
    assert len(story.spans) <= 150


def test_a_short_attempt_is_no_line_without_time() -> None:
    events = [event(0, "started"), event(0.352, "retry"), event(0.4, "started"), event(0.758, "dead")]
    story = told(events, [sample(0.1, 1, work=0.059)], 0.758)
    assert {one.name: round(one.seconds, 3) for one in story.shares} == {"worked": 0.71, "waited in the queue": 0.048}
    again = [event(0, "started"), event(0.01, "dead"), event(147, "started"), event(147.01, "dead")]
    assert [one.name for one in told(again, [], 147.01).shares] == ["had ended, before it was run again"]


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


def test_attempts_of_all_the_times_that_a_run_was_run_are_together() -> None:
    events = [
        event(0, "started"),
        event(5, "paused"),
        event(8, "started", worker="v"),  # the attempt continues: this is no other one
        event(20, "retry", error="first"),
        event(30, "started"),
        event(40, "dead", error="second"),
        event(60, "ordered", order="dead_letters_retry", by="web:ada", targets='["r"]'),
        event(61, "started"),
        event(65, "retry", error="third"),
        event(67, "started"),
        event(70, "started", worker="v"),  # of the worker that took it over
        event(70, "resumed", rows="7"),
    ]
    found = list_attempts(one.fields for one in events)
    assert found == [
        Attempt(1, "v", at(0), at(20), "failed", "first"),
        Attempt(2, "w", at(30), at(40), "dead", "second"),
        Attempt(1, "w", at(61), at(65), "failed", "third", reruns=1, by="web:ada"),
        Attempt(2, "w", at(67), at(70), "lost", reruns=1),
        Attempt(3, "v", at(70), reruns=1),
    ]
    assert [one.is_again for one in found] == [False, False, True, False, False], "a retry is no run again"
    texts = [one.text for one in told(events, []).moments if one.text.startswith("Attempt")]
    assert [one.removeprefix("Attempt ").partition(" began")[0] for one in texts] == [
        *("1", "", "2", "1 since it was run again", "2 since it was run again", "3 since it was run again"),
    ]


def test_a_run_began_when_it_was_last_run_again() -> None:
    names = ("started", "retry", "started", "dead", "started", "retry", "started")
    attempts = list_attempts(event(10 * when, name).fields for when, name in enumerate(names))
    known: dict[str, Any] = {"created_at": at(1), "has_ended": False}
    assert find_life(attempts, **known) == Life(at(40), 2)
    assert find_life(attempts[:2], **known | {"has_ended": True}) == Life(at(0), 2)
    assert find_life(attempts[:2], **known) == Life(None, 0), "it waits for its first attempt since"
    assert find_life([], **known, attempt=3) == Life(at(1), 3), "its events are gone"
    late = list_attempts([event(50, "started", attempt="4").fields])
    assert find_life(late, **known) == Life(at(1), 4), "its older events are gone"


def test_runs_that_process_its_rows_in_quarantine_are_known_by_the_order() -> None:
    order = {"order": "quarantine_retry", "by": "x", "targets": '["r"]'}
    events = [event(1, "ordered", details='{"runs": ["a", 7]}', **order), event(2, "ordered", details="[[", **order)]
    assert list_row_runs([*events, event(3, "ordered", details='{"runs": ["b"]}', **order)]) == ["b", "a"]


def test_marks_that_would_cover_each_other_on_a_narrow_page_have_a_line_only() -> None:
    drawn = plots.story(
        told([event(0, "started"), event(3, "paused"), event(20, "started"), event(21, "retry")], []), KINDS
    )
    found = re.findall(r'class="mark is-(\w+)( is-close)?"', drawn)
    assert found == [("running", ""), ("paused", " is-close"), ("dead", "")]
