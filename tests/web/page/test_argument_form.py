"""The form of a job: a browser sends each argument back as the form shows it, and times in the form of the API."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from html.parser import HTMLParser
from typing import Any, Literal

import httpx
import pytest
from pydantic import AwareDatetime, BaseModel, NaiveDatetime, TypeAdapter

from tests.web.conftest import connect
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.web import web_app
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


@job
async def lasting(ctx: JobContext, wait: timedelta) -> None:
    """Take a duration."""


def test_hint_of_a_duration_has_examples_that_the_job_takes() -> None:
    [field] = make_fields(lasting.codec.make_schema())
    examples = re.findall(r"P\w+|\d+:\d+:\d+", field.hint)
    spans = [TypeAdapter(timedelta).validate_python(one) for one in examples]
    assert spans == [timedelta(days=3), timedelta(hours=36), timedelta(hours=36), timedelta(days=1460)]


async def test_an_error_and_the_hint_of_its_field_are_two_sentences(settings: Settings, database: Database) -> None:
    app = web_app(settings, jobs=[lasting])
    async with connect(app) as http:
        page = (await http.get("/page/jobs/lasting")).text
        csrf = page.partition('name="csrf" content="')[2].partition('"')[0]
        sent = {"csrf": csrf, "act": "enqueue", PREFIX + "wait": "36h"}
        refused = (await http.post("/page/jobs/lasting", data=sent)).text
        sent |= {PREFIX + "wait": "P4Y", "priority": "12"}
        options = (await http.post("/page/jobs/lasting", data=sent)).text
    await app.close()
    [error] = re.findall(r'<p class="problem" id="arg-1-error">([^<]*)</p>', refused)
    assert "duration" in error and error.endswith(".")
    assert re.findall(r'<p class="hint" id="arg-1-hint">([^<]*)</p>', refused)[0].startswith("duration, e.g. P3D")
    assert 'aria-describedby="arg-1-error arg-1-hint"' in refused
    assert "arg-1-error" not in options and 'aria-describedby="option-priority-error option-priority-hint"' in options


class Place(BaseModel):
    """A model as an argument."""

    name: str = "a\xa0b"
    at: list[float] = [1.5]


@job
async def odd_defaults(
    ctx: JobContext,
    line_end: str = "\n",
    windows: str | None = "\r\n",
    space: str = " a  b ",
    fixed: str = "10\xa0km",
    hidden: str = "\u200b\u202e\x7f\x1b",
    marks: str = "a" + "\u0300" * 9,
    markup: str = "<b>\"&amp;'</b>\\x41",
    empty: str = "",
    nothing: str | None = None,
    names: list[str] = ["\xa0\x7f\u200b\U000e0001", "\n"],  # noqa: B006 - each run gets its own
    place: Place = Place(),  # noqa: B008
    mode: Literal["\xa0", "b"] = "\xa0",
    number: float | str = 1.5,
) -> None:
    """Take what hides."""


@job
async def nullable(ctx: JobContext, count: int | None, name: str | None, day: date | None, both: float | str) -> None:
    """Take arguments without defaults that may be null."""


class SentForm(HTMLParser):
    """The fields that a browser sends of the form of a job: inputs of one line lose line breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self._name = ""
        self._is_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a field."""
        values = dict(attrs)
        name, value = values.get("name") or "", values.get("value") or ""
        self._is_text = tag == "textarea"
        if tag in ("input", "textarea", "select"):
            self._name = name
            self.fields[name] = value.replace("\n", "").replace("\r", "")
        elif tag == "option" and "selected" in values:
            self.fields[self._name] = value

    def handle_endtag(self, tag: str) -> None:
        """End a field of many lines."""
        self._is_text = False

    def handle_data(self, data: str) -> None:
        """Note the text of a field of many lines."""
        if self._is_text:
            self.fields[self._name] += data.removeprefix("\n")


async def form_of(http: httpx.AsyncClient, name: str) -> dict[str, str]:
    """Return what a browser sends of the form of a job whose visitor changes nothing."""
    sent = SentForm()
    sent.feed((await http.get(f"/page/jobs/{name}")).text)
    return {name: value for name, value in sent.fields.items() if name.startswith(PREFIX)}


async def test_defaults_that_hide_something_are_sent_back_unchanged(settings: Settings, database: Database) -> None:
    app = web_app(settings, jobs=[odd_defaults])
    async with connect(app) as http:
        sent = await form_of(http, "odd_defaults")
    await app.close()
    fields = fill(make_fields(odd_defaults.codec.make_schema()), Form(list(sent.items())))
    assert read_arguments(fields) == ({}, {}), "none differs from its default"
    assert len(sent) == len(fields)
    sent |= {PREFIX + "line_end": '"\\t"', PREFIX + "windows": "", PREFIX + "number": "2.5"}
    changed = read_arguments(fill(fields, Form(list(sent.items()))))
    assert changed == ({"line_end": "\t", "windows": None, "number": 2.5}, {})


async def test_refused_forms_show_what_was_sent(settings: Settings, database: Database) -> None:
    app = web_app(settings, jobs=[odd_defaults])
    typed = {PREFIX + "fixed": "12\xa0km\u200b", PREFIX + "names": '["\xa0"'}
    async with connect(app) as http:
        page = (await http.get("/page/jobs/odd_defaults")).text
        csrf = page.partition('name="csrf" content="')[2].partition('"')[0]
        refused = await http.post("/page/jobs/odd_defaults", data={"csrf": csrf, "act": "enqueue"} | typed)
    await app.close()
    assert refused.status_code == 422
    again = SentForm()
    again.feed(refused.text)
    assert {name: again.fields[name] for name in typed} == typed


async def test_the_script_of_the_page_gets_the_form_the_next_place_or_a_reason(
    settings: Settings, database: Database, client: Client
) -> None:
    app = web_app(settings, jobs=[lasting])
    accept = {"Accept": "text/html, application/json"}
    async with connect(app) as http:
        page = (await http.get("/page/jobs/lasting")).text
        csrf = page.partition('name="csrf" content="')[2].partition('"')[0]
        sent = {"csrf": csrf, "act": "enqueue", PREFIX + "wait": "36h", "id": "lasting-1"}
        refused = await http.post("/page/jobs/lasting", data=sent, headers=accept)
        assert refused.status_code == 422 and 'aria-invalid="true"' in refused.text
        done = await http.post("/page/jobs/lasting", data=sent | {PREFIX + "wait": "P4Y"}, headers=accept)
        assert done.json() == {"place": "/page/runs/lasting-1"}
        assert "Enqueued lasting-1." in re.sub("<[^>]+>", "", (await http.get("/page/runs/lasting-1")).text)
        foreign = await http.post("/page/jobs/lasting", data=sent | {"csrf": "x"}, headers=accept)
        assert foreign.status_code == 403 and foreign.json()["text"]
    await app.close()


def test_empty_fields_stand_for_null_where_an_argument_may_be_null() -> None:
    sent = [(PREFIX + name, "") for name in ("count", "name", "day")]
    fields = fill(make_fields(nullable.codec.make_schema()), Form(sent))
    assert read_arguments(fields) == ({"count": None, "name": None, "day": None}, {})
