"""The tables and columns that the arguments of a factory name, checked when the module is imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeGuard

from sqlalchemy import (
    ARRAY,
    ClauseElement,
    Column,
    ColumnElement,
    Table,
    TableClause,
    any_,
    func,
    inspect,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import NoInspectionAvailable, SQLAlchemyError
from sqlalchemy.orm import Mapper

from worker.batch.sizing import Size
from worker.errors import RegistrationError, UsageError, format_error

_PREPARER = asyncpg_dialect().identifier_preparer  # type: ignore[no-untyped-call]

#: A condition on the rows, or a function that returns one when the job begins, for conditions that depend on the clock.
Condition = ColumnElement[bool] | Callable[[], ColumnElement[bool]]


class Pace(TypedDict, total=False):
    """How the tables are walked: the rows of a batch, and the number of runs that walk together."""

    size: Size | None
    parallel: int


@dataclass(frozen=True)
class Target:
    """A mapped class or a `Table`.

    Attributes:
        owner: The job, for errors.
        entity: The mapped class or the `Table`.
        table: The table.
        mapper: The mapper of a mapped class; None for a `Table`.
    """

    owner: str
    entity: Any
    table: Table
    mapper: Mapper[Any] | None

    @property
    def name(self) -> str:
        """The name of the table, quoted if necessary."""
        return table_name(self.table)

    @property
    def columns(self) -> list[Column[Any]]:
        """The columns that the model has."""
        mapped = set(self.table.columns if self.mapper is None else self.mapper.columns)
        return [column for column in self.table.columns if column in mapped]

    def attribute(self, column: Column[Any]) -> Any:
        """Return a column as statements name it: the attribute of the class, or the column of the table."""
        if self.mapper is None:
            return column
        return getattr(self.entity, self.mapper.get_property_by_column(column).key)

    def key_of(self, column: Column[Any]) -> str:
        """Return the name of a column in rows: that of the attribute, or the key of the column."""
        return column.key if self.mapper is None else self.mapper.get_property_by_column(column).key

    def find_column(self, named: Any, argument: str) -> Column[Any]:
        """Return the column that an argument names, as a text, an attribute or a column.

        Raises:
            RegistrationError: The table has no such column.
        """
        known = {column.key: column for column in self.columns}
        known |= {column.name: column for column in self.columns} | {self.key_of(each): each for each in self.columns}
        if isinstance(named, str):
            if named in known:
                return known[named]
        elif is_expression(named):
            column = named.__clause_element__() if hasattr(named, "__clause_element__") else named
            for each in self.columns:
                if isinstance(column, ColumnElement) and column.shares_lineage(each):
                    return each
        near = difflib.get_close_matches(str(named), known, n=1) if isinstance(named, str) else []
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}"
        raise RegistrationError(f"{self.owner}: {argument}={_show(named)}: {self.name} has no such column; {hint}")

    def find_columns(self, named: Any, argument: str) -> list[Column[Any]]:
        """Return the columns that an argument names: one, or a list of them.

        Raises:
            RegistrationError: The table has no such column, or the list is empty or repeats one.
        """
        listed = list(named) if isinstance(named, list | tuple) else [named]
        found = [self.find_column(each, argument) for each in listed]
        if not found or len(set(found)) < len(found):
            raise RegistrationError(f"{self.owner}: {argument}= names {'no column' if not found else 'a column twice'}")
        return found

    def find_key(self, key: Any) -> list[Column[Any]]:
        """Return the columns of the key that the table is walked by: the given ones, or the primary key.

        Raises:
            RegistrationError: The table has no primary key, and none is given.
        """
        if key is not None:
            return self.find_columns(key, "key")
        found = list(self.table.primary_key)
        if not found:
            raise RegistrationError(
                f"{self.owner}: {self.name} has no primary key, so its rows cannot be walked: set key= to the columns "
                f"of a unique, not-null index"
            )
        return found

    def attributes(self, columns: Iterable[Column[Any]]) -> list[Any]:
        """Return columns as statements name them; see `attribute`."""
        return [self.attribute(column) for column in columns]


def find_target(owner: str, entity: Any) -> Target:
    """Return the table that a factory works on.

    Raises:
        RegistrationError: The argument is neither a mapped class nor a `Table`, or its rows are in several tables.
    """
    if isinstance(entity, Table):
        return Target(owner, entity, entity, None)
    try:
        mapper = inspect(entity)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(entity, type) or not isinstance(mapper, Mapper):
        raise RegistrationError(f"{owner}: {_show(entity)} is neither a mapped class nor a Table")
    table = mapper.local_table
    if len(mapper.tables) > 1 or not isinstance(table, Table):
        raise RegistrationError(
            f"{owner}: a row of {entity.__name__} is rows of several tables (joined inheritance), and this job works "
            f"on one: write a job with ctx.chunks, or name the tables one by one"
        )
    return Target(owner, entity, table, mapper)


def table_name(table: TableClause) -> str:
    """Return the name of a table with its schema, quoted if necessary."""
    return str(_PREPARER.format_table(table))


def is_expression(value: Any) -> TypeGuard[ColumnElement[Any]]:
    """Return whether a value is an SQL expression: an element, or an attribute of a mapped class."""
    return isinstance(value, ClauseElement) or (hasattr(value, "__clause_element__") and not isinstance(value, type))


def check_condition(owner: str, where: Any) -> None:
    """Raise `RegistrationError` if `where` is no condition. A Python value is often a comparison gone wrong."""
    if where is not None and not is_expression(where) and not callable(where):
        raise RegistrationError(
            f"{owner}: where={_show(where)}: give a condition such as Post.score < 3, or a function that returns one"
        )


def resolve_condition(owner: str, where: Condition | None) -> Any:
    """Return a condition; None for none.

    Raises:
        UsageError: The function has returned something else.
    """
    if where is None or is_expression(where):
        return where
    found: Any = where()  # type: ignore[operator]
    if not is_expression(found):
        raise UsageError(f"{owner}: the function of where= has returned {_show(found)} instead of a condition")
    return found


def match_keys(columns: Sequence[Any], keys: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition of the rows with one of these keys, with one array for each column.

    Args:
        columns: The columns of the key.
        keys: Their values; tuples for a key of several columns.
    """
    if len(columns) == 1:
        return columns[0] == any_(literal(list(keys), ARRAY(columns[0].type)))  # type: ignore[no-any-return]
    values = zip(*keys, strict=True)
    arrays = [literal(list(each), ARRAY(column.type)) for column, each in zip(columns, values, strict=True)]
    return tuple_(*columns).in_(select(*[func.pg_catalog.unnest(array) for array in arrays]))


def list_keys(rows: Iterable[Any]) -> list[Any]:
    """Return rows of a select of keys as values, or as tuples for keys of several columns."""
    return [tuple(row) if isinstance(row, tuple) else row for row in rows]


def find_python_type(column: Column[Any]) -> Any:
    """Return the type of a column's values; None if it is unknown."""
    try:
        return column.type.python_type
    except NotImplementedError:
        return None


def _show(value: Any) -> str:
    try:
        return repr(value)[:200] if not isinstance(value, ClauseElement) else str(value)[:200]
    except SQLAlchemyError as error:
        return format_error(error)
