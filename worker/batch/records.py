"""Rows for bulk operations: dicts or ORM objects, made into columns and records of database values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ARRAY, Column, Enum, String, Table, inspect
from sqlalchemy.dialects.postgresql import dialect as postgresql_dialect
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from worker.errors import BulkError

_DIALECT = asyncpg_dialect()  # type: ignore[no-untyped-call]
_PREPARER = postgresql_dialect().identifier_preparer  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Group:
    """Rows that give the same columns: what one statement can take."""

    columns: list[Column[Any]]
    records: list[tuple[Any, ...]]
    positions: list[int]  # of each record in the list that was given


class Target:
    """The table that a bulk operation writes to.

    Args:
        entity: a mapped class, or a `Table`.
    """

    def __init__(self, entity: Any) -> None:
        self.entity = entity
        self.mapper: Mapper[Any] | None = None
        if isinstance(entity, Table):
            self.table = entity
        else:
            try:
                self.mapper = inspect(entity)
            except NoInspectionAvailable:
                raise BulkError(f"bulk: {entity!r} is neither a mapped class nor a Table") from None
            table = self.mapper.local_table
            if not isinstance(table, Table):
                raise BulkError(f"bulk: {entity!r} is not mapped to a table")
            self.table = table
        self._by_name: dict[str, Column[Any]] = {column.key: column for column in self.table.columns}
        if self.mapper is not None:
            for attribute in self.mapper.column_attrs:
                column = attribute.columns[0]
                if isinstance(column, Column) and column.table is self.table:
                    self._by_name[attribute.key] = column

    @property
    def name(self) -> str:
        """The table's name, quoted where it has to be."""
        return _PREPARER.format_table(self.table)

    @property
    def is_simple(self) -> bool:
        """Whether a row of the entity is a row of one table."""
        return self.mapper is None or len(self.mapper.tables) == 1

    def quoted(self, columns: Iterable[Column[Any]]) -> list[str]:
        """Return the columns' names, quoted where they have to be."""
        return [_PREPARER.format_column(column) for column in columns]

    def columns(self, names: Iterable[str | Any] | None, default: Sequence[Column[Any]]) -> list[Column[Any]]:
        """Return the columns that a caller names, as strings or attributes.

        Raises:
            BulkError: there is none of that name.
        """
        if names is None:
            return list(default)
        return [self._column(getattr(name, "key", name), None) for name in names]

    def as_dicts(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Return rows as dicts by attribute name; of ORM objects, what is set on them.

        Raises:
            BulkError: a row is neither a mapping nor an object of this entity.
        """
        found: list[dict[str, Any]] = []
        for index, row in enumerate(rows):
            if isinstance(row, Mapping):
                found.append(dict(row))
            elif self.mapper is not None and isinstance(row, self.mapper.class_):
                found.append({key: value for key, value in row.__dict__.items() if key in self._by_name})
            else:
                raise BulkError(
                    f"row {index} is a {type(row).__name__}: a bulk operation takes dicts or objects of {self.name}",
                    row_index=index,
                )
        return found

    def groups(self, rows: Sequence[Any], *, fill: Literal["default", "onupdate"] | None) -> list[Group]:
        """Return the rows as records of database values, parted by the columns that they give.

        Args:
            rows: dicts or ORM objects.
            fill: what fills in columns that a row does not name: the columns' Python `default`, as in an INSERT,
                their `onupdate`, or nothing.

        Raises:
            BulkError: a row is of the wrong kind, or names a column that is not there.
        """
        defaults = self._defaults(fill) if fill else {}
        alike = self._alike(rows, defaults)
        if alike is not None:
            return [alike]
        parted: dict[tuple[Column[Any], ...], tuple[list[tuple[Any, ...]], list[int]]] = {}
        known: dict[tuple[str, ...], tuple[Column[Any], ...]] = {}
        for index, row in enumerate(self.as_dicts(rows)):
            names = tuple(row)
            if names not in known:
                columns = [self._column(name, index) for name in names]
                known[names] = (*columns, *(column for column in defaults if column not in columns))
            columns_of_row = known[names]
            values = (*row.values(), *(defaults[column]() for column in columns_of_row[len(names) :]))
            records, positions = parted.setdefault(columns_of_row, ([], []))
            records.append(values)
            positions.append(index)
        return [Group(list(columns), _bind(columns, *found), found[1]) for columns, found in parted.items()]

    def _alike(self, rows: Sequence[Any], defaults: Mapping[Column[Any], Any]) -> Group | None:
        """Return rows that are dicts with the same names in the same order, the usual case, without a look at each
        value; None where they are not."""
        if not rows or type(rows[0]) is not dict:
            return None
        names = list(rows[0])
        if any(type(row) is not dict or list(row) != names for row in rows):
            return None
        columns = [self._column(name, 0) for name in names]
        if not columns or any(column not in columns for column in defaults):
            return None
        positions = list(range(len(rows)))
        return Group(columns, _bind(columns, [tuple(row.values()) for row in rows], positions), positions)

    def needs_statement(self) -> bool:
        """Whether a column's default is an SQL expression or a sequence, which only a statement can evaluate."""
        return any(
            column.default is not None and not (column.default.is_scalar or column.default.is_callable)
            for column in self.table.columns
        )

    def computed_on_update(self, given: Iterable[Column[Any]]) -> dict[Column[Any], str]:
        """Return the SQL of each `onupdate` expression, e.g. `now()`, of columns that are not given."""
        return {
            column: str(column.onupdate.arg.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
            for column in self.table.columns
            if column.onupdate is not None and column.onupdate.is_clause_element and column not in set(given)
        }

    def _defaults(self, kind: Literal["default", "onupdate"]) -> dict[Column[Any], Any]:
        found: dict[Column[Any], Any] = {}
        for column in self.table.columns:
            default: Any = getattr(column, kind)
            if default is None:
                continue
            if default.is_scalar:
                found[column] = lambda value=default.arg: value
            elif default.is_callable:
                found[column] = lambda call=default.arg: call(None)
        return found

    def _column(self, name: str, row: int | None) -> Column[Any]:
        try:
            return self._by_name[name]
        except KeyError:
            where = "" if row is None else f"row {row}: "
            known = ", ".join(sorted(self._by_name))
            message = f"{where}{self.name} has no column {name!r}; it has {known}"
            raise BulkError(message, row_index=row) from None


def array_type(column: Column[Any]) -> str:
    """Return the type of an array of the column's values, as a cast in SQL.

    A cast to varchar(n) cuts silently; an assignment from text to the column is an error, as it should be.
    """
    type_ = column.type
    if isinstance(type_, String) and not isinstance(type_, Enum):
        return "text[]"
    return f"{type_.dialect_impl(_DIALECT).compile(_DIALECT)}[]"


def fits_unnest(columns: Iterable[Column[Any]]) -> bool:
    """Tell whether unnest() can carry the columns: it flattens arrays of arrays."""
    return not any(isinstance(column.type, ARRAY) for column in columns)


def _bind(
    columns: Sequence[Column[Any]], records: list[tuple[Any, ...]], positions: list[int]
) -> list[tuple[Any, ...]]:
    """Turn Python values into what the driver takes, with the columns' own types."""
    processors = [column.type.dialect_impl(_DIALECT).bind_processor(_DIALECT) for column in columns]
    if not any(processors):
        return records
    bound = []
    for record, position in zip(records, positions, strict=True):
        try:
            bound.append(
                tuple(
                    value if process is None else process(value)
                    for process, value in zip(processors, record, strict=True)
                )
            )
        except Exception as error:  # a type's own conversion can raise whatever it likes
            raise BulkError(f"row {position}: {error}", row_index=position) from error
    return bound
