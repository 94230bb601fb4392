"""The output of the templates' filters: hostile texts, numbers, times and commands."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from worker.web.page.overview import describe_span, list_notices
from worker.web.page.sentences import list_more
from worker.web.page.text import (
    ago,
    clip,
    command,
    compact,
    counted,
    duration,
    finalize,
    number,
    percent,
    prose,
    rough,
    show,
)
from worker.web.run_reads import describe_mirror
from worker.web.views import LimitView, OverviewView, QueueView, WorkerView


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nof two lines", "plain\ttext\nof two lines"),
        ("Zürich 東京 אב", "Zürich 東京 אב"),
        ("\x1b[31mred\x1b[0m\r", "\\x1b[31mred\\x1b[0m\\x0d"),
        ("a\u202egnp.exe\u2066b", "a\\u202egnp.exe\\u2066b"),
        ("pay\u200bpal\u00ad\u2028", "pay\\u200bpal\\xad\\u2028"),
        ("\ud800 \U000e0041 \ue000", "\\ud800 \\U000e0041 \\ue000"),
        ("e" + "\u0301" * 50, "e" + "\u0301" * 4),
    ],
    ids=["plain", "letters", "ansi", "bidi", "hidden", "surrogate", "marks"],
)
def test_show_makes_visible_what_hides_in_a_text(text: str, shown: str) -> None:
    assert show(text) == shown
    assert finalize(text) == shown


def test_command_is_read_by_a_shell_as_it_was_meant() -> None:
    words = ("a b", "it's", "$(id)", "x\u202ey", "z\x1b[0m", "`w`", "-rf", "Zürich")
    line = command("printf", "%s\\n", *words)
    assert line == show(line), "nothing hides in it"
    printed = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout.decode()
    assert printed.splitlines() == list(words)


def test_what_stands_in_backticks_is_code() -> None:
    assert prose("`a<b>` takes ``x``, `\u202e` and a ` alone") == (
        "<code>a&lt;b&gt;</code> takes <code>x</code>, <code>\\u202e</code> and a ` alone"
    )


def test_one_of_something_has_the_words_for_one() -> None:
    assert [counted(value, "run waits", "runs wait") for value in (0, 1, 2, 12_345, None)] == [
        *("0 runs wait", "1 run waits", "2 runs wait", "12,345 runs wait", "– runs wait"),
    ]


def test_notices_of_one_run_have_no_plural() -> None:
    queue = QueueView(name="q", waiting=1, deferred=0, running=0, oldest_due_at=None, is_paused=False)
    limit = LimitView(
        **dict.fromkeys(LimitView.model_fields) | {"name": "j", "concurrency": 1, "running": 1, "held": 1}  # type: ignore[arg-type]
    )
    about = dict.fromkeys(("max_jobs", "done", "pid", "host", "code", "started_at", "seen_at"))
    worker = WorkerView(**about | {"name": "w", "state": "draining", "queue": "q", "jobs": ["r"]})  # type: ignore[arg-type]
    overview = OverviewView(
        at=datetime.now(UTC), queues=[queue], workers=[worker], runs=[], dead_letters=0, paused=[], cancelled=[]
    )
    assert [one.text for one in list_notices(overview, [limit])] == [
        *("1 run waits, and no worker takes it", "1 run waits: at most 1 at once, 1 running", "ends after its 1 run"),
    ]


def test_a_run_without_a_loop_says_how_much_of_its_timeout_it_has_used() -> None:
    assert describe_span(4.2, 300.0) == "4 of 300 s until its timeout"
    assert describe_span(65.0, 7_200.0) == "1 min 5 s of 2 h until its timeout"


def test_only_a_walk_that_has_ended_has_all_its_percents() -> None:
    for state, share in (("running", 99.9), ("paused", 99.9), ("succeeded", 100.0)):
        assert describe_mirror({"state": state, "percent": "100.0"})["percent"] == share
    assert describe_mirror({"state": "running", "percent": "40.5"})["percent"] == 40.5
    assert describe_mirror({"state": "running"})["percent"] is None


def test_figures_have_few_digits() -> None:
    assert [number(value) for value in (None, 0, 3.25, 12.4, 1234567)] == ["–", "0", "3.2", "12", "1,234,567"]
    assert [compact(value) for value in (999, 9_999, 12_345, 234_567, 1_500_000)] == [
        "999",
        "9,999",
        "12.3k",
        "235k",
        "1.5M",
    ]
    assert [percent(value) for value in (None, 0.04, 99.99, 100)] == ["–", "0.0 %", "99.9 %", "100.0 %"]
    assert [duration(value) for value in (0.0, 0.02, 3.21, 59.6, 3_725, 90_000)] == [
        "under 1 ms",
        "20 ms",
        "3.2 s",
        "1 min",
        "1 h 2 min",
        "1 d 1 h",
    ]
    assert [rough(value) for value in (None, 0.2, 59, 2_438, 8_640, 50_000, 300_000)] == [
        "–",
        "1 s",
        "59 s",
        "41 min",
        "2.4 h",
        "14 h",
        "3.5 d",
    ]
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    moments = (timedelta(0), timedelta(seconds=-59), timedelta(minutes=-61), timedelta(hours=50))
    assert [ago(now + one, now) for one in moments] == ["now", "59 s ago", "1 h ago", "in 2 d"]
    assert clip("x" * 5000, 10) == "xxxxxxxxxx … (5,000 characters; the API has all of them)"


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        (
            {"order": "pace", "targets": '["a", "b"]', "details": '{"rows_per_second": 57}'},
            [("order", "pace"), ("targets", "a, b"), ("rows_per_second", "57")],
        ),
        ({"event": "dead", "run": "r", "error": '["no list"]'}, [("error", '["no list"]')]),
        ({"targets": "[" * 9_000, "details": "{}"}, [("targets", "[" * 9_000)]),
        ({"targets": '["a', "details": '"text"'}, [("targets", '["a'), ("details", '"text"')]),
        ({"details": '{"rows_per_second": null}'}, [("rows_per_second", "none")]),
    ],
    ids=["order", "another field", "too deep", "no json", "null"],
)
def test_fields_of_an_event_are_shown_without_json(fields: dict[str, str], shown: list[tuple[str, str]]) -> None:
    assert list_more(fields) == shown
