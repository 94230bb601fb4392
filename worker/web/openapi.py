"""The OpenAPI 3.1 document, made of the table of operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from worker.queue.payload import LONGEST_ID
from worker.web.idempotency import LONGEST_KEY
from worker.web.operations import Operation
from worker.web.problems import MEDIA_TYPE, ProblemDocument
from worker.web.tokens import ROLES

_REF = "#/components/schemas/{model}"
_SCHEME = "token"
#: Problems that every operation may have; that one which needs a role, and one which has a body, may have as well.
_ALWAYS = (500, 503)
_WITH_ROLE = (401, 403, 429)
_WITH_BODY = (400, 413, 415)
_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "run_id": {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
    "job": {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
    "row_id": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
}


def make_document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the document.

    Args:
        operations: the table of operations.
    """
    table = tuple(operations)
    schemas, references = _make_schemas(table)
    paths: dict[str, dict[str, Any]] = {}
    for operation in table:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, references)
    try:
        release = version("longhaul-worker")
    except PackageNotFoundError:  # a source tree that is not installed
        release = "0"
    description = f"Roles of tokens: {', '.join(ROLES)}. Without a file of tokens, only this machine may send requests."
    return {
        "openapi": "3.1.0",
        "info": {"title": "Longhaul", "version": release, "description": description},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {_SCHEME: {"type": "http", "scheme": "bearer"}},
        },
    }


def _make_schemas(table: tuple[Operation, ...]) -> tuple[dict[str, Any], dict[tuple[type, JsonSchemaMode], Any]]:
    """Return the schemas by name, and the reference to the schema of each model."""
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ProblemDocument, "serialization"): None}
    for operation in table:
        if operation.result is not None:
            models[operation.result, "serialization"] = None
        if operation.body is not None:
            models[operation.body, "validation"] = None
    references, document = models_json_schema(list(models), ref_template=_REF)
    return document.get("$defs", {}), dict(references)


def _describe(operation: Operation, references: Mapping[tuple[type, JsonSchemaMode], Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": f"Role: {operation.role}." if operation.role else "",
        "responses": _describe_responses(operation, references),
    }
    if operation.role is not None:
        described["security"] = [{_SCHEME: []}, {}]
    if parameters := [*_describe_path(operation), *_describe_query(operation), *_describe_headers(operation)]:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = references[operation.body, "validation"]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _describe_path(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]} for name in operation.parameters
    ]


def _describe_query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    schema = operation.query.model_json_schema()
    found = []
    for name, field in schema["properties"].items():
        own = {key: value for key, value in field.items() if key not in ("title", "description", "default")}
        if "anyOf" in own:  # a parameter that is missing is None; no text stands for it
            [own] = [one for one in own["anyOf"] if one != {"type": "null"}]
        described = {"name": name, "in": "query", "required": False, "schema": own}
        found.append(described | {"description": field.get("description", "")})
    return found


def _describe_headers(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if operation.has_idempotency_key:
        schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY}
        text = "A request that is repeated with the same key and body enqueues one run."
        schema["pattern"] = "^[!-~]([ -~]*[!-~])?$"
        found.append({"name": "Idempotency-Key", "in": "header", "schema": schema, "description": text})
    if operation.content == "events":
        schema = {"type": "string", "pattern": r"^[0-9]{1,19}-[0-9]{1,19}$"}
        text = "Id of the last event that the client has; the stream continues after it."
        found.append({"name": "Last-Event-ID", "in": "header", "schema": schema, "description": text})
    return [{**one, "required": False} for one in found]


def _describe_responses(
    operation: Operation, references: Mapping[tuple[type, JsonSchemaMode], Any]
) -> dict[str, dict[str, Any]]:
    if operation.content == "events":
        content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    elif operation.content == "text":
        content = {"text/plain": {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": references[operation.result, "serialization"]}}
    found: dict[str, dict[str, Any]] = {"200": {"description": "OK", "content": content}}
    for status, text in operation.statuses.items():
        found[str(status)] = {"description": text, **({} if status == 204 else {"content": content})}
    problem = {MEDIA_TYPE: {"schema": references[ProblemDocument, "serialization"]}}
    statuses = {*_ALWAYS, *operation.problems}
    statuses.update(_WITH_ROLE if operation.role is not None else ())
    statuses.update(_WITH_BODY if operation.body is not None else ())
    statuses.update(() if operation.is_for_monitors else (422,))  # a query that does not fit
    for status in sorted(statuses):
        own = found.get(str(status), {"description": HTTPStatus(status).phrase, "content": {}})
        found[str(status)] = own | {"content": own["content"] | problem}
    return found
