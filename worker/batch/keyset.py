"""The order in which a table is walked, and the cursor that records the place in it.

A cursor is the key of the last row done, as JSON. If all parts of the key have one direction, the condition "after the
cursor" is a row comparison, which PostgreSQL serves from one index range; else it is expanded by parts.

Integers, UUIDs and texts come back from Python unchanged. All other types go into the cursor as the server writes them,
and the server casts them to the column's own type. Otherwise a walk could skip rows or never end: the last microsecond
of 9999 is infinity to asyncpg, a model's scale can round a numeric, a citext compares differently from a varchar.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CHAR,
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Enum,
    Executable,
    Float,
    Integer,
    Join,
    Numeric,
    Select,
    String,
    Table,
    Text,
    UnaryExpression,
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import Label
from sqlalchemy.sql.operators import asc_op, desc_op
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from worker.db.statement_internals import is_same_table
from worker.errors import CursorMismatch, UnsupportedStatement

ExecutableT = TypeVar("ExecutableT", bound=Executable)

#: Begins the names of our parameters, so that they differ from those of the statement.
_PREFIX = "longhaul_"


#: The size of a batch as a parameter: the statement stays the same when the size changes.
SIZE: BindParameter[int] = bindparam(f"{_PREFIX}size", type_=Integer)


@dataclass(frozen=True)
class KeyPart:
    """One column of the key: its expression in the statement, and its type in the catalog."""

    expression: ColumnElement[Any]
    column: Column[Any]
    descending: bool
    kind: str
    sql_type: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether its values survive Python and JSON unchanged."""
        return (self.kind, self.sql_type) in _EXACT

    @property
    def cursor_expression(self) -> ColumnElement[str]:
        """The value as the server writes it, independent of the session's DateStyle."""
        whole: ColumnElement[Any] = literal_column("'{}'::text[]")
        return func.pg_catalog.to_jsonb(self.expression, type_=JSONB).op("#>>", return_type=Text())(whole)

    def read(self, value: Any) -> Any:
        """Return the parameter's value for a value of a cursor, which anyone may have written to the ledger.

        Raises:
            ValueError: It is no value of this type.
        """
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"a {type(value).__name__} is neither a number nor a text")
        if not self.is_exact or self.kind == "text":
            return str(value)
        if self.kind == "uuid":
            return UUID(str(value))
        if not _INTEGER.fullmatch(str(value)) or not -1 << (bits := _BITS[self.sql_type]) <= int(value) < 1 << bits:
            raise ValueError(f"{value!r} is no {self.sql_type}")
        return int(value)

    def parameter(self, name: str) -> ColumnElement[Any]:
        """Return the bound parameter for a cursor's value."""
        if self.is_exact:
            return bindparam(name, type_=_EXACT[self.kind, self.sql_type])
        return cast(bindparam(name, type_=Text()), _CatalogType(self.sql_type))

    def literal(self, value: Any) -> ColumnElement[Any]:
        """Return a value of a cursor as an expression."""
        if self.is_exact:
            return literal(value, _EXACT[self.kind, self.sql_type])
        return cast(literal(value, Text()), _CatalogType(self.sql_type))


