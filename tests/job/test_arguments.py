"""Arguments and results survive JSON unchanged, or are rejected."""

from __future__ import annotations

import enum
import json
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
    computed_field,
)
from typing_extensions import TypedDict

from tests.job.argument_types import Camel, Order, Private, appended
from worker import InvalidArguments, JobContext, job
from worker.errors import RegistrationError, UsageError
from worker.job.arguments import JobCodec
from worker.job.round_trip import CONFIG, is_same
from worker.testing.runner import JobRunner


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Point(NamedTuple):
    x: int
    y: float


class Options(TypedDict, total=False):
    depth: int


@dataclass
class Box:
    id: str = field(default_factory=lambda: uuid4().hex)
    inner: list[Decimal] = field(default_factory=list)


@dataclass(eq=False)
class Plain:
    size: int = 0


class Choices(BaseModel):
    x: int = Field(validation_alias=AliasChoices("a", "b"), serialization_alias="c")


class ByAlias(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    x: int = Field(alias="y")


class Area(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int
    weights: Json[list[int]] = "[1]"  # type: ignore[assignment]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def square(self) -> int:
        return self.width**2


class Hidden(BaseModel):
    shown: int
    hidden: int = Field(exclude=True, default=0)


class Special(Order):
    extra: int = 1


def codec(hint: Any, *, returns: Any = None) -> JobCodec:
    """Return the codec of a job with one argument `x`."""

    async def function(ctx: Any, x: Any) -> Any: ...

    function.__annotations__ = {"x": hint, "return": returns}
    return JobCodec("work", function)


def there_and_back(hint: Any, value: Any) -> Any:
    """Return an argument as the job gets it."""
    one = codec(hint)
    return one.decode_arguments([], json.loads(one.encode_arguments([value], {})))["x"]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Order, appended()),
        (list[Order], [Order(), Order(note="y")]),
        (Box, Box(inner=[Decimal("1.10")])),
        (Plain, Plain(3)),
        (Camel, Camel(customerId=7)),
        (Choices, Choices(a=1)),
        (ByAlias, ByAlias(y=2)),
        (Area, Area(width=3, weights="[4]")),
        (Options, {"depth": 2}),
        (Point, Point(1, math.inf)),
        (Colour, Colour.RED),
        (Literal["a", 1], "a"),
        (dict[int, date], {1: date(2026, 1, 2)}),
        (int | str, "1"),
        (UUID | str, uuid4()),
        (float, math.nan),
        (bytes, bytes(range(256))),
        (Path, Path("/tmp/x")),
        (datetime, datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo("America/New_York"))),
        (timedelta, timedelta.max),
        (set[int], {1, 2}),
        (tuple[int, ...], (1, 2)),
        (Any, {"a": [1, None, 2.5]}),
    ],
)
def test_an_argument_arrives_as_it_was_given(hint: Any, value: Any) -> None:
    assert is_same(value, there_and_back(hint, value))


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (SecretStr, SecretStr("correct horse")),
        (dict[str, SecretBytes], {"a": SecretBytes(b"b")}),
        (Hidden, Hidden(shown=1, hidden=2)),
        (Private, Private(shown=1)),
        (Order, Special()),
        (Any, (1, 2)),
        (Any, datetime.now(UTC)),
        (Any, {1: 2}),
        (Any, object()),
        (Sequence[int], (1, 2)),
        pytest.param(str, "\ud800", id="surrogate"),
        pytest.param(int, 10**5000, id="long"),
        (Annotated[int, AfterValidator(lambda n: n + 1)], 1),
        (datetime, datetime(1800, 1, 1, tzinfo=timezone(timedelta(seconds=75)))),
    ],
)
def test_an_argument_that_json_would_change_is_refused_by_name(hint: Any, value: Any) -> None:
    with pytest.raises(InvalidArguments, match=r"^job work\(.*\) -> None: (.*: )?x(\.a)?: ") as refused:
        there_and_back(hint, value)
    assert "correct horse" not in str(refused.value)


