"""A request to a view. It reads through the operations of the API, so that the API can do all that the page does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request

from worker.queue.audit import ordering_as
from worker.web.access import Caller, check_role
from worker.web.backend import Backend
from worker.web.fields import Query
from worker.web.operations import Call, Reply
from worker.web.page.form import Form
from worker.web.table import ORDERS, READS

_READS = {operation.name: operation for operation in READS}
_ORDERS = {operation.name: operation for operation in ORDERS}


class NoQuery(Query):
    """The query of a view that takes none."""


@dataclass(frozen=True)
class Visit:
    """A request to a view that has passed all checks of its form.

    Attributes:
        request: the request.
        backend: the servers.
        caller: who sends it.
        path: the values of the path's parameters, by name.
        query: the query, by the view's model.
    """

    request: Request
    backend: Backend
    caller: Caller
    path: Mapping[str, str]
    query: Any

    async def read(self, name: str, path: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """Return what an operation of the API returns.

        Args:
            name: the name of the operation, as in the table of operations.
            path: its path parameters.
            query: its query; values that are None are left out.

        Raises:
            Problem: the operation refuses, or the caller must not use it.
        """
        operation = _READS[name]
        if operation.role is not None:
            check_role(self.caller, operation.role)
        values = {key: value for key, value in query.items() if value is not None}
        model = None if operation.query is None else operation.query.model_validate(values)
        return await operation.handler(Call(self.request, self.backend, self.caller, path or {}, model))

    async def order(self, name: str, body: BaseModel, path: Mapping[str, Any] | None = None) -> Any:
        """Return the result of an order by an operation of the API.

        Args:
            name: the name of the operation.
            body: its body.
            path: its path parameters.

        Raises:
            Problem: the operation refuses, or the caller must not use it.
        """
        operation = _ORDERS[name]
        if operation.role is not None:
            check_role(self.caller, operation.role)
        with ordering_as(self.caller.name):
            result = await operation.handler(Call(self.request, self.backend, self.caller, path or {}, None, body))
        return result.body if isinstance(result, Reply) else result


@dataclass(frozen=True)
class Submitted:
    """The outcome of a form that a view has taken.

    Attributes:
        values: values for the template of the view, which shows the form again.
        data: what the script of the page gets instead, if it has sent the form.
        done: a sentence that the next page shows; None if the view shows the form again.
        view: the name of the next view.
        parameters: the parameters of its address.
        status: the status of the response that shows the form again.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    done: str | None = None
    view: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


Load = Callable[[Visit], Awaitable[Mapping[str, Any]]]
Submit = Callable[[Visit, Form], Awaitable[Submitted]]


@dataclass(frozen=True)
class View:
    """A view of the page.

    Attributes:
        name: its name; the template is `<name>.html`.
        path: its path behind the prefix, with `{name}` for its parameters.
        load: returns the values of the template.
        query: the model of its query.
        menu: its word in the navigation; None for none.
        go: its key after `g`; None for none.
        of: the view of the navigation that it belongs to; None for itself.
        watch: the events after which it is rendered again: `all`, or `run` for those of the run in its path.
        seconds: age after which it is rendered again without an event, while it is open.
        submit: takes a form that is sent to the view's own path; None if it takes none.
    """

    name: str
    path: str
    load: Load
    query: type[Query] = NoQuery
    menu: str | None = None
    go: str | None = None
    of: str | None = None
    watch: Literal["all", "run"] = "all"
    seconds: float = 5.0
    submit: Submit | None = None
    parts: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(part for part in self.path.split("/") if part))

    def match(self, parts: tuple[str, ...]) -> dict[str, str] | None:
        """Return the values of the parameters if a path fits; None if it does not."""
        if len(parts) != len(self.parts):
            return None
        values: dict[str, str] = {}
        for own, given in zip(self.parts, parts, strict=True):
            if own.startswith("{"):
                values[own[1:-1]] = given
            elif own != given:
                return None
        return values
