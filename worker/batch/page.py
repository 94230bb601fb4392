"""Pages of rows from a select: read by the driver if a row is plain columns, by SQLAlchemy if it is an object.

asyncpg makes a record in C at a tenth of the cost of a row of SQLAlchemy. It is used if no column has a conversion of
SQLAlchemy's own, and if the key is among the columns, so that nothing has to be cut off.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import asyncpg
from pydantic_core import to_jsonable_python
from sqlalchemy import Select, inspect
from sqlalchemy.orm.attributes import instance_state

from worker.batch.compiled import CompiledStatement
from worker.batch.keyset import Keyset
from worker.batch.source import Page
from worker.batch.transaction import BatchTransaction
from worker.db.statement_internals import cut_rows, is_same_table, requires_unique, rewrites_statements

_WEIGHED_ROWS = 8


class Row(asyncpg.Record):  # type: ignore[misc]
    """A row made by the driver. It behaves as a row of SQLAlchemy, and has its columns by name as well: `row["id"]`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            if name in ("count", "index"):  # methods of tuple, unless a column has that name
                return getattr(tuple(self), name)
            raise AttributeError(f"the row has no column {name!r}; it has {', '.join(self.keys())}") from None

    @property
    def _fields(self) -> tuple[str, ...]:
        return tuple(self.keys())

    @property
    def _mapping(self) -> Mapping[str, Any]:
        return dict(self.items())

    def _asdict(self) -> dict[str, Any]:
        return dict(self.items())

    def _tuple(self) -> tuple[Any, ...]:
        return tuple(self)

    def __contains__(self, value: object) -> bool:
        return value in tuple(self)  # asyncpg's record checks for the name of a column instead

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __copy__(self) -> Row:
        return self

    def __reduce__(self) -> Any:
        return _restore, (self._fields, tuple(self))  # asyncpg's records cannot be pickled


def _restore(names: Sequence[str], values: Sequence[Any]) -> Any:
    return cut_rows([values], names)[0]


@lru_cache(maxsize=1000)
def row_class(names: tuple[str | None, ...]) -> type[Row]:
    """Return the class for rows with these columns, whose attributes are read ten times as fast as by `__getattr__`."""
    found: dict[str, Any] = {"__slots__": ()}
    taken = {*dir(Row), *(name for name, count in Counter(names).items() if count > 1)}
    for place, name in enumerate(names):
        if name is not None and name not in taken:
            found[name] = property(itemgetter(place))
    return type("Row", (Row,), found)


#: Names of columns that a method of asyncpg's record would hide.
_HIDDEN = frozenset({"get", "items", "keys", "values"})

Sequence.register(Row)  # so that `match` can destructure a row


class RowShape:
    """A select together with the key of its rows.

    Args:
        statement: The select of the job.
        keyset: The order of the walk; None for a stream without one.
    """

    def __init__(self, statement: Select[Any], keyset: Keyset | None) -> None:
        described = statement.column_descriptions
        self._width = len(described)
        entity = described[0].get("entity")
        self.is_entity = self._width == 1 and entity is not None and described[0]["expr"] is entity
        self._names = [column["name"] for column in described]
        #: The class that the driver makes its rows of.
        self.row_class = row_class(tuple(self._names))
        self._keyset = keyset
        #: Whether the keys of objects are their identities, so that no column is added for them.
        self.has_identities = False
        self._hidden = 0
        self.statement = statement
        identity_places = _identity_places(entity, keyset) if self.is_entity and keyset else None
        if identity_places is not None:
            self.has_identities = True
            self._key_places = self._cursor_places = identity_places
        else:
            self._add_key(described)

    def _add_key(self, described: Sequence[Any]) -> None:
        """Find the columns of the key among those of the statement, and add the others."""
        statement, keyset = self.statement, self._keyset
        hidden: list[Any] = []
        chosen = [_clause(column["expr"]) for column in described]

        def place(expression: Any) -> int:
            wanted = _clause(expression)
            for index, clause in enumerate(chosen):
                if not self.is_entity and clause is not None and clause.compare(wanted):
                    return index
            hidden.append(expression)
            return self._width + len(hidden) - 1

        parts = keyset.parts if keyset else ()
        self._key_places = [place(part.expression) for part in parts]
        self._cursor_places = [
            key if part.is_exact else place(part.cursor_expression)
            for key, part in zip(self._key_places, parts, strict=True)
        ]
        self._hidden = len(hidden)
        self.statement = statement.add_columns(*hidden) if hidden else statement

    @property
    def may_be_plain(self) -> bool:
        """Whether the driver's rows can be passed to the job unchanged."""
        return not self.is_entity and not self._hidden

    def fits(self, attributes: Sequence[Any], dialect: Any) -> bool:
        """Return whether the driver's rows have the same names and values as SQLAlchemy's.

        Args:
            attributes: The server's description of the columns.
            dialect: The dialect of the connection.
        """
        if not self.may_be_plain or not _HIDDEN.isdisjoint(self._names):
            return False
        if [attribute.name for attribute in attributes] != self._names:
            return False
        columns = list(self.statement.selected_columns)
        return len(columns) == len(attributes) and all(
            column.type.dialect_impl(dialect).result_processor(dialect, attribute.type.oid) is None
            for column, attribute in zip(columns, attributes, strict=True)
        )

    def page(self, found: Sequence[Any]) -> Page[Any]:
        """Return the rows in the form that jobs get, and their keys."""
        if not found:
            return Page()
        if self.has_identities:
            return self.page_of_objects([row[0] for row in found])
        return self._page(self._shown(found), found)

    def page_of_objects(self, objects: Sequence[Any]) -> Page[Any]:
        """Return objects, whose keys are their identities, and their keys."""
        # Now: the job may change the key of an object, or make the object transient.
        return self._page(objects, _identities(objects)) if objects else Page()

    def _page(self, shown: Sequence[Any], keyed: Sequence[Sequence[Any]]) -> Page[Any]:
        first, last = keyed[0], keyed[-1]
        cursor = [last[place] for place in self._cursor_places]
        return Page(
            shown,
            self._keyset.encode(cursor) if self._keyset else None,
            [first[place] for place in self._key_places],
            [last[place] for place in self._key_places],
            partial(self._cursors, keyed),
        )

    def _cursors(self, keyed: Sequence[Sequence[Any]]) -> list[list[Any]]:
        keyset, places = self._keyset, self._cursor_places
        return [keyset.encode([row[place] for place in places]) for row in keyed] if keyset else []

    def _shown(self, found: Sequence[Any]) -> Sequence[Any]:
        if self._width == 1:
            return [row[0] for row in found]
        if not self._hidden:
            return found
        return cut_rows(found, found[0]._fields[: self._width])


