"""The JSON log: fields of messages, extras, tracebacks, and levels of single loggers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

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
    assert line("level=%s", "x")["level"] == "INFO"


@pytest.mark.usefixtures("root")
def test_levels_of_single_loggers_win() -> None:
    configure(LogSettings(level="ERROR", levels={"longhaul.probe": "DEBUG"}))
    assert logging.getLogger("longhaul.probe").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("longhaul.other").isEnabledFor(logging.WARNING)
