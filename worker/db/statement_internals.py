"""The only home of SQLAlchemy's private statement and ORM parts.

SQLAlchemy has no public way to ask whether a SELECT has an ORDER BY, or which columns an UPDATE sets. Each private name
that the package reads is used in one function here, and tests/db/test_statement_internals.py fails with a clear text if
a release of SQLAlchemy changes it. The private parts of asyncpg and of SQLAlchemy's adapter for it are in `driver.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sqlalchemy import FromClause, Insert, Select, True_, UnaryExpression, Update
from sqlalchemy.engine import IteratorResult, Result
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstanceState, Mapper, Session


@dataclass(frozen=True)
class SelectClauses:
    """The clauses of a SELECT that decide whether it can be walked.

    Attributes:
        offset: whether it has an OFFSET.
        limit: whether it has a LIMIT or a FETCH.
        distinct: whether it has a DISTINCT or a DISTINCT ON.
        group_by: the expressions of its GROUP BY.
        having: whether it has a HAVING.
        order_by: the expressions of its ORDER BY.
        for_update: whether it locks its rows.
        extended: whether it has a syntax extension, e.g. PostgreSQL's `distinct_on()`.
    """

    offset: bool
    limit: bool
    distinct: bool
    group_by: tuple[Any, ...]
    having: bool
    order_by: tuple[Any, ...]
    for_update: bool
    extended: bool


def read_select_clauses(statement: Select[Any]) -> SelectClauses:
    """Return the clauses of a SELECT."""
    return SelectClauses(
        offset=statement._offset_clause is not None,
        limit=statement._limit_clause is not None or statement._fetch_clause is not None,
        distinct=bool(statement._distinct) or bool(statement._distinct_on),
        group_by=tuple(statement._group_by_clauses),
        having=bool(statement._having_criteria),
        order_by=tuple(statement._order_by_clauses),
        for_update=statement._for_update_arg is not None,
        extended=any(getattr(statement, name) is not None for name in statement._position_map.values()),
    )


def without_options(statement: Select[Any]) -> Select[Any]:
    """Return a SELECT without loader options, for a statement whose columns are replaced."""
    stripped = statement.where()
    stripped._with_options = ()
    return stripped


def without_true(statement: Select[Any]) -> Select[Any]:
    """Return a SELECT without the conditions `true()` of its WHERE, also as `and_(true(), true())`."""
    criteria = statement._where_criteria
    kept = tuple(one for one in criteria if not (isinstance(one, True_ | UnaryExpression) and str(one) == "true"))
    if len(kept) == len(criteria):
        return statement
    stripped = statement.where()
    stripped._where_criteria = kept
    return stripped


def updated_names(statement: Update) -> list[str]:
    """Return the names of what the SET of an UPDATE sets, as column keys."""
    values: Any = statement._values or {}
    keys = list(values) if isinstance(values, Mapping) else [key for key, _ in values]
    return [getattr(key, "key", key) for key in keys]


def replace_source(statement: Insert, source: Select[Any]) -> Insert:
    """Return an INSERT ... SELECT that reads from another SELECT with the same columns."""
    replaced: Any = copy.copy(statement)
    replaced.select = source
    return replaced  # type: ignore[no-any-return]


def is_same_table(left: FromClause, right: FromClause) -> bool:
    """Return whether two FROM elements are the same table or alias.

    The ORM annotates copies of tables: a copy is neither identical nor equal to its original, but each of the two is
    derived from the other. An alias is derived from its table, and not the other way round.
    """
    return left.is_derived_from(right) and right.is_derived_from(left)


def cut_rows(rows: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
    """Return rows of SQLAlchemy with their first columns only.

    Args:
        rows: what a result returned.
        names: of the columns that remain.
    """
    width = len(names)
    cut: Any = IteratorResult(SimpleResultMetaData(list(names)), iter([tuple(row)[:width] for row in rows]))
    remaining: Sequence[Any] = cut.all()
    return remaining


def requires_unique(result: Result[Any]) -> bool:
    """Return whether the objects of a result must be made unique, because a joined collection repeats its owner."""
    return result._unique_filter_state is not None


def changed_states(session: Session) -> list[InstanceState[Any]]:
    """Return the states of the objects of a session that were changed, or may have been, without an order."""
    return list(session.identity_map._modified)


#: Returns the attributes of an object that were set since it was loaded, with the values that they had before.
changed_attributes: Callable[[InstanceState[Any]], dict[str, Any]] = attrgetter("committed_state")


def mark_as_flushed(session: Session, states: Sequence[tuple[InstanceState[Any], dict[str, Any]]]) -> None:
    """Tell a session that the changes of objects are in the database, as its own flush does.

    Args:
        session: the session.
        states: the state and the attributes of each object.
    """
    states[0][0]._commit_all_states(states, session.identity_map)


def has_listeners(target: Session | type[Mapper[Any]] | Mapper[Any], *events: str) -> bool:
    """Return whether one of these events of a session or a mapper has a listener."""
    return any(bool(getattr(target.dispatch, event)) for event in events)


def rewrites_statements(connection: AsyncConnection) -> bool:
    """Return whether a listener with `retval=True` may change the statements of a connection.

    SQLAlchemy wraps each other listener of these events in a function that returns its arguments.
    """
    dispatch = None if connection.sync_connection is None else connection.sync_connection.dispatch
    return any(
        getattr(listener, "__name__", "") != f"wrap_{event}"
        for event in ("before_execute", "before_cursor_execute")
        for listener in getattr(dispatch, event, ())
    )
