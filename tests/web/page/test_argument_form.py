"""Fields for dates and times: the browser shows them in UTC, and the job gets the ISO form that the API takes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from typing import Any

import pytest
from pydantic import AwareDatetime, NaiveDatetime

from worker import JobContext, job
from worker.web.page.argument_form import PREFIX, fill, make_fields, read_arguments
from worker.web.page.form import Form

NOON = datetime(2027, 1, 31, 12, tzinfo=UTC)


@job
async def dated(
    ctx: JobContext,
    begin: datetime,
    aware: AwareDatetime | None = None,
    local: NaiveDatetime | None = None,
    noon: datetime = NOON,
    naive: datetime = datetime(2027, 1, 31, 12),
    exact: datetime = datetime(2027, 1, 31, 12, 0, 0, 7, UTC),
    day: date = date(2027, 1, 31),
    at: time = time(4, 30),
) -> None:
    """Take dates and times."""


def shown(sent: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of a form, and its problems."""
    fields = make_fields(dated.codec.make_schema())
    return read_arguments(fill(fields, Form([(PREFIX + name, text) for name, text in sent.items()])))


def test_fields_of_times_fit_what_a_browser_shows() -> None:
    fields = {one.name: (one.kind, one.text, one.has_zone) for one in make_fields(dated.codec.make_schema())}
    assert fields == {
        "begin": ("moment", "", True),
        "aware": ("moment", "", True),
        "local": ("moment", "", False),
        "noon": ("moment", "2027-01-31T12:00", True),
        "naive": ("moment", "2027-01-31T12:00", False),
        "exact": ("text", "2027-01-31T12:00:00.000007Z", False),
        "day": ("date", "2027-01-31", False),
        "at": ("time", "04:30", False),
    }
    hints = {one.name: one.hint for one in make_fields(dated.codec.make_schema())}
    assert (hints["begin"], hints["local"]) == ("in UTC", "without a time zone")


@pytest.mark.parametrize(
    ("sent", "arguments"),
    [
        ({"begin": "2027-02-01T08:15"}, {"begin": "2027-02-01T08:15Z"}),
        ({"begin": "2027-02-01T08:15:30"}, {"begin": "2027-02-01T08:15:30Z"}),
        ({"begin": "2027-02-01T08:15+02:00"}, {"begin": "2027-02-01T08:15+02:00"}),
        ({"local": "2027-02-01T08:15", "at": "05:00:00"}, {"local": "2027-02-01T08:15", "at": "05:00"}),
        ({"noon": "2027-01-31T12:00:00", "naive": "2027-01-31T12:00", "at": "04:30:00"}, {}),
        ({"begin": "", "aware": "", "at": ""}, {}),
    ],
    ids=["minutes", "seconds", "with its zone", "without a zone", "as the defaults", "empty"],
)
def test_what_a_browser_sends_becomes_the_iso_form(sent: dict[str, str], arguments: dict[str, str]) -> None:
    found, problems = shown({"begin": ""} | sent)
    assert (found, problems) == (arguments, {})
    validate: Callable[..., str] = dated.codec.encode_arguments
    validate((), {"begin": "2027-01-01T00:00Z"} | found)


def test_what_is_no_time_is_refused_by_the_job() -> None:
    found, _ = shown({"begin": "<script>"})
    assert found == {"begin": "<script>"}
