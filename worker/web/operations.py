"""An operation of the API. The table of operations makes both the routing and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from worker.web.access import Caller
from worker.web.backend import Backend
from worker.web.tokens import Role

Method = Literal["GET", "POST"]
Content = Literal["json", "events", "text"]


@dataclass(frozen=True)
class Call:
    """A request that has passed all checks of its form.

    Attributes:
        request: the request.
        backend: the servers.
        caller: who sends it.
        path: the values of the path's parameters, by name.
        query: the query, by the operation's model.
        body: the body, by the operation's model.
    """

    request: Request
    backend: Backend
    caller: Caller
    path: Mapping[str, Any]
    query: Any = None
    body: Any = None


@dataclass(frozen=True)
class Reply:
    """A response other than 200.

    Attributes:
        body: the body; None for none.
        status: the status.
        headers: further headers.
    """

    body: BaseModel | None
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[BaseModel | Reply | Response]]


@dataclass(frozen=True)
class Operation:
    """An operation.

    Attributes:
        method: the method of HTTP.
        path: the path, with `{name}` for its parameters.
        name: its name in the document, unique.
        tag: the group in the document.
        role: the role that a caller needs; None for none, and no token either.
        summary: what it does, in one line.
        handler: does it.
        result: the model of the response.
        query: the model of the query; None for none.
        body: the model of the body; None for none.
        content: `json`, `text`, or `events` for a stream of server-sent events.
        statuses: descriptions of further statuses with such a content, by status.
        problems: further statuses of problems.
        has_idempotency_key: whether it takes the header `Idempotency-Key`.
        is_for_monitors: whether it takes `HEAD`, too, and ignores the query, as monitoring systems expect.
    """

    method: Method
    path: str
    name: str
    tag: str
    role: Role | None
    summary: str
    handler: Handler
    result: Any
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    content: Content = "json"
    statuses: Mapping[int, str] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    has_idempotency_key: bool = False
    is_for_monitors: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it takes."""
        return (self.method, "HEAD") if self.is_for_monitors else (self.method,)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the path between slashes."""
        return tuple(self.path.strip("/").split("/"))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the path's parameters."""
        return tuple(part[1:-1] for part in self.parts if part.startswith("{"))

    def match(self, parts: tuple[str, ...]) -> dict[str, str] | None:
        """Return the values of the parameters if a path fits; None if it does not."""
        if len(parts) != len(self.parts):
            return None
        values: dict[str, str] = {}
        for own, given in zip(self.parts, parts, strict=True):
            if own == "{row_id}" and not given.isdecimal():
                return None  # another path, such as /quarantine/retry
            if own.startswith("{"):
                values[own[1:-1]] = given
            elif own != given:
                return None
        return values
