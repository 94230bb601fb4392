"""Orders of the page: a form becomes the body of an operation of the API.

| field of the form | becomes |
| --- | --- |
| `runs=a`, `runs=b` | a list, if the body has a list there |
| `rows_per_second=` | null |
| `arguments:json={…}` | the JSON value |
| `path:job=purge` | a parameter of the path |
| `csrf`, `back` | the CSRF token; the address of the next page |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from worker.queue.audit import ordering_as
from worker.web.access import Caller, check_role
from worker.web.backend import Backend
from worker.web.effects import CountView, EnqueuedView, PacesView, RetriedRowsView, TargetsView
from worker.web.operations import Call, Operation, Reply
from worker.web.page.command_lines import make_commands
from worker.web.page.form import Form
from worker.web.page.links import LONGEST_NAME, NAMES_SHOWN
from worker.web.problems import Problem, invalid, not_found
from worker.web.table import ORDERS

_ORDERS = {operation.name: operation for operation in ORDERS}
_OTHERS = ("csrf", "back")

#: The sentence for an order that was carried out.
_DONE = {
    "pause": "Paused",
    "resume": "Resumed",
    "limit": "Limit set for",
    "cancel": "Cancelled",
    "retry": "Enqueued again:",
    "drain": "Draining",
    "retry_dead_letters": "Enqueued again:",
    "delete_dead_letters": "Deleted",
    "discard_quarantined": "Deleted rows:",
    "retry_outbox": "Relayed again, rows:",
    "delete_outbox": "Deleted rows:",
}


async def give_order(name: str, form: Form, request: Request, backend: Backend, caller: Caller) -> tuple[str, Any]:
    """Give the order of a form by an operation of the API. Return a sentence that says what was done, and the result.

    Raises:
        Problem: there is no such operation, the caller must not use it, or it refuses.
    """
    operation = _find_operation(name, caller)
    path, body = _read_fields(operation, form)
    with ordering_as(caller.name):
        result = await operation.handler(Call(request, backend, caller, path, None, body))
    content = result.body if isinstance(result, Reply) else result
    return _describe(name, content), content


async def list_commands(name: str, form: Form, backend: Backend, caller: Caller) -> list[str]:
    """Return the command lines that do what a form would order; nothing is ordered.

    Raises:
        Problem: there is no such operation, the caller must not use it, or the form is not valid.
    """
    operation = _find_operation(name, caller)
    path, body = _read_fields(operation, form)
    return await make_commands(backend, operation.name, path, body)


def _find_operation(name: str, caller: Caller) -> Operation:
    if name not in _ORDERS:
        raise not_found("there is no such order")
    operation = _ORDERS[name]
    if operation.role is not None:
        check_role(caller, operation.role)
    return operation


def _read_fields(operation: Operation, form: Form) -> tuple[Mapping[str, str], BaseModel | None]:
    path: dict[str, str] = {}
    values: dict[str, Any] = {}
    model = operation.body
    for name, text in form.pairs:
        if name in _OTHERS:
            continue
        if name.startswith("path:"):
            path[name.removeprefix("path:")] = text
        elif name.endswith(":json"):
            values[name.removesuffix(":json")] = _read_json(name, text)
        elif model is not None and name in model.model_fields and _is_list(model.model_fields[name].annotation):
            values.setdefault(name, []).append(text)
        else:
            values[name] = text or None
    if set(path) != set(operation.parameters):
        raise Problem(422, "invalid-request", f"the form must have {', '.join(operation.parameters)} for the path")
    try:
        return path, None if model is None else model.model_validate(values, strict=False)
    except ValidationError as error:
        raise invalid("form", error) from None


def _read_json(name: str, text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise Problem(422, "invalid-request", f"form.{name[:100]}: it is not JSON") from None


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_is_list(one) for one in get_args(annotation))


def _describe(name: str, result: Any) -> str:
    done = _DONE.get(name, "Done:")
    if isinstance(result, EnqueuedView):
        return f"Enqueued {result.id}." if result.is_new else f"{result.id} was enqueued before."
    if isinstance(result, PacesView):
        return f"Pace of {_list_names(result.changed)}: {_describe_pace(result)}."
    if isinstance(result, RetriedRowsView) and result.changed:
        rows = "1 row is" if result.rows == 1 else f"{result.rows:,} rows are"
        return f"{rows} processed again by {_list_names(result.changed)}."
    if isinstance(result, CountView):
        return f"{done} {result.changed:,}."
    if isinstance(result, TargetsView):
        parts = [f"{done} {_list_names(result.changed)}."] if result.changed else []
        parts += [f"Nothing to do for {_list_names(result.unchanged)}."] if result.unchanged else []
        return " ".join(parts) or "Nothing to do."
    return "Done."


def _describe_pace(result: PacesView) -> str:
    """Return the values of a pace: `420 → 210 rows/s`."""
    before, after = (
        [*dict.fromkeys("no limit" if one is None else f"{one:,.12g}" for one in values)]
        for values in (result.before, [result.rows_per_second])
    )
    unit = "" if result.rows_per_second is None else " rows/s"
    return f"{', '.join(before[:NAMES_SHOWN])} → {after[0]}{unit}"


def _list_names(names: list[str]) -> str:
    shown = ", ".join("everything" if name == "*" else name[:LONGEST_NAME] for name in names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN:,} more"
