"""Walks over objects: each object once, with the key that it had when it was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ForeignKey, ForeignKeyConstraint, Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, aliased, joinedload, make_transient, mapped_column, relationship, selectinload

from tests.models import Base
from tests.support.contexts import MakeContext
from worker.batch import Batch
from worker.db.engine import Database


class Owner(Base):
    """Its key has two columns, in another order than that of the walk."""

    __tablename__ = "objects_owner"

    code: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[int] = mapped_column(primary_key=True)
    things: Mapped[list[Thing]] = relationship(back_populates="owner", order_by="Thing.id")


class Thing(Base):
    """Several belong to an owner."""

    __tablename__ = "objects_thing"
    __table_args__ = (
        ForeignKeyConstraint(["owner_code", "owner_region"], ["objects_owner.code", "objects_owner.region"]),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    owner_code: Mapped[str]
    owner_region: Mapped[int]
    owner: Mapped[Owner] = relationship(back_populates="things")


class Part(Base):
    """Its key is that of a thing."""

    __tablename__ = "objects_part"

    id: Mapped[int] = mapped_column(ForeignKey("objects_thing.id"), primary_key=True)


THINGS = range(1, 8)
OTHER = aliased(Thing)
ALIAS = aliased(Thing)

#: Statement, `by`, and the keys that a walk presents.
WALKS: dict[str, tuple[Select[Any], Any, list[Any]]] = {
    "own key": (select(Thing), None, [[n] for n in THINGS]),
    "alias": (select(ALIAS), None, [[n] for n in THINGS]),
    "descending": (select(Thing), Thing.id.desc(), [[n] for n in reversed(THINGS)]),
    "another unique key": (select(Thing), Thing.number, [[100 + n] for n in THINGS]),
    "two columns": (select(Owner), [Owner.region, Owner.code], [[1, "a"], [1, "b"], [2, "a"]]),
    "two columns, as they stand": (select(Owner), None, [["a", 1], ["a", 2], ["b", 1]]),
    "join that repeats": (select(Owner).join(Owner.things), [Owner.region, Owner.code], [[1, "a"], [1, "b"], [2, "a"]]),
    "joined collection": (
        select(Owner).options(joinedload(Owner.things)),
        [Owner.region, Owner.code],
        [[1, "a"], [1, "b"], [2, "a"]],
    ),
    "selected collection": (
        select(Owner).options(selectinload(Owner.things)),
        [Owner.region, Owner.code],
        [[1, "a"], [1, "b"], [2, "a"]],
    ),
    "key of another alias": (
        select(Thing).join(OTHER, OTHER.id == Thing.id - 1),
        OTHER.id,
        [[n] for n in THINGS][:-1],
    ),
    "key of another table with the same values": (
        select(Thing).join(Part, Part.id == 8 - Thing.id),
        Part.id,
        [[n] for n in THINGS],
    ),
}


def keys_of(batch: Batch[Any]) -> list[Any]:
    """Return the key of each row."""
    return [json.loads(key.split(":", 2)[2]) for key in batch.row_keys]


@pytest.fixture
async def things(database: Database) -> None:
    """Seven things of three owners."""
    owners = [("a", 1), ("b", 1), ("a", 2)]
    async with AsyncSession(database.engine) as session, session.begin():
        session.add_all(Owner(code=code, region=region) for code, region in owners)
        for n in THINGS:
            code, region = owners[n % 3]
            session.add(Thing(id=n, number=100 + n, owner_code=code, owner_region=region))
        await session.flush()
        session.add_all(Part(id=n) for n in THINGS)


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("size", [2, 50])
@pytest.mark.parametrize("name", list(WALKS))
async def test_a_walk_presents_each_object_once_with_its_key(context: MakeContext, name: str, size: int) -> None:
    statement, by, expected = WALKS[name]
    found: list[Any] = []
    objects: list[Any] = []
    ctx = context()
    async for batch in ctx.chunks(statement, by=by, size=size, lock=False, allow_sort=True):
        assert len(batch) == len(batch.row_keys)
        found += keys_of(batch)
        objects += batch
    assert found == expected
    assert len({id(one) for one in objects}) == len(objects)


CHANGES: dict[str, Callable[[Thing], None]] = {
    "key changed": lambda thing: setattr(thing, "id", thing.id + 1000),
    "made transient": make_transient,
}


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("name", list(CHANGES))
async def test_keys_of_objects_are_those_that_were_read_whatever_the_body_does(context: MakeContext, name: str) -> None:
    keys: list[Any] = []
    async for batch in context().chunks(select(Thing), size=3, lock=False):
        for one in batch:
            CHANGES[name](one)
        keys += keys_of(batch)
        batch.session.expunge_all()
    assert keys == [[n] for n in THINGS]