LEAVES = {
    bool: st.booleans(),
    int: st.integers(-(10**4000), 10**4000) | st.integers(),
    float: st.floats(),
    str: st.text(st.characters(blacklist_categories=()), max_size=20),
    bytes: st.binary(max_size=20),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    UUID: st.uuids(),
    date: st.dates(),
    time: st.times(timezones=st.none() | st.just(UTC)),
    datetime: st.datetimes(timezones=st.none() | st.timezones()),
    timedelta: st.timedeltas(),
    Colour: st.sampled_from(Colour),
    Box: st.builds(Box, st.text(string.printable, max_size=5), st.lists(st.decimals(allow_nan=False), max_size=2)),
    Camel: st.integers().map(lambda n: Camel(customerId=n)),
    Any: st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.tuples(st.integers()),
}


def wrapped(pair: tuple[Any, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Draw a type that contains another type, and a strategy for its values."""
    hint, values = pair
    hashable = hint in (bool, int, str, bytes, UUID, date, Decimal)
    kinds = [
        (list[hint], st.lists(values, max_size=3)),
        (tuple[hint, ...], st.lists(values, max_size=3).map(tuple)),
        (dict[str, hint], st.dictionaries(st.text(max_size=3), values, max_size=3)),
        (hint | None if hint is not Any else Any, st.none() | values),
        (hint | str if hint is not Any else Any, st.text(max_size=3) | values),
    ]
    if hashable:
        kinds += [(set[hint], st.sets(values, max_size=3)), (dict[hint, int], st.dictionaries(values, st.integers()))]
    return st.sampled_from(kinds)


TYPES = st.recursive(st.sampled_from(list(LEAVES.items())), lambda inner: inner.flatmap(wrapped), max_leaves=3)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_argument_of_any_type_arrives_equal_or_is_refused(data: st.DataObject) -> None:
    check_any_argument(data)


@pytest.mark.long
@settings(max_examples=3_000, deadline=None)
@given(st.data())
def test_many_arguments_of_any_type_arrive_equal_or_are_refused(data: st.DataObject) -> None:
    check_any_argument(data)


def check_any_argument(data: st.DataObject) -> None:
    """Draw a type and a value of it, which arrives equal or is rejected by name."""
    hint, values = data.draw(TYPES)
    value = data.draw(values)
    one = codec(hint)
    try:
        text = one.encode_arguments([value], {})
    except InvalidArguments as error:
        assert "x" in str(error)
        return
    arrived = one.decode_arguments([], json.loads(text))["x"]
    validated = one._validate([value], {}, from_json=False).x  # type: ignore[attr-defined]
    assert is_same(validated, arrived), (hint, value, text)


class Odd(enum.Enum):
    """Members whose values pydantic takes for an int, whatever they are."""

    TEXT = "red"
    PAIR = (1, 2)
    HALF = 1.5
    NOTHING = None


@pytest.mark.parametrize("odd", Odd)
@pytest.mark.parametrize(
    ("hint", "make"),
    [
        (int, lambda odd: odd),
        (list[int], lambda odd: [odd]),
        (dict[str, int], lambda odd: {"a": odd}),
        (set[int], lambda odd: {odd}),
        (tuple[int, ...], lambda odd: (odd,)),
    ],
    ids=["int", "list", "dict", "set", "tuple"],
)
def test_member_of_an_enum_is_no_int(odd: Odd, hint: Any, make: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidArguments):
        codec(hint).encode_arguments([make(odd)], {})
    with pytest.raises(UsageError, match="its result"):
        codec(int, returns=hint).encode_result(make(odd))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_result_of_any_type_comes_back_equal_or_is_an_error(data: st.DataObject) -> None:
    hint, values = data.draw(TYPES)
    _, others = data.draw(TYPES)
    fits = data.draw(st.booleans())
    value = data.draw(values if fits else others)
    one = codec(int, returns=hint)
    try:
        text = one.encode_result(value)
    except UsageError as error:
        assert "its result" in str(error)
        return
    arrived = one.decode_result(text)
    assert one.encode_result(arrived) == text, (hint, value, text)
    if fits:
        assert is_same(one._result.adapter.validate_python(value), arrived), (hint, value, text)


@dataclass
class Entity:
    """An object of a class that pydantic supports, returned without a type annotation."""

    id: int


@pytest.mark.parametrize(
    ("returns", "value", "message"),
    [
        (str, 5, r"its result of type int does not fit `-> str`: input should be a valid string"),
        (None, 5, "does not fit"),
        (SecretStr, SecretStr("correct horse"), "arrives changed"),
        (Order, Special(), "a Special arrives as Order"),
        (Any, Entity(1), "a Entity arrives as dict"),
        (Any, object(), "cannot be converted to JSON"),
        pytest.param(str, "\ud800", "cannot be converted to JSON", id="surrogate"),
    ],
)
def test_a_result_that_json_would_change_is_an_error(returns: Any, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        codec(int, returns=returns).encode_result(value)
    assert not refused.value.retryable and "correct horse" not in str(refused.value)


def test_a_result_without_an_annotation_may_hold_tuples() -> None:
    async def function(ctx: Any):  # type: ignore[no-untyped-def]
        ...

    one = JobCodec("work", function)
    assert one.encode_result({"a": (1, 2)}) == '{"a":[1,2]}'
    with pytest.raises(UsageError, match="annotate the function with the type of its result"):
        one.encode_result(datetime.now(UTC))


def test_half_of_a_surrogate_pair_in_a_key_is_an_error() -> None:
    one = codec(dict[str, int], returns=dict[str, int])
    with pytest.raises(InvalidArguments, match="does not come back from JSON"):
        one.encode_arguments([{"\ud800": 0}], {})
    with pytest.raises(UsageError, match="does not come back from JSON"):
        one.encode_result({"\ud800": 0})
    assert one.encode_result({"\ufffd": 0}) == '{"\ufffd":0}'


@pytest.mark.parametrize("returns", ["absent", Any, None, bool, int, str, float, int | None])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -7,
        2**63 - 1,
        -(2**63),
        2**64,
        10**300,
        "",
        'a"\\/',
        "a\n\x00\x1f",
        "\x7f",
        "é",
        "x" * 5_000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_scalar_result_is_written_as_its_validator_writes_it(returns: Any, value: Any) -> None:
    async def function(ctx: Any):  # type: ignore[no-untyped-def]
        ...

    if returns != "absent":
        function.__annotations__["return"] = returns
    adapter = TypeAdapter(Any if returns == "absent" else returns, config=CONFIG)
    try:
        expected = adapter.dump_json(adapter.validate_python(value)).decode()
    except ValidationError:
        with pytest.raises(UsageError, match="does not fit"):
            JobCodec("work", function).encode_result(value)
    else:
        assert JobCodec("work", function).encode_result(value) == expected


async def test_a_result_that_does_not_fit_fails_the_job(run_job: JobRunner) -> None:
    with pytest.raises(UsageError, match="does not fit `-> str`"):
        await run_job(lies)


@job
async def lies(ctx: JobContext) -> str:
    """Return no text."""
    return 5  # type: ignore[return-value]


class Opaque:
    """A type that pydantic does not support."""


@pytest.mark.parametrize(
    ("hint", "returns", "message"),
    [
        (Opaque, None, "job wrong: argument x: Opaque cannot be converted to JSON and back"),
        (list[Opaque], None, r"job wrong: argument x: list\[.*Opaque\] cannot be converted"),
        (int, Opaque, "job wrong: result: Opaque cannot be converted"),
        (Annotated[int, Field(alias="y")], None, "argument x has an alias"),
    ],
)
def test_job_refuses_a_type_without_a_schema_by_name(hint: Any, returns: Any, message: str) -> None:
    async def wrong(ctx: JobContext, y: int, x: Any) -> Any: ...

    wrong.__annotations__ = {"ctx": JobContext, "y": int, "x": hint, "return": returns}
    with pytest.raises(RegistrationError, match=message):
        job(wrong)
