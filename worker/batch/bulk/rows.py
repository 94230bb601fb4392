"""Rows for bulk operations: dicts or ORM objects, made into columns and records of database values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, Literal

from sqlalchemy import ARRAY, CHAR, Column, Enum, String, Table, inspect
from sqlalchemy.dialects.postgresql import BIT, CITEXT
from sqlalchemy.dialects.postgresql import dialect as postgresql_dialect
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper
from sqlalchemy.types import TypeDecorator, TypeEngine

from worker.errors import BulkError

_DIALECT = asyncpg_dialect()  # type: ignore[no-untyped-call]
_PREPARER = postgresql_dialect().identifier_preparer  # type: ignore[no-untyped-call]


#: Rows of a bulk operation: dicts or objects; or a dict of columns, a list of values for each.
Rows = Sequence[Any] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Group:
    """Rows that give the same columns: what one statement can take.

    Attributes:
        columns: that they give, or that are filled in.
        arrays: database values, a list for each column.
        positions: of each row in the list that was given.
        named: the columns that the rows themselves name.
    """

    columns: list[Column[Any]]
    arrays: list[list[Any]]
    positions: Sequence[int]
    named: frozenset[Column[Any]]

    @property
    def records(self) -> list[tuple[Any, ...]]:
        """The same values, a tuple for each row."""
        return list(zip(*self.arrays, strict=True))

    def __len__(self) -> int:
        return len(self.positions)


class BulkTarget:
    """The table that a bulk operation writes to; made once for each by `make_target`.

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
        self._statements: dict[tuple[Any, ...], str] = {}

    @property
    def name(self) -> str:
        """The table's name, quoted where it has to be."""
        return _PREPARER.format_table(self.table)

    @property
    def is_simple(self) -> bool:
        """Whether a row of the entity is a row of one table."""
        return self.mapper is None or len(self.mapper.tables) == 1

    def cached(self, about: tuple[Any, ...], build: Callable[..., str], *arguments: Any) -> str:
        """Return the SQL of an operation, built once for the columns that it is about."""
        key = tuple(tuple(part) if isinstance(part, list) else part for part in about)
        if key not in self._statements:
            self._statements[key] = build(self, *arguments)
        return self._statements[key]

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

    def as_dicts(self, rows: Rows) -> list[dict[str, Any]]:
        """Return rows as dicts by attribute name; of ORM objects, what is set on them.

        Raises:
            BulkError: a row is neither a mapping nor an object of this entity.
        """
        if isinstance(rows, Mapping):
            return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
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

    def groups(self, rows: Rows, *, fill: Literal["default", "onupdate"] | None) -> list[Group]:
        """Return the rows as records of database values, parted by the columns that they give.

        Args:
            rows: dicts or ORM objects; or a dict of columns, a list of values for each.
            fill: what fills in columns that a row does not name: the columns' Python `default`, as in an INSERT,
                their `onupdate`, or nothing.

        Raises:
            BulkError: a row is of the wrong kind, or names a column that is not there.
        """
        made = self._made(fill)
        if isinstance(rows, Mapping):
            return self._of_columns(rows, made)
        alike = self._alike(rows, made)
        if alike is not None:
            return [alike]
        parted: dict[tuple[str, ...], list[int]] = {}
        dicts = self.as_dicts(rows)
        for index, row in enumerate(dicts):
            parted.setdefault(tuple(row), []).append(index)
        return [
            self._group(list(names), [dicts[place] for place in places], places, made)
            for names, places in parted.items()
        ]

    def _alike(self, rows: Sequence[Any], made: Mapping[Column[Any], Callable[[], Any]]) -> Group | None:
        """Return rows that are dicts with the same names, the usual case; None where they are not."""
        if not rows or type(rows[0]) is not dict:
            return None
        names = list(rows[0])
        if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(names)}:
            return None
        try:
            return self._group(names, rows, range(len(rows)), made)
        except KeyError:
            return None  # as many names, but other ones

    def _of_columns(
        self, given: Mapping[str, Sequence[Any]], made: Mapping[Column[Any], Callable[[], Any]]
    ) -> list[Group]:
        lengths = {name: len(values) for name, values in given.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise BulkError(f"bulk: a row has a value in each column, but {told}")
        if not any(lengths.values()):
            return []
        return [self._bound(list(given), [list(each) for each in given.values()], range(count_rows(given)), made)]

    def _group(
        self,
        names: Sequence[str],
        rows: Sequence[dict[str, Any]],
        positions: Sequence[int],
        made: Mapping[Column[Any], Callable[[], Any]],
    ) -> Group:
        return self._bound(names, [list(map(itemgetter(name), rows)) for name in names], positions, made)

    def _bound(
        self,
        names: Sequence[str],
        arrays: list[list[Any]],
        positions: Sequence[int],
        made: Mapping[Column[Any], Callable[[], Any]],
    ) -> Group:
        columns = [self._column(name, positions[0]) for name in names]
        named = frozenset(columns)
        for column, make in made.items():
            if column not in named:
                columns.append(column)
                arrays.append([make() for _ in positions])
        bound = [bind_values(column, array, positions) for column, array in zip(columns, arrays, strict=True)]
        return Group(columns, bound, positions, named)

    @property
    def casts_cut(self) -> bool:
        """Whether SQLAlchemy's own statements would cut what is too long: it casts arrays of varchar(n) to that."""
        types = [_plain(column.type) for column in self.table.columns]
        return any(isinstance(type_, ARRAY) and getattr(type_.item_type, "length", None) for type_ in types)

    def needs_statement(self) -> bool:
        """Whether a column's value is made by SQL that only a statement can evaluate, or is the server's alone."""
        return any(
            (column.default is not None and not (column.default.is_scalar or column.default.is_callable))
            or (column.identity is not None and column.identity.always)
            for column in self.table.columns
        )

    def computed_on_update(self, given: Iterable[Column[Any]]) -> dict[Column[Any], str]:
        """Return the SQL of each `onupdate` expression, e.g. `now()`, of columns that are not given."""
        return {
            column: str(column.onupdate.arg.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
            for column in self.table.columns
            if column.onupdate is not None and column.onupdate.is_clause_element and column not in set(given)
        }

    def _made(self, kind: Literal["default", "onupdate"] | None) -> dict[Column[Any], Callable[[], Any]]:
        """Return what makes a value for each column that has one of that kind in Python."""
        if kind is None:
            return {}
        found: dict[Column[Any], Callable[[], Any]] = {}
        for column in self.table.columns:
            default: Any = getattr(column, kind)
            if default is not None and default.is_scalar:
                found[column] = partial(_as_it_is, default.arg)
            elif default is not None and default.is_callable:
                found[column] = partial(self._call, column, default.arg)
        mapper = self.mapper
        if kind == "default" and mapper is not None and mapper.polymorphic_identity is not None:
            which = mapper.polymorphic_on  # of single-table inheritance: the ORM fills it in, and so do we
            if isinstance(which, Column) and which.table is self.table:
                found[which] = partial(_as_it_is, mapper.polymorphic_identity)
        return found

    def _call(self, column: Column[Any], call: Callable[[Any], Any]) -> Any:
        try:
            return call(None)
        except AttributeError as error:
            raise BulkError(
                f"{self.name}: the default of {column.name} looks at the statement that it is for ({error}), which a "
                f"bulk operation has not: give the rows a value for it"
            ) from error

    def _column(self, name: str, row: int | None) -> Column[Any]:
        try:
            return self._by_name[name]
        except KeyError:
            where = "" if row is None else f"row {row}: "
            known = ", ".join(sorted(self._by_name))
            message = f"{where}{self.name} has no column {name!r}; it has {known}"
            raise BulkError(message, row_index=row) from None


def count_rows(rows: Rows) -> int:
    """Return how many rows there are."""
    return len(next(iter(rows.values()), ())) if isinstance(rows, Mapping) else len(rows)


@lru_cache(maxsize=256)
def make_target(entity: Any) -> BulkTarget:
    """Return the target of a mapped class or a `Table`.

    Raises:
        BulkError: it is neither.
    """
    return BulkTarget(entity)


def array_type(column: Column[Any]) -> str:
    """Return the type of an array of the column's values, as a cast in SQL.

    A cast to varchar(n) cuts silently; an assignment from text to the column is an error, as it should be.
    """
    return f"{_type_name(column.type)}[]"


def fits_unnest(columns: Iterable[Column[Any]]) -> bool:
    """Tell whether unnest() can propagate the columns: it flattens arrays of arrays."""
    return not any(isinstance(_plain(column.type), ARRAY) for column in columns)


def _as_it_is(value: Any) -> Any:
    return value


def _plain(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that a decorator is around, as PostgreSQL's dialect has it."""
    while isinstance(type_, TypeDecorator):
        type_ = type_.load_dialect_impl(_DIALECT)
    return type_


def _type_name(type_: TypeEngine[Any]) -> str:
    plain = _plain(type_)
    if isinstance(plain, ARRAY):
        return f"{_type_name(plain.item_type)}{'[]' * (plain.dimensions or 1)}"
    if isinstance(plain, CHAR):
        return "bpchar"  # without its length, which a cast would cut to, but compared without padding
    if isinstance(plain, String) and not isinstance(plain, Enum | CITEXT):
        return "text"
    if isinstance(plain, BIT):
        return "varbit"
    return str(plain.dialect_impl(_DIALECT).compile(_DIALECT))


def bind_values(column: Column[Any], values: list[Any], positions: Sequence[int]) -> list[Any]:
    """Turn Python values into what the driver takes, with the column's own type.

    Raises:
        BulkError: one cannot be; it names the row by its position.
    """
    process = column.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
    if process is None:
        return values
    bound: list[Any] = []
    try:
        bound.extend(map(process, values))
    except Exception as error:  # a type's own conversion can raise whatever it likes
        position = positions[len(bound)]
        raise BulkError(f"row {position}: {error}", row_index=position) from error
    return bound