class PageReader:
    """A select that is executed repeatedly with other parameters: compiled once, and prepared as rarely as possible.

    Args:
        shape: The shape of its rows.
        statement: The select, with the key's columns and conditions.
        dialect: The dialect of the connection.
    """

    def __init__(self, shape: RowShape, statement: Select[Any], dialect: Any) -> None:
        self._shape = shape
        self._statement = statement
        self._dialect = dialect
        self._driver_statement = CompiledStatement(statement, dialect) if shape.may_be_plain else None
        self._prepared: Any = None

    async def read(self, transaction: BatchTransaction, values: Mapping[str, Any]) -> Page[Any]:
        """Return the rows of the statement with these parameters."""
        if self._driver_statement is not None and not rewrites_statements(transaction.connection):
            sql, arguments = self._driver_statement.bind(values)
            raw = await transaction.driver()
            if self._prepared is None or not transaction.keeps_prepared:
                prepared = await raw.prepare(sql, record_class=self._shape.row_class)
                if self._shape.fits(prepared.get_attributes(), self._dialect):
                    self._prepared = prepared
                else:
                    self._driver_statement = self._prepared = None
            if self._prepared is not None:
                return self._shape.page(await self._prepared.fetch(*arguments))
        result = await transaction.session.execute(self._statement, values)
        if self._shape.is_entity and (not self._shape.has_identities or requires_unique(result)):
            result = result.unique()  # joinedload of a collection repeats its owner
        if not self._shape.has_identities:
            return self._shape.page(result.all())
        objects: Sequence[Any] = result.scalars().all()
        if len(set(map(id, objects))) < len(objects):  # a join repeats them; unique() would cost a third of the read
            objects = list({id(one): one for one in objects}.values())
        return self._shape.page_of_objects(objects)


def jsonable(row: Any) -> Any:
    """Return a row as JSON values for display: columns by name; for an object, its loaded columns."""
    if isinstance(row, Row):
        values: Any = dict(row.items())
    elif hasattr(row, "_mapping"):
        values = dict(row._mapping)
    elif (state := inspect(row, raiseerr=False)) is not None and hasattr(state, "mapper"):
        known = {attribute.key for attribute in state.mapper.column_attrs}
        values = {key: value for key, value in state.dict.items() if key in known}
    else:
        values = row
    try:
        return to_jsonable_python(values, fallback=str, inf_nan_mode="strings")
    except Exception:  # noqa: BLE001 - a value that cannot be shown, e.g. its __str__ raises: show the others
        named = values if isinstance(values, dict) else {"value": values}
        return {str(name): _show(value) for name, value in named.items()}


def _show(value: Any) -> Any:
    try:
        return to_jsonable_python(value, fallback=str, inf_nan_mode="strings")
    except Exception:  # noqa: BLE001
        return value.hex() if isinstance(value, bytes) else f"<{type(value).__name__} that cannot be shown>"


def weigh_rows(rows: Sequence[Any]) -> float | None:
    """Return the average bytes of a row, measured on a sample of its Python values; None without rows."""
    if not rows:
        return None
    chosen = [rows[place] for place in range(0, len(rows), max(1, len(rows) // _WEIGHED_ROWS))]
    return sum(map(_weigh, chosen)) / len(chosen)


def _weigh(row: Any) -> int:
    if isinstance(row, str | bytes):
        return sys.getsizeof(row)
    if isinstance(row, asyncpg.Record | tuple | list):
        return sum(map(sys.getsizeof, row))
    values = row.__dict__.values() if hasattr(row, "__dict__") else row if isinstance(row, Sequence) else (row,)
    return sum(map(sys.getsizeof, values))


def _identities(objects: Sequence[Any]) -> list[tuple[Any, ...]]:
    states: Iterable[Any] = map(instance_state, objects)
    return [state.key[1] for state in states]


def _identity_places(entity: Any, keyset: Keyset) -> list[int] | None:
    """Return the places of the key's columns in the identity of an object; None if an object does not have them all."""
    described = inspect(entity)
    primary = list(described.mapper.primary_key)
    places: list[int] = []
    for part in keyset.parts:
        table = getattr(part.expression, "table", None)
        found = [place for place, column in enumerate(primary) if column is part.column]
        if not part.is_exact or not found or table is None or not is_same_table(table, described.selectable):
            return None
        places += found
    return places


def _clause(expression: Any) -> Any:
    """Return the SQL expression behind an attribute; None for a mapped class."""
    made = getattr(expression, "__clause_element__", lambda: expression)()
    return made if hasattr(made, "compare") else None
