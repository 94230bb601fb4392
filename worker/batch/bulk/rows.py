"""The rows of a bulk operation: dicts, ORM objects or columns, grouped by the columns that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import itemgetter
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import Column

from worker.batch.bulk.target import DIALECT, BulkTarget
from worker.errors import BulkError

#: Rows of a bulk operation: dicts or objects; or a dict of columns, a list of values for each.
Rows = Sequence[Any] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Group:
    """Rows that give the same columns, and can be written by one statement.

    Attributes:
        columns: the columns that the rows give, and the columns that were filled in.
        values: a list of Python values for each column.
        positions: the position of each row in the list that the caller gave.
        named: the columns that the rows themselves name.
    """

    columns: list[Column[Any]]
    values: list[list[Any]]
    positions: Sequence[int]
    named: frozenset[Column[Any]]

    def __len__(self) -> int:
        return len(self.positions)

    def of(self, column: Column[Any]) -> list[Any]:
        """Return the values of one column."""
        return self.values[self.place(column)]

    def place(self, column: Column[Any]) -> int:
        """Return the place of a column. It is found by identity: `==` of a column makes an SQL expression."""
        return next(place for place, one in enumerate(self.columns) if one is column)

    def records(self) -> list[tuple[Any, ...]]:
        """Return the values as a tuple for each row."""
        return list(zip(*self.values, strict=True))

    def dicts(self, names: Mapping[Column[Any], str]) -> list[dict[str, Any]]:
        """Return the values as a dict for each row, by the given names."""
        keys = [names[column] for column in self.columns]
        return [dict(zip(keys, record, strict=True)) for record in self.records()]

    def first(self, count: int) -> Group:
        """Return the first rows."""
        return Group(self.columns, [each[:count] for each in self.values], self.positions[:count], self.named)

    def choose(self, places: Sequence[int]) -> Group:
        """Return the rows at some places of this group."""
        values = [[each[place] for place in places] for each in self.values]
        return Group(self.columns, values, [self.positions[place] for place in places], self.named)


def exclude(columns: Iterable[Column[Any]], others: Iterable[Column[Any]]) -> list[Column[Any]]:
    """Return columns without some others."""
    excluded = frozenset(others)  # `in` a list would compare by `==`, which makes an SQL expression
    return [column for column in columns if column not in excluded]


def count_rows(rows: Rows) -> int:
    """Return how many rows there are."""
    return len(next(iter(rows.values()), ())) if isinstance(rows, Mapping) else len(rows)


def group_rows(target: BulkTarget, rows: Rows, *, in_order: bool = False) -> list[Group]:
    """Return rows, grouped by the columns that they give.

    Args:
        target: the table to write to.
        rows: dicts or ORM objects; or a dict of columns, a list of values for each.
        in_order: keep the order of the rows: rows with the same columns that are not adjacent form several groups.

    Raises:
        BulkError: A row is of the wrong kind, or names a column that does not exist.
    """
    if isinstance(rows, Mapping):
        return _group_columns(target, rows)
    alike = _group_alike(target, rows)
    if alike is not None:
        return [alike]
    parted: dict[tuple[Any, ...], list[int]] = {}
    dicts = to_dicts(target, rows)
    last: tuple[str, ...] | None = None
    run = 0
    for index, row in enumerate(dicts):
        names = tuple(row)
        run += in_order and names != last
        last = names
        parted.setdefault((run, *names), []).append(index)
    return [
        _make_group(target, list(names), [dicts[place] for place in places], places)
        for (_, *names), places in parted.items()
    ]


def to_dicts(target: BulkTarget, rows: Rows) -> list[dict[str, Any]]:
    """Return rows as dicts. For ORM objects, return the attributes that are set.

    Raises:
        BulkError: A row is neither a mapping nor an object of the target's entity.
    """
    if isinstance(rows, Mapping):
        return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    found: list[dict[str, Any]] = []
    mapper = target.mapper
    for index, row in enumerate(rows):
        if isinstance(row, Mapping):
            found.append(dict(row))
        elif mapper is not None and isinstance(row, mapper.class_):
            attributes = mapper.column_attrs
            found.append({key: value for key, value in row.__dict__.items() if key in attributes})
        elif isinstance(row, BaseModel):
            found.append(dict(row))
        elif is_dataclass(row):
            found.append({each.name: getattr(row, each.name) for each in fields(row)})
        else:
            raise BulkError(
                f"row {index} is a {type(row).__name__}: a bulk operation takes dicts, pydantic models, dataclasses "
                f"or objects of {target.name}",
                row_index=index,
            )
    return found


def fill_defaults(target: BulkTarget, group: Group, kind: Literal["default", "onupdate"]) -> Group:
    """Return a group with the columns that its rows do not name, but that have a Python value in an INSERT or UPDATE.

    Args:
        target: the table.
        group: the rows.
        kind: "default" for an INSERT, "onupdate" for an UPDATE.
    """
    constant, called = _made_values(target, kind)
    constant = {column: value for column, value in constant.items() if column not in group.named}
    called = {column: make for column, make in called.items() if column not in group.named}
    if not constant and not called:
        return group
    count = len(group)
    # One row after the other, as SQLAlchemy does: two defaults can share a counter.
    made = [[make(None) for make in called.values()] for _ in range(count)] if called else []
    columns = [*group.columns, *constant, *called]
    values = [*group.values, *([value] * count for value in constant.values())]
    values += [list(each) for each in zip(*made, strict=True)]
    return Group(columns, values, group.positions, group.named)


def bind_values(column: Column[Any], values: list[Any], positions: Sequence[int]) -> list[Any]:
    """Convert Python values into the driver's, by the column's type.

    Raises:
        BulkError: A value cannot be converted; the error names its row.
    """
    process = column.type.dialect_impl(DIALECT).bind_processor(DIALECT)
    if process is None:
        return values
    bound: list[Any] = []
    try:
        bound.extend(map(process, values))
    except Exception as error:  # a type of the application can raise anything
        position = positions[len(bound)]
        raise BulkError(f"row {position}: {error}", row_index=position) from error
    return bound


def _made_values(
    target: BulkTarget, kind: Literal["default", "onupdate"]
) -> tuple[dict[Column[Any], Any], dict[Column[Any], Callable[[Any], Any]]]:
    """Return the constants, and the functions, that give a value to a column that a row does not name."""
    constant: dict[Column[Any], Any] = {}
    called: dict[Column[Any], Callable[[Any], Any]] = {}
    for column in target.table.columns:
        default: Any = getattr(column, kind)
        if default is not None and default.is_scalar:
            constant[column] = default.arg
        elif default is not None and default.is_callable:
            called[column] = default.arg
    mapper = target.mapper
    if kind == "default" and mapper is not None and mapper.polymorphic_identity is not None:
        discriminator = mapper.polymorphic_on  # of single-table inheritance: the ORM sets it
        if isinstance(discriminator, Column) and discriminator.table is target.table:
            constant[discriminator] = mapper.polymorphic_identity
    return constant, called


def _group_alike(target: BulkTarget, rows: Sequence[Any]) -> Group | None:
    """Return rows that are dicts with the same names, the usual case; None if they are not."""
    if not rows or type(rows[0]) is not dict:
        return None
    names = list(rows[0])
    if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(names)}:
        return None
    try:
        return _make_group(target, names, rows, range(len(rows)))
    except KeyError:
        return None  # the same number of names, but different names


def _group_columns(target: BulkTarget, given: Mapping[str, Sequence[Any]]) -> list[Group]:
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise BulkError(f"bulk: a row has a value in each column, but {shown}")
    if not any(lengths.values()):
        return []
    columns = [target.column(name, None) for name in given]
    return [_unique(target, columns, [list(each) for each in given.values()], range(count_rows(given)))]


def _make_group(
    target: BulkTarget, names: Sequence[str], rows: Sequence[dict[str, Any]], positions: Sequence[int]
) -> Group:
    values = [list(map(itemgetter(name), rows)) for name in names]
    return _unique(target, [target.column(name, positions[0]) for name in names], values, positions)


def _unique(target: BulkTarget, columns: list[Column[Any]], values: list[list[Any]], positions: Sequence[int]) -> Group:
    if len(set(columns)) != len(columns):
        twice = next(column for place, column in enumerate(columns) if column in columns[:place])
        raise BulkError(
            f"row {positions[0]}: two names of it stand for the column {twice.name} of {target.name}",
            row_index=positions[0],
        )
    return Group(columns, values, positions, frozenset(columns))
