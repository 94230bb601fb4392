"""The changes of a batch's objects as one `UPDATE ... FROM unnest(...)` for each set of columns.

SQLAlchemy's unit of work sends one UPDATE for each row. One statement for all rows may replace it only if the result is
the same: no event, trigger, version counter or value of the server, no second table, no relationship, no unique index
on a column that changes (the order of the rows would matter), and only types that `worker.batch.bulk.eligibility`
lists. If one object of the session is not eligible, SQLAlchemy's own flush writes all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import eq, itemgetter
from typing import Any

from sqlalchemy import Column
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeEngine

from worker.batch.bulk import eligibility
from worker.batch.bulk.array_literals import encode_arrays
from worker.batch.bulk.rows import bind_values
from worker.batch.bulk.statements import update_statement
from worker.batch.bulk.target import make_target
from worker.db.driver import connection_info, execution_options
from worker.db.statement_internals import (
    changed_attributes,
    changed_states,
    has_listeners,
    mark_as_flushed,
    rewrites_statements,
)

#: Below this number of objects, one statement costs more than it saves.
_WORTH_IT = 10

#: A changed object: its identity, its state, and its attributes.
_Changed = tuple[tuple[Any, ...], InstanceState[Any], dict[str, Any]]
_Update = tuple[str, list[Any], list[_Changed], str]


async def flush_changes(session: Session, connection: AsyncConnection, raw: Any) -> None:
    """Write the changed objects of a session, if all of them are eligible.

    Args:
        session: the session; its own flush must follow.
        connection: the connection that the session uses.
        raw: asyncpg's connection beneath it, in the session's transaction.

    Raises:
        StaleDataError: A row no longer exists, or its key has changed.
    """
    states = changed_states(session)
    if len(states) < _WORTH_IT or session.new or session.deleted or not _is_plain(session, connection):
        return
    by_mapper: dict[Mapper[Any], list[InstanceState[Any]]] = {}
    for state in states:
        by_mapper.setdefault(state.mapper, []).append(state)
    updates: list[_Update] = []
    for mapper, of_mapper in by_mapper.items():
        made = await _make_updates(mapper, of_mapper, connection, raw)
        if made is None:
            return
        updates += made
    if len(by_mapper) > 1:
        return  # only SQLAlchemy knows the order of statements to several tables
    for sql, arguments, written, table in updates:
        status: str = await raw.execute(sql, *arguments)
        matched = int(status.rsplit(" ", 1)[-1])
        if matched != len(written):
            raise StaleDataError(
                f"UPDATE statement on table {table!r} expected to update {len(written)} row(s); {matched} were matched."
            )
        mark_as_flushed(session, [(state, now) for _, state, now in written])


def _is_plain(session: Session, connection: AsyncConnection) -> bool:
    heard = has_listeners(session, "before_flush", "after_flush", "after_flush_postexec")
    changed = execution_options(connection).get("schema_translate_map") or rewrites_statements(connection)
    return not heard and not changed and not session.in_nested_transaction()


@lru_cache(maxsize=256)
def _updatable_columns(mapper: Mapper[Any]) -> dict[str, Column[Any]] | None:
    """Return the writable columns, by attribute; None if the mapper needs SQLAlchemy's own unit of work."""
    table: Any = mapper.local_table
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
        if not isinstance(column, Column) or column.table is not table or len(attribute.columns) != 1:
            return None  # a column_property(): the unit of work expires it
        if not column.primary_key:
            found[attribute.key] = column
    return found


