"""Keys that the driver sends as infinity: the first and the last date or time that Python has.

asyncpg encodes `date.max` and `datetime.max` as infinity, and reads infinity as the same value. So a statement that
compares a key with the value that was read does not find a row of 9999-12-31. One UPDATE then fails with
`StaleDataError`; but for several objects SQLAlchemy sends `executemany`, for which the driver returns no number of
rows, and the change of this object would be lost without an error.
"""

from __future__ import annotations

from datetime import date, datetime
from itertools import chain
from typing import Any

from sqlalchemy import and_, inspect, literal, select
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.exc import StaleDataError


def is_at_end(value: Any) -> bool:
    """Return whether the driver sends a value as infinity or -infinity."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None) in (datetime.max, datetime.min)
    return isinstance(value, date) and value in (date.max, date.min)


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
