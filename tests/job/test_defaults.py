"""`@job` checks the defaults of arguments, because a job gets them as they are written."""

from __future__ import annotations

import enum
import inspect
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field, FilePath, FutureDate, PositiveInt, SecretStr

from worker import JobContext, job
from worker.errors import RegistrationError


class Colour(enum.Enum):
    RED = "red"


class Shade(enum.StrEnum):
    DARK = "dark"


class Options(BaseModel):
    depth: int = 1


def make(hint: Any, default: Any) -> Any:
    """Register a job with an argument `a` of a type and a default."""

    async def work(ctx: JobContext, a: Any = default) -> None:
        """Do nothing."""

    work.__annotations__ = {"ctx": JobContext, "a": hint, "return": None}
    return job(work)


def fails(value: Any) -> Any:
    raise RuntimeError("no such value")


@pytest.mark.parametrize(
    ("hint", "default"),
    [
        (int, "x"),
        (int, "5"),
        (int, None),
        (str, 5),
        (bool, 0),
        (Decimal, 0),
        (date, "2026-01-31"),
        (timedelta, 5),
        (Path, "file"),
        (Colour, "red"),
        (Shade, "dark"),
        (SecretStr, "word"),
        (int | None, "x"),
        (list[int], ("1",)),
        (list[None], None),
        (list[int], ["1"]),
        (dict[str, int], {"a": "1"}),
        (Literal["a", "b"], "c"),
        (PositiveInt, -1),
        (int, Field(-1, gt=0)),
        (Options, {"depth": 2}),
        (Annotated[str, AfterValidator(str.lower)], "ABC"),
        (Annotated[int, AfterValidator(fails)], 1),
    ],
)
def test_job_refuses_a_default_that_is_not_of_its_type(hint: Any, default: Any) -> None:
    with pytest.raises(RegistrationError, match="job work: the default of argument a does not fit its type: "):
        make(hint, default)


@pytest.mark.parametrize(
    ("hint", "default"),
    [
        (int, 5),
        (Any, "x"),
        (float, 1),
        (float, float("nan")),
        (int | None, None),
        (None, None),
        (Colour, Colour.RED),
        (Shade, Shade.DARK),
        (str, Shade.DARK),
        (date, date(2026, 1, 31)),
        (Path, Path("file")),
        (SecretStr, SecretStr("word")),
        (list[float], [1, 2]),
        (tuple[int, ...], ()),
        (frozenset[str], frozenset({"a"})),
        (Literal["a", "b"], "b"),
        (PositiveInt, 1),
        (int, Field(1, gt=0)),
        (int | None, Field(None)),
        (date, Field("2026-01-31", validate_default=True)),
        (list[int], Field(default_factory=list)),
        (Options, Options(depth=2)),
        (FilePath, Path("/no/such/file")),
        (FutureDate, date(2020, 1, 1)),
    ],
)
def test_job_keeps_a_default_of_its_type(hint: Any, default: Any) -> None:
    assert inspect.signature(make(hint, default).function).parameters["a"].default is default