async def _make_updates(
    mapper: Mapper[Any], states: Sequence[InstanceState[Any]], connection: AsyncConnection, raw: Any
) -> list[_Update] | None:
    """Return the statements for the objects of a mapper; None if one of them is not eligible."""
    if has_listeners(mapper, "before_update", "after_update"):
        return None  # listeners can be added at any time, so this is not cached
    columns = _updatable_columns(mapper)
    if columns is None:
        return None
    by_columns = _group_by_changes(columns, states)
    if by_columns is None:
        return None
    entity: Any = mapper.class_
    target = make_target(entity)
    facts = await eligibility.read_facts(raw, connection_info(connection), target)
    key: list[Any] = list(mapper.primary_key)
    if (
        facts is None
        or not facts.is_table
        or facts.has_parts
        or facts.has_update_triggers
        or facts.unique is None
        or not eligibility.are_keys(key, facts)
    ):
        return None
    updates: list[_Update] = []
    for names, alike in by_columns.items():
        sets = [columns[name] for name in names]
        if any(column.name in facts.unique or column.name in facts.generated for column in sets):
            return None
        found = {column: eligibility.array_cast(column, facts) for column in [*key, *sets]}
        casts = {column: cast for column, cast in found.items() if cast is not None}
        values = [list(each) for each in zip(*(identity for identity, _, _ in alike), strict=True)]
        values += [[now[name] for _, _, now in alike] for name in names]
        if len(casts) < len(found) or any(_is_expression(value) for array in values for value in _one_of_each(array)):
            return None
        places = range(len(alike))
        arrays = [bind_values(column, array, places) for column, array in zip(casts, values, strict=True)]
        sent_as, arguments = encode_arrays(casts, arrays)
        if not sent_as:
            return None
        sql = update_statement(target, sent_as, key, sets, {})
        updates.append((sql, arguments, alike, target.table.name))
    return updates


def _group_by_changes(
    columns: dict[str, Column[Any]], states: Sequence[InstanceState[Any]]
) -> dict[tuple[str, ...], list[_Changed]] | None:
    """Return the objects by the attributes that differ from the database; None if SQLAlchemy must write one of them."""
    by_names: dict[tuple[str, ...], Any] = {}
    names_of = list(map(tuple, map(changed_attributes, states)))
    if len(set(names_of)) == 1:
        by_names[names_of[0]] = states
    else:
        for state, names in zip(states, names_of, strict=True):
            by_names.setdefault(names, []).append(state)
    parted: dict[tuple[str, ...], list[_Changed]] = {}
    try:
        for names, alike in by_names.items():
            changed: list[_Changed] = [(state.key[1], state, state.obj().__dict__) for state in alike]
            for differing, part in _part_by_differences(columns, names, changed):
                parted.setdefault(differing, []).extend(part)
        for part in parted.values():
            part.sort(key=itemgetter(0))  # SQLAlchemy's order, in which rows are locked
    except (KeyError, TypeError):
        return None  # an attribute without a column or a value, an object without a key, or keys without an order
    return parted


def _part_by_differences(
    columns: dict[str, Column[Any]], names: tuple[str, ...], changed: list[_Changed]
) -> Iterator[tuple[tuple[str, ...], list[_Changed]]]:
    """Return the objects by those of the names whose values differ from the database; not those without any.

    Raises:
        KeyError: One is no column, or has no value in an object.
    """
    before = [changed_attributes(state) for _, state, _ in changed]
    equal: list[list[bool]] = []
    for name in names:
        compare = columns[name].type.compare_values
        is_plain = compare.__func__ is TypeEngine.compare_values  # type: ignore[attr-defined]
        pairs = map(itemgetter(name), before), [now[name] for _, _, now in changed]
        # Only True is equal, as for SQLAlchemy: arrays of NumPy compare to an array.
        equal.append([found is True for found in map(eq if is_plain else compare, *pairs)])
    if not any(map(any, equal)):
        if names:
            yield names, changed
        return
    for one, flags in zip(changed, zip(*equal, strict=True), strict=True):
        differing = tuple(name for name, is_equal in zip(names, flags, strict=True) if not is_equal)
        if differing:
            yield differing, [one]


def _one_of_each(values: Sequence[Any]) -> list[Any]:
    """Return one value of each type."""
    return list({type(value): value for value in values}.values())


def _is_expression(value: Any) -> bool:
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")
