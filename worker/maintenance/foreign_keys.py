"""The tables whose rows refer to a table, by the foreign keys of the catalog, in the order in which to delete them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    MetaData,
    Select,
    Table,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import list_unindexed_children
from worker.errors import UnsupportedStatement
from worker.maintenance.target import Target

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

logger = logging.getLogger("longhaul.maintenance")

#: A table: its schema and its name.
Name = tuple[str, str]


_quote = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key; tables as (schema, name).

    Attributes:
        child: The table whose rows refer to others.
        parent: The table that they refer to.
        child_columns: The columns of the child; None if only the order counts: rows of the child are deleted first.
        parent_columns: The columns of the parent.
        cascades: Whether it is declared ON DELETE CASCADE.
        is_direct: Whether the parent is the table to delete from, one above it, or one of its partitions.
        to_partition: Whether it is one of its partitions.
    """

    child: Name
    parent: Name
    child_columns: Sequence[str] | None
    parent_columns: Sequence[str] | None
    cascades: bool
    is_direct: bool
    to_partition: bool


@cache
def _query() -> str:
    return files(__package__).joinpath("foreign_keys.sql").read_text(encoding="utf-8")


async def list_foreign_keys(connection: AsyncConnection, target: Target) -> list[ForeignKey]:
    """Return the foreign keys that lead to a table, whose rows would prevent a DELETE or be deleted with it.

    Args:
        connection: A connection.
        target: The table. Foreign keys to the partitioned table above it, and to its partitions, lead to it, too.
    """
    found = await connection.execute(text(_query()), {"table": target.name})
    return [
        ForeignKey(
            (row.child_schema, row.child_table),
            (row.parent_schema, row.parent_table),
            row.child_columns,
            row.parent_columns,
            row.cascades,
            row.is_direct,
            row.to_partition,
        )
        for row in found
    ]


class Children:
    """The tables below a table, with the condition of their rows that belong to rows of it.

    Attributes:
        tables: The tables, each before those that it refers to.
        walkable: Those of them that a walk of their own can delete first: they have a primary key, and so have all
            tables whose rows would prevent that.
    """

    def __init__(self, target: Target, foreign_keys: Sequence[ForeignKey], tables: dict[Name, Table]) -> None:
        self._target = target
        self._foreign_keys = foreign_keys
        self._tables = tables
        self.tables: list[Table] = []
        self.walkable: list[Table] = []
        order: TopologicalSorter[Name] = TopologicalSorter()
        for each in foreign_keys:
            order.add(each.parent, each.child)
        roots = {each.parent for each in foreign_keys if each.is_direct}
        try:
            self.tables = [tables[name] for name in order.static_order() if name not in roots]
        except CycleError as error:
            circle = " → ".join(".".join(name) for name in reversed(error.args[1]))
            raise UnsupportedStatement(
                f"{target.owner}: the foreign keys of {target.name} are circular: {circle}. No order deletes children "
                f"first. Declare one of them ON DELETE SET NULL, or let the database handle them all by ON DELETE "
                f'CASCADE and children="leave"'
            ) from None

        for table in self.tables:
            below = [tables[each.child] for each in foreign_keys if tables[each.parent] is table]
            if list(table.primary_key) and all(each in self.walkable for each in below):
                self.walkable.append(table)

    def condition(self, table: Table, roots: ColumnElement[bool] | None) -> ColumnElement[bool]:
        """Return the condition of the rows of a table that belong to chosen rows of the root.

        Args:
            table: One of `tables`.
            roots: The condition of the rows of the root; None for all.
        """
        conditions = []
        for each in self._foreign_keys:
            if each.child_columns is None or self._tables[each.child] is not table:
                continue
            chosen = self._select_parents(each, roots).correlate(None)
            columns = [table.columns[name] for name in each.child_columns]
            conditions.append(columns[0].in_(chosen) if len(columns) == 1 else tuple_(*columns).in_(chosen))
        return or_(*conditions)

    def _select_parents(self, foreign_key: ForeignKey, roots: ColumnElement[bool] | None) -> Select[Any]:
        names = foreign_key.parent_columns or ()
        if not foreign_key.is_direct:
            parent = self._tables[foreign_key.parent]
            return select(*[parent.columns[name] for name in names]).where(self.condition(parent, roots))
        found = select(*[self._root_column(name) for name in names])
        if foreign_key.to_partition:  # a row of another partition may have the same values
            name = f"{self._target.name}.tableoid"
            relation = literal(".".join(map(_quote, foreign_key.parent)))
            leaves = func.pg_catalog.pg_partition_tree(cast(relation, REGCLASS)).table_valued("relid")
            found = found.where(literal_column(name).in_(select(leaves.c.relid)))
        return found if roots is None else found.where(roots)

    def _root_column(self, name: str) -> Any:
        for column in self._target.columns:
            if column.name == name:
                return self._target.attribute(column)
        raise UnsupportedStatement(
            f"{self._target.owner}: a foreign key refers to column {name} of {self._target.name}, which its model "
            f"lacks: add it"
        )