class _CatalogType(UserDefinedType[Any]):
    """A type by its name in the catalog."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **options: Any) -> str:
        return self.name


_EXACT: dict[tuple[str, str], TypeEngine[Any]] = {
    ("int", "smallint"): BigInteger(),
    ("int", "integer"): BigInteger(),
    ("int", "bigint"): BigInteger(),
    ("uuid", "uuid"): Uuid(),
    ("text", "text"): Text(),
    ("text", "character varying"): Text(),
}

_INTEGER = re.compile(r"-?[0-9]{1,19}")
_BITS = {"smallint": 15, "integer": 31, "bigint": 63}


class Keyset:
    """The order of a walk.

    Args:
        parts: The columns of the key, the most significant first.
        statement: The statement that is walked; its `schema_translate_map` holds for the key's own statements, too.
    """

    def __init__(self, parts: Sequence[KeyPart], statement: Executable | None = None) -> None:
        self.parts = tuple(parts)
        options = {} if statement is None else statement.get_execution_options()
        self._schemas: Mapping[str | None, str | None] = options.get("schema_translate_map") or {}

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        """The key's columns as expressions of the statement."""
        return [part.expression for part in self.parts]

    @property
    def table(self) -> Table:
        """The table that the key belongs to."""
        table = self.parts[0].column.table
        assert isinstance(table, Table)  # noqa: S101
        return table

    @property
    def schema(self) -> str | None:
        """The schema of the table, translated by the statement's options; None for the search path."""
        return self._schemas.get(self.table.schema, self.table.schema)

    def in_schema(self, statement: ExecutableT) -> ExecutableT:
        """Return a statement about the key's table that finds it in the schema of the walk's statement."""
        return statement.execution_options(schema_translate_map=self._schemas) if self._schemas else statement

    def describe(self) -> list[list[str]]:
        """Return [column, type, direction] for each part, as stored in the ledger."""
        return [
            [
                f"{part.column.table.fullname}.{part.column.name}",
                part.kind,
                "desc" if part.descending else "asc",
            ]
            for part in self.parts
        ]

    def order_by(self, *, reverse: bool = False) -> list[UnaryExpression[Any]]:
        """Return the ORDER BY of the walk, or of the walk backwards."""
        return [part.expression.desc() if part.descending != reverse else part.expression.asc() for part in self.parts]

    def after(self) -> ColumnElement[bool]:
        """Return the condition "after the cursor", with the parameters of `values("after", key)`."""
        return self._beyond("after", inclusive=False)

    def up_to(self, name: str = "upper") -> ColumnElement[bool]:
        """Return the condition "at or before a key", with the parameters of `values(name, key)`."""
        return self._beyond(name, inclusive=True)

    def at_or_after(self, key: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition "at or after this key", which is a cursor, in the order of the walk."""
        bound = [part.literal(value) for part, value in zip(self.parts, self.decode(key), strict=True)]
        up = [not part.descending for part in self.parts]
        if len(set(up)) == 1:
            left: Any = self.parts[0].expression if len(bound) == 1 else tuple_(*self.columns)
            return _compare(left, bound[0] if len(bound) == 1 else tuple_(*bound), up=up[0], inclusive=True)
        choices: list[ColumnElement[bool]] = []
        for index, part in enumerate(self.parts):
            equal = [earlier.expression == value for earlier, value in zip(self.parts[:index], bound, strict=False)]
            is_last = index == len(bound) - 1
            choices.append(and_(*equal, _compare(part.expression, bound[index], up=up[index], inclusive=is_last)))
        return or_(*choices)

    def among(self, keys: Sequence[Sequence[Any]]) -> ColumnElement[bool]:
        """Return the condition "one of these keys", which are cursors, of which there may be any number.

        Raises:
            CursorMismatch: The values of one do not have the key's types.
        """
        keys = [self.fit(key) for key in keys]
        texts = [bindparam(None, [str(key[index]) for key in keys], ARRAY(Text())) for index in range(len(self.parts))]
        if len(texts) > 1:
            return self._among(texts)
        kind = self.parts[0].sql_type
        given = func.pg_catalog.unnest(texts[0]).table_valued(column("key_0", Text())).render_derived(name="given")
        read = select(func.pg_catalog.array_agg(cast(given.c.key_0, _CatalogType(kind)))).scalar_subquery()
        # One array, made once for the statement: an index finds each of its keys, however many there are.
        return self.columns[0] == any_(func.coalesce(read, cast(literal("{}"), _CatalogType(f"{kind}[]"))))

    def one_of(self) -> ColumnElement[bool]:
        """Return the condition "one of many keys", with the parameters of `array_values`."""
        return self._among(
            [bindparam(f"{_PREFIX}keys_{index}", type_=ARRAY(Text())) for index in range(len(self.parts))]
        )

    def _among(self, texts: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition "one of many keys", from an array of the texts of each part: one parameter each."""
        names = [f"key_{index}" for index in range(len(self.parts))]
        # With several arrays, the parser expands unnest() itself; with one, it is looked up in the search path.
        unnest = func.pg_catalog.unnest if len(texts) == 1 else func.unnest
        given = unnest(*texts).table_valued(*(column(name, Text()) for name in names)).render_derived(name="given")
        keys = [cast(given.c[name], _CatalogType(part.sql_type)) for name, part in zip(names, self.parts, strict=True)]
        return tuple_(*self.columns).in_(select(*keys))

    def array_values(self, keys: Sequence[Sequence[Any]]) -> dict[str, list[str]]:
        """Return the parameters of `one_of`, from cursors."""
        return {f"{_PREFIX}keys_{index}": [str(key[index]) for key in keys] for index in range(len(self.parts))}

    def values(self, name: str, key: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of `after` (name "after") or `up_to`."""
        return {f"{_PREFIX}{name}_{index}": value for index, value in enumerate(key)}

    def over(self, columns: Sequence[Any]) -> Keyset:
        """Return this order over the columns of a subquery."""
        parts = [replace(part, expression=column) for part, column in zip(self.parts, columns, strict=True)]
        copied = Keyset(parts)
        copied._schemas = self._schemas
        return copied

    def typed(self, types: Mapping[str, str]) -> Keyset:
        """Return this order with the catalog's types of its columns, by column name."""
        typed = Keyset([replace(part, sql_type=types[part.column.name]) for part in self.parts])
        typed._schemas = self._schemas
        return typed

    @property
    def cursor_columns(self) -> list[ColumnElement[Any]]:
        """The key's columns as they go into a cursor."""
        return [part.expression if part.is_exact else part.cursor_expression for part in self.parts]

    def encode(self, key: Sequence[Any]) -> list[Any]:
        """Return a key, read by `cursor_columns`, as JSON values."""
        return [value if isinstance(value, int) else str(value) for value in key]

    def decode(self, cursor: Sequence[Any]) -> list[Any]:
        """Return the parameters' values of a key from JSON values.

        Raises:
            CursorMismatch: The values do not have the key's types.
        """
        try:
            return [part.read(value) for part, value in zip(self.parts, cursor, strict=True)]
        except (ValueError, TypeError) as error:
            raise CursorMismatch(
                f"the cursor {reprlib.repr(cursor)} is no key of this walk, whose key is {self.describe()}. If the "
                f"ledger was changed by hand, restore worker.step; else enqueue the job under another run id",
                key=", ".join(f"{name} ({kind})" for name, kind, _ in self.describe()),
            ) from error

    def fit(self, key: Sequence[Any]) -> list[Any]:
        """Return a key that was written by hand as a cursor: a number may stand for a text.

        Raises:
            CursorMismatch: The values do not have the key's types.
        """
        try:
            self.decode(key)
        except CursorMismatch:
            texts = [value if value is None or isinstance(value, bool) else str(value) for value in key]
            self.decode(texts)
            return texts
        return list(key)

    def _beyond(self, name: str, *, inclusive: bool) -> ColumnElement[bool]:
        bound = [part.parameter(f"{_PREFIX}{name}_{index}") for index, part in enumerate(self.parts)]
        # Going up, "after" is >, and "up to" is <=; for a descending part both are the other way round.
        up = [part.descending == inclusive for part in self.parts]
        if len(self.parts) == 1 or len(set(up)) == 1:
            left: Any = self.parts[0].expression if len(self.parts) == 1 else tuple_(*self.columns)
            right: Any = bound[0] if len(self.parts) == 1 else tuple_(*bound)
            return _compare(left, right, up=up[0], inclusive=inclusive)
        # Mixed directions: (a > x) or (a = x and b < y) or ..., and the first part alone for the index.
        choices: list[ColumnElement[bool]] = []
        for index, part in enumerate(self.parts):
            equal = [earlier.expression == value for earlier, value in zip(self.parts[:index], bound, strict=False)]
            last = inclusive and index == len(self.parts) - 1
            choices.append(and_(*equal, _compare(part.expression, bound[index], up=up[index], inclusive=last)))
        return and_(_compare(self.parts[0].expression, bound[0], up=up[0], inclusive=True), or_(*choices))


def key_part(expression: Any, column: Column[Any]) -> KeyPart:
    """Return the part of a key for an expression, which may have a direction.

    Raises:
        UnsupportedStatement: A cursor cannot hold its type.
    """
    descending = False
    if isinstance(expression, UnaryExpression) and expression.modifier in (asc_op, desc_op):
        descending = expression.modifier is desc_op
        expression = expression.element
    return KeyPart(expression, column, descending, _kind(column))


def walked_tables(statement: Select[Any]) -> list[Any]:
    """Return the tables and aliases that a statement selects from, including those within joins."""
    found: list[Any] = []
    sources = list(statement.get_final_froms())
    while sources:
        source = sources.pop()
        if isinstance(source, Join):
            sources += [source.left, source.right]
        else:
            found.append(source)
    return found


def is_of_tables(part: KeyPart, tables: Sequence[Any]) -> bool:
    """Return whether a part of a key belongs to one of these tables or aliases."""
    return any(is_same_table(part.expression.table, table) for table in tables)


def underlying_column(expression: Any) -> Column[Any] | None:
    """Return the table's column behind an attribute, an alias's column or a label; None for other expressions."""
    if isinstance(expression, UnaryExpression) and expression.modifier in (asc_op, desc_op):
        expression = expression.element
    expression = getattr(expression, "__clause_element__", lambda: expression)()
    if isinstance(expression, Label):
        expression = expression.element
    found = [column for column in getattr(expression, "base_columns", ()) if isinstance(column, Column)]
    if len(found) == 1 and isinstance(found[0].table, Table):
        return found[0]
    return None


def _compare(left: Any, right: Any, *, up: bool, inclusive: bool) -> ColumnElement[bool]:
    if up:
        return left >= right if inclusive else left > right  # type: ignore[no-any-return]
    return left <= right if inclusive else left < right  # type: ignore[no-any-return]


def _kind(column: Column[Any]) -> str:
    type_: TypeEngine[Any] = column.type
    kinds: list[tuple[type[TypeEngine[Any]], str]] = [
        (Integer, "int"),
        (BigInteger, "int"),
        (Uuid, "uuid"),
        (Date, "date"),
        (DateTime, "timestamptz" if getattr(type_, "timezone", False) else "timestamp"),
        (Numeric, "numeric"),
        (String, "text"),
    ]
    # CHAR(n) is compared without its padding, and read with it.
    if not isinstance(type_, Enum | Float | TypeDecorator | CHAR):
        for known, kind in kinds:
            if isinstance(type_, known):
                return kind
    raise UnsupportedStatement(
        f"{column} is {type_!r}, which a cursor cannot hold: walk by a unique key of int, bigint, text, uuid, "
        f"date, timestamp or numeric columns, with by=..."
    )
