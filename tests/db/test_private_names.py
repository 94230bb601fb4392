"""Only worker/db uses private parts of SQLAlchemy and asyncpg."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.engine import Dialect, Result, Row
from sqlalchemy.ext import asyncio
from sqlalchemy.orm import identity, state
from sqlalchemy.sql import compiler

PACKAGE = Path(__file__).parents[2] / "worker"

#: Classes whose objects the package handles.
FOREIGN = [
    *(asyncpg.Connection, asyncpg.Record, PreparedStatement, Transaction),
    *(dialect.AsyncAdapt_asyncpg_connection, dialect.PGDialect_asyncpg, dialect.PGCompiler_asyncpg),
    *(sqlalchemy.Select, sqlalchemy.Insert, sqlalchemy.Update, sqlalchemy.Delete, sqlalchemy.Table, sqlalchemy.Column),
    *(sqlalchemy.BindParameter, sqlalchemy.Connection, sqlalchemy.Engine, sqlalchemy.types.TypeEngine),
    *(compiler.SQLCompiler, Dialect, Result, Row),
    *(orm.Session, orm.Mapper, orm.QueryableAttribute, state.InstanceState, identity.IdentityMap),
    *(asyncio.AsyncSession, asyncio.AsyncConnection, asyncio.AsyncEngine),
]
#: Names with an underscore that SQLAlchemy documents, so that they collide with no column.
DOCUMENTED = {"_mapping", "_fields", "_asdict", "_tuple", "_t"}


def private_names() -> set[str]:
    """Return the private names of the foreign classes, those of their instances too."""
    found = {name for class_ in FOREIGN for name in dir(class_)}
    found |= {name for class_ in FOREIGN for base in class_.__mro__ for name in vars(base).get("__annotations__", {})}
    found |= {"_sa_instance_state", "_modified", "_new", "_deleted", "_compile_state", "_result_columns"}
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - DOCUMENTED


def foreign_uses(source: str) -> Iterator[str]:
    """Yield the private names of SQLAlchemy and asyncpg that a module reads of objects other than `self`."""
    known = private_names()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in known:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in known:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_module_outside_of_db_uses_private_parts_of_sqlalchemy_or_asyncpg() -> None:
    found = [
        f"{path.relative_to(PACKAGE.parent)}, {use}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "db"
        for use in foreign_uses(path.read_text())
    ]
    assert found == [], "give it a function in worker/db/statement_internals.py or driver.py, with a test"


@pytest.mark.parametrize(
    "source",
    [
        "adapter._transaction",
        "raw._top_xact = None",
        "statement._order_by_clauses",
        "session.identity_map._modified",
        "getattr(statement, '_for_update_arg')",
        "hasattr(row, '_sa_instance_state')",
        "state._commit_all_states([])",
        "compiled._bind_processors",
        "column.type._cached_result_processor",
    ],
)
def test_foreign_uses_finds_a_private_name(source: str) -> None:
    assert list(foreign_uses(source))


@pytest.mark.parametrize("source", ["self._transaction", "row._mapping", "row._asdict()", "other._of_our_own"])
def test_foreign_uses_passes_names_that_are_public_or_our_own(source: str) -> None:
    assert not list(foreign_uses(source))