async def read_children(ctx: JobContext, target: Target) -> Children:
    """Look the children of a table up in the catalog.

    Raises:
        UnsupportedStatement: The foreign keys are circular, or a cascade within a table reaches rows that others hold.
    """
    async with ctx.session() as session:
        connection = await session.connection()
        found = await list_foreign_keys(connection, target)
        for child, columns in await list_unindexed_children(connection, target.name):
            logger.warning(
                "a foreign key has no index, so each deleted row of %s reads all of %s: job=%s "
                "cure='CREATE INDEX CONCURRENTLY ON %s (%s)'",
                target.name,
                child,
                target.owner,
                child,
                columns,
            )
        # The database deletes the rows that refer to others of their own table by ON DELETE CASCADE.
        keys = [each for each in found if not (each.cascades and each.child == each.parent)]
        _ensure_cascades_reach_all(target, found)
        names = {each.child for each in keys} | {each.parent for each in keys}
        tables = await connection.run_sync(reflect_tables, sorted(names))
    return Children(target, keys, tables)


def _ensure_cascades_reach_all(target: Target, foreign_keys: Sequence[ForeignKey]) -> None:
    """Raise `UnsupportedStatement` if a cascade within a table reaches rows that rows of other tables hold.

    The database follows ON DELETE CASCADE from a row to others of its table, which were not chosen. Their children are
    deleted only if the database does that as well.
    """
    for own in foreign_keys:
        if not (own.cascades and own.child == own.parent):
            continue
        reached, before = {own.parent}, 0
        while len(reached) > before:
            before = len(reached)
            below = [each for each in foreign_keys if each.parent in reached and each.child_columns is not None]
            held = next((each for each in below if not each.cascades), None)
            if held is not None:
                table, other = ".".join(own.parent), f"{'.'.join(held.child)} ({', '.join(held.child_columns or ())})"
                raise UnsupportedStatement(
                    f"{target.owner}: a foreign key of {table} to itself is ON DELETE CASCADE, so PostgreSQL would "
                    f"also delete rows of it that were not chosen, and the foreign key {other} would prevent that: "
                    f"declare {other} ON DELETE CASCADE as well, or the one of {table} to itself ON DELETE SET NULL"
                )
            reached |= {each.child for each in below}


def reflect_tables(connection: Connection, names: Sequence[Name]) -> dict[Name, Table]:
    """Return tables as the database has them."""
    metadata = MetaData()
    return {
        (schema, name): Table(name, metadata, schema=schema, autoload_with=connection, resolve_fks=False)
        for schema, name in names
    }


async def ensure_no_children(ctx: JobContext, target: Target, *, verb: str) -> None:
    """Raise `UnsupportedStatement` if other rows prevent the deletion of rows, or would be deleted with them."""
    async with ctx.session() as session:
        found = await list_foreign_keys(await session.connection(), target)
    children = [each for each in found if each.is_direct and each.child_columns is not None]
    if children:
        columns = [", ".join(each.child_columns or ()) for each in children]
        cascades = [" ON DELETE CASCADE" if each.cascades else "" for each in children]
        shown = "; ".join(
            f"{'.'.join(each.child)} ({names}){how}"
            for each, names, how in zip(children, columns, cascades, strict=True)
        )
        raise UnsupportedStatement(
            f"{target.owner}: rows of other tables refer to {target.name}, and would prevent its rows from being "
            f"{verb}, or be deleted with them: {shown}. Declare these foreign keys ON DELETE SET NULL, or walk the "
            f"tables in a job of your own"
        )
