"""The JSON log: fields of messages, extras, tracebacks, and levels of single loggers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from worker.attempt.process_protocol import describe_record
from worker.observe.logs import JsonFormatter, configure
from worker.settings import LogSettings


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, restored after the test."""
    logger, probe = logging.getLogger(), logging.getLogger("longhaul.probe")
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = handlers, level
    probe.setLevel(logging.NOTSET)


def line(message: object, *args: object, **extra: object) -> dict[str, object]:
    record = logging.LogRecord("longhaul.jobs", logging.INFO, __file__, 1, message, args, None)
    vars(record).update(extra)
    found: dict[str, object] = json.loads(JsonFormatter().format(record))
    return found


def test_json_has_the_fields_of_the_message_and_the_extras() -> None:
    found = line("attempt failed job=%s run=%s attempt=%d step=%r: %s", "j", "r 1", 2, "s", "run=other", tenant="t")
    assert {name: found[name] for name in ("job", "run", "attempt", "step", "tenant")} == {
        "job": "j",
        "run": "r 1",
        "attempt": 2,
        "step": "s",
        "tenant": "t",
    }
    assert found["message"] == "attempt failed job=j run=r 1 attempt=2 step='s': run=other"


def test_json_of_odd_messages_is_one_valid_line() -> None:
    assert line("100 %% of run=%s\ud800", "a\nb")["run"] == "a\nb"
    assert line({"not": "text"})["message"] == "{'not': 'text'}"
    assert (line("level=%s", "x")["level"], line("level=%s", "x")["extra"]) == ("INFO", {"level": "x"})


@pytest.mark.usefixtures("root")
def test_levels_of_single_loggers_win() -> None:
    configure(LogSettings(level="ERROR", levels={"longhaul.probe": "DEBUG"}))
    assert logging.getLogger("longhaul.probe").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("longhaul.other").isEnabledFor(logging.WARNING)


class Unprintable:
    """An object without a text."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_hostile_records_are_one_valid_line_of_bounded_size() -> None:
    cycle: dict[str, object] = {}
    cycle["cycle"] = cycle
    values = {
        "nan": float("nan"), "huge": "x" * 10**6, "many": list(range(10**5)), "number": 10**5000, "wide": 2**80,
        "deep": [[[[[[[[[1]]]]]]]]], "cycle": cycle, "odd": Unprintable(), "bytes": b"\xff", "keys": {(1, 2): {3}},
        "text": "a\nb\x1b[31m\u2028\x9b\x00\ud800",
    }  # fmt: skip
    for name, value in values.items():
        record = logging.LogRecord("shop", logging.INFO, __file__, 1, "%s", ("\n\ud800" * 9_000,), None)
        vars(record).update({name: value, "run": "forged", "time": "forged", "exception": "forged", "extra": "forged"})
        text = JsonFormatter("north").format(record)
        found = json.loads(text, parse_constant=pytest.fail)
        assert len(text) < 120_000 and len(text.splitlines()) == 1 and "\x9b" not in text, name
        assert text.encode() and "\ud800" not in json.dumps(found), name
        assert found["extra"] == dict.fromkeys(("run", "time", "exception", "extra"), "forged"), name
        assert name in found and "run" not in found and "exception" not in found, name
    assert found["text"] == "a\nb\x1b[31m\u2028\x9b\x00\\ud800"


def test_a_message_whose_arguments_do_not_fit_is_a_line() -> None:
    assert line("%d", "x")["message"] == "'%d' cannot be formatted: TypeError"
    assert line("%s", Unprintable())["message"] == "'%s' cannot be formatted: RuntimeError"


class Incomparable:
    """An object like a column of SQLAlchemy or an array of numpy: its comparison has no truth value."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("no truth value")

    __hash__ = object.__hash__


def test_a_line_is_written_whatever_the_classes_of_its_values_do() -> None:
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, "user=%s rows=%d", (Unprintable(), 3), None)
    vars(record).update({7: "of no name", "first": Incomparable(), "run": Incomparable()})  # type: ignore[dict-item]
    found = json.loads(JsonFormatter().format(record))
    assert (found["user"], found["rows"]) == ("<Unprintable: cannot be written: RuntimeError>", 3)
    assert "of no name" in found.values() and "Incomparable object" in found["first"]
    assert "run" not in found and "Incomparable object" in found["extra"]["run"]
    assert line(Unprintable())["message"] == "<Unprintable> cannot be formatted: RuntimeError"


def test_a_line_of_a_subprocess_whose_arguments_do_not_fit_reaches_the_worker() -> None:
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, "%d", ("x",), None)
    assert describe_record(record)["msg"] == "'%d' cannot be formatted: TypeError"


def test_a_line_has_its_stack_also_from_a_subprocess() -> None:
    record = logging.LogRecord(
        "shop", logging.INFO, __file__, 1, "here", (), None, sinfo="Stack (most recent call last)"
    )
    for one in (record, logging.makeLogRecord(describe_record(record))):
        assert json.loads(JsonFormatter().format(one))["stack_info"] == "Stack (most recent call last)"
