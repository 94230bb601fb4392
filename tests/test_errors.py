"""Errors as one line of text, and their causes."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from worker.errors import format_error, iter_causes


class _UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _dbapi_error() -> DBAPIError:
    original = RuntimeError("adapter")
    original.__cause__ = ValueError("of the\ndriver")
    return DBAPIError("SELECT 1", None, original)


def test_format_error_returns_type_and_message_in_one_line() -> None:
    assert format_error(ValueError("two\n  lines")) == "ValueError: two lines"
    assert format_error(KeyError()) == "KeyError"


def test_format_error_returns_the_drivers_message_instead_of_sqlalchemys() -> None:
    assert format_error(_dbapi_error()) == "ValueError: of the driver"


def test_format_error_survives_an_exception_whose_text_raises() -> None:
    assert format_error(_UnreadableError()) == "_UnreadableError: (its message cannot be read: RuntimeError)"


def test_iter_causes_follows_causes_and_the_drivers_error_but_no_context() -> None:
    wrapped = _dbapi_error()
    outer = RuntimeError("outer")
    outer.__cause__ = wrapped
    wrapped.__context__ = OSError("handled meanwhile")
    assert [type(cause) for cause in iter_causes(outer)] == [RuntimeError, DBAPIError, RuntimeError, ValueError]


def test_iter_causes_ends_in_a_circle() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert list(iter_causes(first)) == [first, second]
