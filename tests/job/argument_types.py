"""Types of arguments, for the tests of how they are encoded."""

from __future__ import annotations

from uuid import UUID, uuid4

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
)
from pydantic.alias_generators import to_camel


class Order(BaseModel):
    id: UUID = Field(default_factory=uuid4)
    lines: list[str] = []
    note: str = "x"


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    customer_id: int


class Private(BaseModel):
    shown: int
    _mark: str = PrivateAttr(default_factory=lambda: uuid4().hex)


def appended() -> Order:
    order = Order()
    order.lines.append("bread")
    return order
