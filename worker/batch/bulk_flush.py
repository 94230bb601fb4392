"""The changes of a batch's objects as one `UPDATE ... FROM unnest(...)` for each set of columns.

SQLAlchemy's unit of work sends one UPDATE a row. Where nothing asks for that (no event, version counter, value made by
the server, second table, relationship), the same rows come of one statement, and the session is told that they are
written. What is not eligible is left to SQLAlchemy's own flush, which follows in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Column
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql import ClauseElement

from worker.batch.bulk.rows import Group, bind_values, fits_unnest, make_target
from worker.batch.bulk.statements import update_statement

#: Below this many objects one statement costs more than it saves.
_WORTH_IT = 10


async def flush_changes(session: Session, raw: Any) -> None:
    """Write the changed objects of a session that are eligible.

    Args:
        session: whose transaction `raw` is in.
        raw: asyncpg's connection.

    Raises:
        StaleDataError: a row is gone, or is not what its object's key says.
    """
    states = list(session.identity_map._modified)
    if len(states) < _WORTH_IT or session._new or session._deleted or not _session_is_plain(session):
        return
    by_mapper: dict[Mapper[Any], list[Any]] = {}
    for state in states:
        by_mapper.setdefault(state.mapper, []).append(state)
    if any(_columns(mapper) is None for mapper in by_mapper):
        return  # the order of the others' statements is SQLAlchemy's to find
    for mapper, changed in by_mapper.items():
        for keys, alike in _by_columns(mapper, changed).items():
            await _write(session, raw, mapper, keys, alike)


def _session_is_plain(session: Session) -> bool:
    dispatch: Any = session.dispatch
    heard = (dispatch.before_flush, dispatch.after_flush, dispatch.after_flush_postexec)
    return not any(heard) and not session.in_nested_transaction()


@lru_cache(maxsize=256)
def _declared_columns(mapper: Mapper[Any]) -> dict[str, Column[Any]] | None:
    """Return the columns that can be written by attribute; None where the mapper needs its own unit of work."""
    table = mapper.local_table
    special = (
        len(mapper.tables) != 1
        or mapper.version_id_col is not None
        or not mapper.batch
        or any(
            column.onupdate is not None or column.server_onupdate is not None or column.computed is not None
            for column in getattr(table, "columns", ())
        )
    )
    if special:
        return None
    found: dict[str, Column[Any]] = {}
    for attribute in mapper.column_attrs:
        column: Any = attribute.columns[0]
        plain = isinstance(column, Column) and column.table is table and len(attribute.columns) == 1
        if plain and not column.primary_key and fits_unnest([column]):
            found[attribute.key] = column
    return found


def _columns(mapper: Mapper[Any]) -> dict[str, Column[Any]] | None:
    dispatch: Any = mapper.dispatch
    if dispatch.before_update or dispatch.after_update:  # they can come at any time, so they are not cached
        return None
    return _declared_columns(mapper)


def _by_columns(mapper: Mapper[Any], states: Sequence[Any]) -> dict[tuple[str, ...], list[Any]]:
    """Return the states by the attributes that differ from what the database has; those that are not eligible not."""
    columns = _columns(mapper) or {}
    same = {key: mapper.class_manager[key].impl.is_equal for key in columns}
    parted: dict[tuple[str, ...], list[Any]] = {}
    for state in states:
        before, now = state.committed_state, state.dict
        if state.key is None or not all(key in columns and key in now for key in before):
            continue
        keys = tuple(key for key, value in before.items() if not same[key](value, now[key]))
        if keys:
            parted.setdefault(keys, []).append(state)
    return parted


async def _write(session: Session, raw: Any, mapper: Mapper[Any], keys: tuple[str, ...], states: list[Any]) -> None:
    columns = _columns(mapper) or {}
    entity: Any = mapper.class_
    target = make_target(entity)
    sets = [columns[key] for key in keys]
    key_columns: list[Any] = list(mapper.primary_key)
    values = [[state.dict[key] for state in states] for key in keys]
    if any(isinstance(value, ClauseElement) or hasattr(value, "__clause_element__") for value in _one_of_each(values)):
        return
    identities = list(zip(*(state.key[1] for state in states), strict=True))
    places = range(len(states))
    arrays = [
        bind_values(column, list(array), places)
        for column, array in zip([*key_columns, *sets], [*identities, *values], strict=True)
    ]
    group = Group([*key_columns, *sets], arrays, places, frozenset(sets))
    sql = update_statement(target, group, key_columns, sets)
    status: str = await raw.execute(sql, *arrays)
    if int(status.rsplit(" ", 1)[-1]) != len(states):
        matched = status.rsplit(" ", 1)[-1]
        raise StaleDataError(
            f"UPDATE on table {target.name!r} expected to update {len(states)} rows; {matched} matched"
        )
    states[0]._commit_all_states(((state, state.dict) for state in states), session.identity_map)


def _one_of_each(arrays: Sequence[Sequence[Any]]) -> list[Any]:
    """Return one value of each type."""
    return list({type(value): value for array in arrays for value in array}.values())
