"""The table that a bulk operation writes to, with its columns under the names that rows give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Table, inspect
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from worker.errors import BulkError

#: SQLAlchemy's dialect with its driver: some types look at the driver to convert a value.
DIALECT = asyncpg_dialect(dbapi=asyncpg_dialect.import_dbapi())  # type: ignore[no-untyped-call]
_PREPARER = DIALECT.identifier_preparer


class BulkTarget:
    """The table of a mapped class, or a `Table`; `make_target` makes it once for each.

    Args:
        entity: a mapped class or a `Table`.

    Attributes:
        entity: the argument.
        mapper: the mapper of a mapped class; None for a `Table`.
        table: the table.
        name: the table's name, quoted if necessary.
        columns_by_name: the columns, by attribute name and by column key.
        names: the name of each column in a row for SQLAlchemy: attribute name or column key.
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
        self.columns_by_name: dict[str, Column[Any]] = {column.key: column for column in self.table.columns}
        self.names: dict[Column[Any], str] = {column: column.key for column in self.table.columns}
        if self.mapper is not None:
            for attribute in self.mapper.column_attrs:
                column = attribute.columns[0]
                if isinstance(column, Column) and column.table is self.table:
                    self.columns_by_name[attribute.key] = column
                    self.names[column] = attribute.key
        self._statements: dict[tuple[Any, ...], str] = {}
        self.name = str(_PREPARER.format_table(self.table))

    @property
    def is_simple(self) -> bool:
        """Whether a row of the entity is a row of one table."""
        return self.mapper is None or len(self.mapper.tables) == 1

    @property
    def version(self) -> Column[Any] | None:
        """The column by which the ORM counts the versions of a row; None if there is none."""
        found = None if self.mapper is None else self.mapper.version_id_col
        return found if isinstance(found, Column) else None

    def quoted(self, columns: Iterable[Column[Any]]) -> list[str]:
        """Return the columns' names, quoted if necessary."""
        return [_PREPARER.format_column(column) for column in columns]

    def cached(self, key: tuple[Any, ...], build: Callable[[], str]) -> str:
        """Return the SQL of an operation, built once for its columns."""
        hashable = tuple(tuple(part) if isinstance(part, list) else part for part in key)
        if hashable not in self._statements:
            self._statements[hashable] = build()
        return self._statements[hashable]

    def columns(self, names: Iterable[str | Any] | None, default: Sequence[Column[Any]]) -> list[Column[Any]]:
        """Return the columns that a caller names, as strings or attributes.

        Raises:
            BulkError: There is no column of that name.
        """
        if names is None:
            return list(default)
        return [self.column(getattr(name, "key", name), None) for name in names]

    def column(self, name: str, row: int | None) -> Column[Any]:
        """Return the column that a row names.

        Raises:
            BulkError: There is no column of that name; `row` is the position of the row that names it.
        """
        try:
            return self.columns_by_name[name]
        except KeyError:
            where = "" if row is None else f"row {row}: "
            known = ", ".join(sorted(self.columns_by_name))
            message = f"{where}{self.name} has no column {name!r}; it has {known}"
            raise BulkError(message, row_index=row) from None


@lru_cache(maxsize=256)
def make_target(entity: Any) -> BulkTarget:
    """Return the target of a mapped class or a `Table`.

    Raises:
        BulkError: The entity is neither.
    """
    return BulkTarget(entity)
