"""Errors of the API as problems (RFC 9457): `application/problem+json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from worker.errors import (
    CorruptKey,
    DatabaseNotMigrated,
    InvalidArguments,
    InvalidPayload,
    LonghaulError,
    RegistrationError,
    RunIdConflict,
    ServerUnavailable,
    UnknownJob,
    UsageError,
)
from worker.queue.ledger_access import explain
from worker.settings import Settings

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:longhaul:problem:"
_MOST_FIELDS = 20
_LONGEST_DETAIL = 2_000

#: The status of each error that a handler may raise; the first that fits counts.
_STATUSES: tuple[tuple[type[LonghaulError], int, str], ...] = (
    (UnknownJob, 404, "unknown-job"),
    (InvalidArguments, 422, "invalid-arguments"),
    (InvalidPayload, 422, "invalid-payload"),
    (UsageError, 422, "not-possible"),
    (RunIdConflict, 409, "run-id-conflict"),
    (CorruptKey, 409, "corrupt-key"),
    (DatabaseNotMigrated, 503, "not-migrated"),
    (ServerUnavailable, 503, "server-unavailable"),
    (RegistrationError, 503, "jobs-not-loaded"),
)


class InvalidField(BaseModel):
    """A part of a request that is not valid."""

    where: str = Field(description="Place in the request, e.g. `body.arguments` or `query.limit`.")
    message: str


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(description="Kind of the problem, a URN that does not change.")
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do next.")
    errors: list[InvalidField] = Field(default=[], description="The parts of the request that are not valid.")


class Problem(Exception):
    """A request fails. Handlers raise it; the application answers with its document.

    Args:
        status: the status of the response.
        kind: the last part of its type.
        detail: what happened, and what to do next.
        errors: the parts of the request that are not valid.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[InvalidField] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def document(self) -> ProblemDocument:
        """Return the body of the response."""
        detail = self.detail[:_LONGEST_DETAIL].encode(errors="backslashreplace").decode()
        return ProblemDocument(
            type=_TYPE + self.kind,
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=detail,
            errors=self.errors,
        )


def not_found(what: str) -> Problem:
    """Return the problem of something that does not exist."""
    return Problem(404, "not-found", what)


def invalid(place: str, error: ValidationError) -> Problem:
    """Return the problem of a query or a body that does not fit its model.

    Args:
        place: `query`, `body` or `path`.
        error: the error of the model.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if any(one["type"] == "json_invalid" for one in found):
        return Problem(400, "invalid-json", f"the body is not JSON: {found[0]['msg']}")
    errors = [InvalidField(where=_describe_place(place, one["loc"]), message=one["msg"]) for one in found]
    shown = "; ".join(f"{one.where}: {one.message}" for one in errors[:3])
    return Problem(422, "invalid-request", shown, errors=errors[:_MOST_FIELDS])


def _describe_place(place: str, parts: Sequence[Any]) -> str:
    text = ".".join([place, *(str(part)[:100] for part in parts)])
    return text.encode(errors="backslashreplace").decode()


def explain_error(error: LonghaulError) -> Problem:
    """Return the problem of an error that a handler has raised."""
    for kind, status, name in _STATUSES:
        if isinstance(error, kind):
            headers = {"Retry-After": "1"} if status == 503 else {}
            return Problem(status, name, str(error), errors=_list_fields(error), headers=headers)
    return Problem(422, "not-possible", str(error))


def _list_fields(error: LonghaulError) -> list[InvalidField]:
    problems = error.problems[:_MOST_FIELDS] if isinstance(error, InvalidArguments) else ()
    return [InvalidField(where=_describe_place("body.arguments", [place]), message=text) for place, text in problems]


def explain_any_error(error: Exception, settings: Settings) -> Problem | None:
    """Return the problem of any error; None if it is not one that a caller can act on."""
    if isinstance(error, SQLAlchemyError | OSError):
        explained = explain(error, settings)
        return explain_error(explained) if isinstance(explained, LonghaulError) else None
    return explain_error(error) if isinstance(error, LonghaulError) else None
