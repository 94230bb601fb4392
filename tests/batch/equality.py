"""Every column type with hostile values, for the comparison of our paths with SQLAlchemy's."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import Any

import sqlalchemy as sa
from sqlalchemy import MetaData, func, type_coerce
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

SCHEMA = "equality"


class Base(DeclarativeBase):
    """Tables in a schema of their own."""

    metadata = MetaData(schema=SCHEMA)


class Mood(enum.Enum):
    """Names and values differ."""

    calm = "c"
    wild = "w"


class Secret(TypeDecorator[str]):
    """A bind expression, as that of pgcrypto in SQLAlchemy's documentation."""

    impl = sa.String
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return func.reverse(type_coerce(bindvalue, sa.String))

    def column_expression(self, column: Any) -> Any:
        return func.reverse(column)


class Shouted(TypeDecorator[str]):
    """A type that converts in Python, and rejects one value."""

    impl = sa.String(12)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value == "refused":
            raise ValueError("refused by the type")
        return value.upper() if value is not None else "NOTHING"


class Euros(TypeDecorator[Decimal]):
    """Another type in the database than in Python."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else int(value * 100)


class Money(UserDefinedType[Any]):
    """A type that SQLAlchemy does not know."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "NUMERIC(8, 3)"


class Lower(UserDefinedType[Any]):
    """A type of the application with a bind expression."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "TEXT"

    def bind_expression(self, bindvalue: Any) -> Any:
        return func.lower(bindvalue)


TEXTS = [
    "",
    "a",
    "ä\U0001f600",
    "it's",
    'a"b\\c',
    "%s %%",
    "$1",
    "NULL",
    "a\tb\nc",
    "  padded  ",
    "x" * 30,
    "a\x00b",
    "\ud800",
]
NUMBERS = [
    Decimal("1.005"),
    Decimal("-0"),
    Decimal("1e-20"),
    Decimal("123456.789"),
    Decimal("NaN"),
    Decimal("Infinity"),
    7,
    2.5,
]
FLOATS = [0.1 + 0.2, -0.0, float("nan"), float("inf"), 1e-320, 1.7e308, 3, Decimal("0.1")]
DATES = [date(2026, 2, 28), date.max, date.min, date(9999, 12, 30), "2026-01-01"]
MOMENTS = [datetime(2026, 3, 29, 2, 30, 0, 123456), datetime.max, datetime.min, datetime(1, 1, 1, 0, 0, 1)]
ZONED = [
    datetime(2026, 3, 29, 2, 30, tzinfo=UTC),
    datetime(1900, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime.max.replace(tzinfo=UTC),
    datetime(2026, 1, 1),
]
WEST = timezone(timedelta(hours=-3))
INTERVALS = [timedelta(0), timedelta(days=-1, seconds=5), timedelta(days=400, microseconds=1), timedelta.max]
DOCUMENTS = [{"a": [1, None, "ä"]}, [], "text", 5, True, 1.5, {"nested": {"k": "'"}}, "a\x00b"]
MORE_RANGES = [Range(empty=True), Range(None, None), Range(None, None, bounds="[]")]


@dataclass(frozen=True)
class Case:
    """A column type with values; None is added to them.

    Attributes:
        type: the column's type.
        values: in Python; some do not fit.
        key: whether the values can be looked up by equality.
    """

    type: TypeEngine[Any]
    values: Sequence[Any]
    key: bool = True


CASES: dict[str, Case] = {
    "integer": Case(sa.Integer(), [0, -5, 2**31 - 1, 2**31, True, "1", 1.5]),
    "small_integer": Case(sa.SmallInteger(), [0, -(2**15), 2**15]),
    "big_integer": Case(sa.BigInteger(), [2**63 - 1, -(2**63), 2**63]),
    "boolean": Case(sa.Boolean(), [True, False, 1, 0, 2]),
    "string": Case(sa.String(), TEXTS),
    "sized_string": Case(sa.String(10), [*TEXTS, "exactly 10", "spaces    ", "spaces behind         "]),
    "collated_string": Case(sa.String(collation="C"), TEXTS),
    "text": Case(sa.Text(), [*TEXTS, 5, b"bytes", ["list"]]),
    "unicode": Case(sa.Unicode(10), TEXTS),
    "varchar": Case(sa.VARCHAR(10), TEXTS),
    "char": Case(sa.CHAR(5), ["a", "a    ", "abcde", "abcdef", "abcde     ", "ä", ""]),
    "uuid": Case(sa.Uuid(), [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), "no uuid"]),
    "uuid_text": Case(sa.Uuid(as_uuid=False), [str(uuid.UUID(int=5)), "ABCDEF00-0000-0000-0000-00000000000F"]),
    "uuid_char": Case(sa.Uuid(native_uuid=False), [uuid.UUID(int=5)]),
    "date": Case(sa.Date(), DATES),
    "timestamp": Case(sa.DateTime(), [*MOMENTS, datetime(2026, 1, 1, tzinfo=UTC)]),
    "timestamptz": Case(sa.DateTime(timezone=True), ZONED),
    "timestamp_3": Case(pg.TIMESTAMP(precision=3), MOMENTS),
    "time": Case(sa.Time(), [time(0), time.max, time(1, 2, 3, 4), time(1, tzinfo=UTC)]),
    "timetz": Case(
        sa.Time(timezone=True), [time(1, tzinfo=UTC), time(1, tzinfo=timezone(timedelta(hours=-3))), time(1)]
    ),
    "time_2": Case(pg.TIME(precision=2), [time(1, 2, 3, 456789), time.max]),
    "interval": Case(sa.Interval(), INTERVALS),
    "interval_3": Case(sa.Interval(second_precision=3), INTERVALS),
    "interval_epoch": Case(sa.Interval(native=False), [timedelta(days=1), timedelta(days=-1)]),
    "pg_interval": Case(pg.INTERVAL(), INTERVALS),
    "interval_fields": Case(pg.INTERVAL(fields="DAY TO SECOND", precision=2), INTERVALS[:3]),
    "numeric": Case(sa.Numeric(), NUMBERS),
    "numeric_10_2": Case(sa.Numeric(10, 2), [*NUMBERS, Decimal("99999999.994"), Decimal("99999999.995")]),
    "numeric_float": Case(sa.Numeric(asdecimal=False), [0.1 + 0.2, 1e300]),
    "decimal": Case(sa.DECIMAL(5, 1), [Decimal("9999.94"), Decimal("9999.95"), Decimal("0.25")]),
    "float": Case(sa.Float(), FLOATS),
    "float_24": Case(sa.Float(24), FLOATS),
    "float_decimal": Case(sa.Float(asdecimal=True), [Decimal("0.1"), 0.1]),
    "real": Case(sa.REAL(), [0.1, 1e-50, 1e50, -0.0]),
    "double": Case(sa.Double(), FLOATS),
    "double_precision": Case(sa.DOUBLE_PRECISION(), FLOATS),
    "binary": Case(sa.LargeBinary(), [b"", b"\x00\xff", bytearray(b"a"), memoryview(b"m"), "text"]),
    "bytea": Case(pg.BYTEA(), [b"\\x", b"'"]),
    "json": Case(sa.JSON(), DOCUMENTS, key=False),
    "json_null": Case(sa.JSON(none_as_null=True), DOCUMENTS, key=False),
    "pg_json": Case(pg.JSON(), DOCUMENTS, key=False),
    "jsonb": Case(pg.JSONB(), [*DOCUMENTS, float("nan"), sa.JSON.NULL]),
    "jsonb_null": Case(pg.JSONB(none_as_null=True), DOCUMENTS),
    "hstore": Case(pg.HSTORE(), [{"a": "b"}, {"a": None, 'q"': "'"}, {}]),
    "inet": Case(pg.INET(), [ip_address("10.0.0.1"), "10.0.0.0/8", "::1", "none"]),
    "cidr": Case(pg.CIDR(), [ip_network("10.0.0.0/8"), "10.0.0.0/8", "10.0.0.1/8"]),
    "macaddr": Case(pg.MACADDR(), ["08:00:2b:01:02:03", "no"]),
    "macaddr8": Case(pg.MACADDR8(), ["08:00:2b:01:02:03:04:05"]),
    "money": Case(pg.MONEY(), ["$1.00", "12.345"]),
    "oid": Case(pg.OID(), [0, 2**32 - 1, -1]),
    "regclass": Case(pg.REGCLASS(), ["pg_class", "no_such_table"]),
    "regconfig": Case(pg.REGCONFIG(), ["english"]),
    "tsvector": Case(pg.TSVECTOR(), ["a fat cat", "'it''s':3"]),
    "tsquery": Case(pg.TSQUERY(), ["fat & rat"]),
    "jsonpath": Case(pg.JSONPATH(), ["$.a[*]"], key=False),
    "bit": Case(pg.BIT(5), ["10101", "1", "1111111"]),
    "varbit": Case(pg.BIT(varying=True), ["", "1", "10101010101"]),
    "citext": Case(pg.CITEXT(), ["Ab", "aB", ""]),
    "enum": Case(sa.Enum(Mood, name="mood"), [Mood.calm, Mood.wild, "calm", "c", "none"]),
    "enum_texts": Case(sa.Enum("a", "b c", name="Odd Enum"), ["a", "b c", "none"]),
    "enum_varchar": Case(sa.Enum(Mood, native_enum=False), [Mood.calm, "none"]),
    "enum_values": Case(sa.Enum(Mood, name="mood2", values_callable=lambda e: [one.value for one in e]), [Mood.wild]),
    "pg_enum": Case(pg.ENUM("x", "y", name="letters"), ["x", "z"]),
    "domain": Case(pg.DOMAIN("small", sa.Integer(), check="VALUE < 10"), [5, 10]),
    "pickle": Case(sa.PickleType(), [{"a": 1}, [1]], key=False),
    "int4range": Case(pg.INT4RANGE(), [Range(1, 5), Range(1, 5, bounds="(]"), *MORE_RANGES, Range(5, 1)]),
    "int8range": Case(pg.INT8RANGE(), [Range(-(2**62), 2**62)]),
    "numrange": Case(pg.NUMRANGE(), [Range(Decimal("1.1"), Decimal("2.20")), *MORE_RANGES]),
    "daterange": Case(pg.DATERANGE(), [Range(date(2026, 1, 1), None), Range(date.min, date.max)]),
    "tsrange": Case(pg.TSRANGE(), [Range(MOMENTS[0], None)]),
    "tstzrange": Case(pg.TSTZRANGE(), [Range(ZONED[1], ZONED[0])]),
    "int4multirange": Case(pg.INT4MULTIRANGE(), [[Range(1, 5), Range(7, 9)], []]),
    "datemultirange": Case(pg.DATEMULTIRANGE(), [[Range(date(2026, 1, 1), date(2026, 2, 1))]]),
    "secret": Case(Secret(), ["topsecret", "ä", ""]),
    "shouted": Case(Shouted(), ["abc", "refused", "x" * 20]),
    "euros": Case(Euros(), [Decimal("1.23"), Decimal(10**8)]),
    "user_defined": Case(Money(), [Decimal("1.23456"), 5]),
    "user_defined_expression": Case(Lower(), ["ABC"]),
    "variant": Case(sa.String().with_variant(sa.Integer(), "postgresql"), [1, "1"]),
    "integers": Case(sa.ARRAY(sa.Integer), [[], [1, None], [2**31], [[1, 2], [3, 4]]]),
    "strings": Case(pg.ARRAY(sa.String), [["a", None, "b,c", '"', "NULL", "{}"], [], [["a"], ["b"]]]),
    "sized_strings": Case(pg.ARRAY(sa.String(5)), [["abcdefgh"], ["ok"]]),
    "numerics": Case(pg.ARRAY(sa.Numeric(6, 2)), [[Decimal("1.005")], [Decimal("99999")]]),
    "enums": Case(pg.ARRAY(sa.Enum(Mood, name="mood3")), [[Mood.calm, None], []]),
    "uuids": Case(pg.ARRAY(sa.Uuid()), [[uuid.UUID(int=1)]]),
    "jsonbs": Case(pg.ARRAY(pg.JSONB), [[{"a": 1}, None, [1]], []]),
    "moments": Case(pg.ARRAY(sa.DateTime(timezone=True)), [[ZONED[0], None]]),
    "ranges": Case(pg.ARRAY(pg.INT4RANGE), [[Range(1, 2), None]]),
    "secrets": Case(pg.ARRAY(Secret()), [["abc"]]),
    "matrix": Case(pg.ARRAY(sa.Integer, dimensions=2), [[[1, 2], [3, 4]], []]),
    "booleans": Case(pg.ARRAY(sa.Boolean), [[True, None]]),
    "binaries": Case(pg.ARRAY(sa.LargeBinary), [[b"\x00", None]]),
}


def make_entity(name: str, case: Case) -> Any:
    """Return a mapped class with a column `x` of a type, and a column `n`."""
    columns = {
        "__tablename__": f"t_{name}",
        "__annotations__": {"id": Mapped[int], "n": Mapped[int]},
        "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        "x": mapped_column(case.type),
        "n": mapped_column(sa.Integer, default=7),
    }
    return type(f"Of_{name}", (Base,), columns)


ENTITIES = {name: make_entity(name, case) for name, case in CASES.items()}
