"""Results of jobs and of steps: validated by the type that their function declares, and converted to JSON and back."""

from __future__ import annotations

import inspect
import json
from functools import cached_property
from typing import Any, Literal

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from worker.errors import RegistrationError, UsageError, format_error
from worker.job.round_trip import CONFIG, MAX_UNCHECKED_LENGTH, as_lists, is_exact, is_same

COMPILE_ERRORS = (PydanticSchemaGenerationError, PydanticUserError, TypeError)
LOSSY = "does not come back from JSON as it was given"

#: Types of JSON whose values have one form each: a float has several, and a container holds other values.
_SCALARS = frozenset({type(None), bool, int, str})
#: The largest integer that is written without pydantic: that of 64 bits.
_MOST_UNCHECKED = 2**63 - 1


class ResultCodec:
    """Validates the results of one function, and converts them to JSON and back.

    Args:
        where: the job or the step, for errors.
        hint: the type that the function declares.
        is_annotated: whether it declares one.
    """

    def __init__(self, where: str, hint: Any, *, is_annotated: bool) -> None:
        self._where = where
        self._hint = hint
        self._is_annotated = is_annotated

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The validator of the type.

        Raises:
            RegistrationError: Values of the type cannot be converted to JSON.
        """
        try:
            try:
                return TypeAdapter(self._hint, config=CONFIG)
            except PydanticUserError:  # a model, a dataclass or a TypedDict has a configuration of its own
                return TypeAdapter(self._hint)
        except COMPILE_ERRORS as error:
            raise make_schema_error(f"{self._where}: result", self._hint, error) from None

    def encode(self, result: Any) -> str:
        """Return a result as JSON text.

        Raises:
            UsageError: It is not of the type that the function declares, or does not come back from JSON as it is.
        """
        kind = type(result)
        if kind in self._unchecked_results:
            if result is None:
                return "null"
            if kind is bool:
                return "true" if result else "false"
            if kind is int and -_MOST_UNCHECKED <= result <= _MOST_UNCHECKED:
                return str(result)
            if kind is str and len(result) <= MAX_UNCHECKED_LENGTH and result.isascii() and result.isprintable():
                return json.dumps(result)  # of other characters it escapes more than pydantic
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise UsageError(
                f"{self._where} returned a {kind.__qualname__} that was not awaited: await it; a decorator around an "
                f"`async def` has to be an `async def` itself"
            )
        where = f"{self._where}: its result"
        try:
            value = self.adapter.validate_python(result)
            warnings: Literal["none", "error"] = "error" if self._is_result_exact else "none"
            text = self.adapter.dump_json(value, by_alias=False, round_trip=True, warnings=warnings).decode()
            if self._is_result_exact and is_unchecked(text):
                return text
            arrived = self.adapter.validate_json(text, by_alias=True, by_name=True)
        except ValidationError as error:
            raise UsageError(
                f"{where} of type {type(result).__qualname__} does not fit `-> {self._result_name}`: "
                f"{describe_invalid(error)}"
            ) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"{where} cannot be converted to JSON: {format_error(error)}") from None
        try:
            same = is_same(as_lists(value) if not self._is_annotated else value, arrived)
        except Exception as error:  # noqa: BLE001 - `__eq__` of any class may raise anything
            raise UsageError(f"{where} cannot be compared: {format_error(error)}") from None
        if not same:
            cure = "" if self._is_annotated else "; annotate the function with the type of its result"
            raise UsageError(f"{where} {LOSSY}: {show_difference(value, arrived)}{cure}")
        return text

    @cached_property
    def _unchecked_results(self) -> frozenset[type]:
        """Exact types of results that need no validator, because each value is valid and comes back as it was given."""
        hint = self._hint
        if hint is Any:
            return _SCALARS
        return frozenset({hint}) & _SCALARS if isinstance(hint, type) else frozenset()

    @cached_property
    def _is_result_exact(self) -> bool:
        return is_exact(self._hint)

    @property
    def _result_name(self) -> str:
        hint = self._hint
        return hint.__qualname__ if isinstance(hint, type) else str(hint)

    def decode(self, text: str) -> Any:
        """Return a result from JSON text, in the type that the function declares.

        Raises:
            ValidationError: It does not fit the type.
        """
        return self.adapter.validate_json(text, by_alias=True, by_name=True)


def make_schema_error(what: str, hint: Any, reason: Exception) -> RegistrationError:
    """Return the error for a type whose values cannot be converted to JSON."""
    shown = hint.__qualname__ if isinstance(hint, type) else str(hint)
    detail = (str(reason).splitlines() or [type(reason).__name__])[0]
    return RegistrationError(
        f"{what}: {shown} cannot be converted to JSON and back: {detail}; use types that pydantic knows, e.g. an id "
        f"instead of an ORM object"
    )


def is_unchecked(text: str) -> bool:
    """Tell whether a text of exact types needs no comparison.

    In the key of a dictionary, pydantic replaces half of a surrogate pair by U+FFFD instead of refusing it. For an int,
    it takes the value of any Enum: one that is no int is refused when it is written, but for None.
    """
    return len(text) <= MAX_UNCHECKED_LENGTH and "\ufffd" not in text and "null" not in text


def describe_invalid(error: Exception) -> str:
    """Return the problems that pydantic has found, in one line."""
    if not isinstance(error, ValidationError):
        return format_error(error)
    return "; ".join(f"{place}: {problem}".removeprefix(": ") for place, problem in list_problems(error))


def list_problems(error: ValidationError) -> list[tuple[str, str]]:
    """Return the problems that pydantic has found, each with its place in the values."""
    return [
        (".".join(map(str, problem["loc"])), problem["msg"].lower())
        for problem in error.errors(include_url=False, include_input=False)
    ]


def show_difference(before: Any, after: Any) -> str:
    """Return how a value has changed; values are shown only in types that hold no secrets."""
    if type(before) is not type(after):
        return f"a {type(before).__qualname__} arrives as {type(after).__qualname__}"
    return f"a {type(before).__qualname__} arrives changed; send what it is made from, e.g. the key of a table"
