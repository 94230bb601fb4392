"""The ends of the calendar: the first and the last date or time that Python has, which the driver sends as infinity.

asyncpg encodes `date.max` and `datetime.max` as infinity, and reads infinity as the same value. So a date of 9999-12-31
that is read from one row and written to another would become infinity, and a statement that compares a key with the
value that was read would not find its row. On the connections of `Database` such a date is therefore an `ExactDate`,
which is sent unchanged. `date.max` of the application stays infinity, as SQLAlchemy would write it.

Times are read by the driver: two of their values are rare, and a codec in Python would delay each of them. An UPDATE of
an object whose key is such a value fails with `StaleDataError`; but for several objects SQLAlchemy sends `executemany`,
for which the driver returns no number of rows, and the change of this object would be lost without an error.
"""

from __future__ import annotations

from datetime import date, datetime
from itertools import chain
from typing import Any

from sqlalchemy import and_, inspect, literal, select
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.exc import StaleDataError

_EPOCH = date(2000, 1, 1).toordinal()
_INFINITY, _MINUS_INFINITY = 2**31 - 1, -(2**31)


class ExactDate(date):
    """A date that is sent unchanged: also 9999-12-31 and 0001-01-01, for which `date` stands for infinity."""


_ENDS = {day.toordinal(): ExactDate(day.year, day.month, day.day) for day in (date.max, date.min)}
_INFINITIES = {date.max.toordinal(): _INFINITY, date.min.toordinal(): _MINUS_INFINITY}
_DATES = {_INFINITY: date.max, _MINUS_INFINITY: date.min} | {day - _EPOCH: exact for day, exact in _ENDS.items()}


def make_exact(value: date) -> date:
    """Return a date that is sent unchanged."""
    return _ENDS.get(value.toordinal(), value)


async def use_exact_dates(raw: Any) -> None:
    """Let a connection of asyncpg read 9999-12-31 and 0001-01-01 as dates that are no infinity."""
    codec = {"encoder": _encode, "decoder": _decode, "format": "tuple"}
    await raw.set_type_codec("date", schema="pg_catalog", **codec)


def _encode(value: Any) -> tuple[int]:
    ordinal: int = value.toordinal()
    if ordinal in _INFINITIES and not isinstance(value, ExactDate):
        return (_INFINITIES[ordinal],)
    return (ordinal - _EPOCH,)


def _decode(days: tuple[int]) -> date:
    found = _DATES.get(days[0])
    return date.fromordinal(days[0] + _EPOCH) if found is None else found


def is_at_end(value: Any) -> bool:
    """Return whether the driver sends a value as infinity or -infinity."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None) in (datetime.max, datetime.min)
    return isinstance(value, date) and value in (date.max, date.min) and not isinstance(value, ExactDate)


def check_rows_at_ends(session: Session) -> None:
    """Check that a flush will find the rows of changed and deleted objects whose keys the driver sends as infinity.

    Raises:
        StaleDataError: It would not.
    """
    for instance in chain(session.dirty, session.deleted):
        state: InstanceState[Any] = inspect(instance)
        identity = state.identity
        if identity is None or not any(map(is_at_end, identity)):
            continue
        if instance not in session.deleted and not session.is_modified(instance):
            continue
        key = state.mapper.primary_key
        row = select(literal(1)).where(and_(*(column == value for column, value in zip(key, identity, strict=True))))
        if session.connection().execute(row).first() is None:
            name = state.mapper.class_.__name__
            raise StaleDataError(
                f"the row of {name} {identity!r} is not found by its key, which the driver sends as infinity: it was "
                f"deleted, or is at the end of the calendar. Write it with batch.bulk, which finds such keys"
            )
