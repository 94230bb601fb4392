"""The ASGI application: routing by the table of operations, authentication, limits, and problems for all errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from worker.cancellation import cancel_and_wait
from worker.errors import LonghaulError
from worker.job.definition import Job
from worker.queue.audit import ordering_as
from worker.queue.payload import read_run_id
from worker.settings import Settings
from worker.web.access import ANYONE, Access, check_role
from worker.web.backend import Backend
from worker.web.openapi import make_document
from worker.web.operations import Call, Operation, Reply
from worker.web.page import Site
from worker.web.problems import MEDIA_TYPE, Problem, explain_any_error, invalid, not_found
from worker.web.queue_reads import read_totals
from worker.web.table import OPERATIONS
from worker.web.tokens import Role

logger = logging.getLogger("longhaul.web")

_Part = TypeVar("_Part")
_DOCUMENT_PATH = ("openapi.json",)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LARGEST_ROW_ID = 2**63 - 1
_MOST_DIGITS = 19


class WebApp:
    """The HTTP API, an ASGI application that runs alone or mounted in another one.

    Args:
        settings: the settings.
        jobs: the jobs; by default those found in `worker.packages`.

    Attributes:
        backend: the servers behind it.
    """

    def __init__(self, settings: Settings, jobs: Iterable[Job[..., Any]] | None = None) -> None:
        self.backend = Backend(settings, jobs)
        self._settings = settings
        self._access = Access(settings.web)
        self._document = make_document(OPERATIONS)
        self._loading: asyncio.Task[None] | None = None

    @cached_property
    def _site(self) -> Site:
        """The page."""
        return Site(self.backend, self._access)

    async def close(self) -> None:
        """End the streams of events, and close the connections. Call it if the application is mounted."""
        if self._loading is not None:
            await cancel_and_wait(self._loading)
        if "_site" in self.__dict__:
            await self._site.close()
        await self.backend.close()

    def check_tokens(self) -> None:
        """Raise `SettingsError` if the file of tokens cannot be read."""
        if self._access.file is not None:
            self._access.file.tokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            request = Request(scope, receive)
            try:
                response = await self._respond(request)
            except ClientDisconnect:
                return
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            await response(scope, receive, send)

    async def _load_jobs(self) -> None:
        """Compile the templates and import the jobs before the first request needs them: that takes a second."""
        self._site.prepare()
        with contextlib.suppress(LonghaulError):  # the request that needs them says why they cannot be imported
            await self.backend.load_jobs()

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.backend.history.start(lambda: read_totals(self.backend))
                self._loading = asyncio.create_task(self._load_jobs(), name="web jobs")
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, request: Request) -> Response:
        """Return the response to a request, whatever happens."""
        parts = _split_path(request.scope)
        is_page = Site.owns(parts)
        try:
            return await (self._site.respond(request, parts) if is_page else self._answer(request, parts))
        except Problem as raised:
            problem = raised
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - a request must not end without an answer
            problem = explain_any_error(error, self._settings) or _log_failure(request, error)
        return self._site.show_problem(request, problem) if is_page else _make_response(problem)

    async def _answer(self, request: Request, parts: tuple[str, ...]) -> Response:
        """Return the response to a valid request.

        Raises:
            Problem: the request is not valid, or not allowed.
        """
        if parts == _DOCUMENT_PATH:
            _check_method(request, ("GET",))
            self._access.authenticate(request)
            return JSONResponse(self._document | {"servers": [{"url": _root(request.scope) or "/"}]})
        operation, path = _find_operation(parts, request)
        caller = ANYONE
        if operation.role is not None:
            caller = self._access.authenticate(request)
            check_role(caller, operation.role)
        query = None if operation.is_for_monitors else _read_query(operation, request)
        body = await self._read_body(operation, request)
        call = Call(request, self.backend, caller, path, query, body)
        with ordering_as(caller.name):
            response = _make_success(await operation.handler(call))
        if operation.role is not None and isinstance(response, StreamingResponse):
            response.body_iterator = self._limit(response.body_iterator, request, operation.role)
        return response

    async def _limit(self, stream: AsyncIterable[_Part], request: Request, role: Role) -> AsyncIterator[_Part]:
        """Yield the parts of a stream as long as the token of its request is valid."""
        try:
            async for part in stream:
                if not self._access.still_allows(request, role):
                    return
                yield part
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    async def _read_body(self, operation: Operation, request: Request) -> BaseModel | None:
        """Return the body in the operation's model; read no more of it than the limit.

        Raises:
            Problem: it is too large, of another type, no JSON, or does not fit the model.
        """
        if operation.body is None:
            return None
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem(415, "not-json", "send the body as Content-Type: application/json")
        limit, found = self._settings.web.max_body_bytes, bytearray()
        too_large = Problem(413, "body-too-large", f"the body exceeds web.max_body_bytes = {limit:,}")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:_MOST_DIGITS]) > limit:
            raise too_large
        async for part in request.stream():
            found += part
            if len(found) > limit:
                raise too_large
        try:
            return operation.body.model_validate_json(bytes(found))
        except ValidationError as error:
            raise invalid("body", error) from None


def _root(scope: Scope) -> str:
    return str(scope.get("root_path", "")).rstrip("/")


def _split_path(scope: Scope) -> tuple[str, ...]:
    """Return the parts of the path between slashes, each decoded: an id may contain an encoded slash."""
    raw = scope.get("raw_path")
    path = raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])
    parts = [unquote(part) for part in path.split("/")[1:]]
    root = [part for part in _root(scope).split("/") if part]
    if parts[: len(root)] == root:  # a server that mounts the application may leave its prefix in the path
        parts = parts[len(root) :]
    return tuple(parts)


def _find_operation(parts: tuple[str, ...], request: Request) -> tuple[Operation, dict[str, Any]]:
    """Return the operation for a path and a method, with the parameters of the path.

    Raises:
        Problem: there is no such path, or not with this method.
    """
    matches = [(operation, values) for operation in OPERATIONS if (values := operation.match(parts)) is not None]
    if not matches:
        raise not_found("there is no such path; /openapi.json lists all of them")
    # A path without parameters is the better match: POST /dead-letters/retry, and not the letter `retry`.
    for operation, values in sorted(matches, key=lambda match: len(match[1])):
        if request.method in operation.methods:
            return operation, _read_path(values)
    methods = sorted({method for operation, _ in matches for method in operation.methods})
    _check_method(request, methods)
    raise AssertionError("a method that fits has an operation")


def _check_method(request: Request, methods: Iterable[str]) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        text = f"the path takes {allowed}"
        raise Problem(405, "method-not-allowed", text, headers={"Allow": allowed})


def _read_path(values: dict[str, str]) -> dict[str, Any]:
    """Return the parameters of a path in their types.

    Raises:
        Problem: one of them can be the name of nothing.
    """
    found: dict[str, Any] = {}
    for name, text in values.items():
        if name == "row_id":
            is_number = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
            if not is_number or not 1 <= int(text) <= _LARGEST_ROW_ID:
                raise not_found(f"{text[:100]!r} is not the id of a row")
            found[name] = int(text)
        elif read_run_id(text) is None:
            raise not_found(f"{text[:100]!r} is not a name: it has 1 to 500 printable characters")
        else:
            found[name] = text
    return found


def _read_query(operation: Operation, request: Request) -> BaseModel | None:
    """Return the query in the operation's model.

    Raises:
        Problem: it does not fit, has an unknown parameter, or one of them twice.
    """
    values: dict[str, str] = {}
    for name, text in request.query_params.multi_items():
        if name in values or operation.query is None:
            reason = "given twice" if name in values else "unknown"
            raise Problem(422, "invalid-request", f"query.{name[:100]}: the parameter is {reason}")
        values[name] = text
    if operation.query is None:
        return None
    try:
        return operation.query.model_validate(values)
    except ValidationError as error:
        raise invalid("query", error) from None


def _make_success(result: BaseModel | Reply | Response) -> Response:
    if isinstance(result, Response):
        return result
    if isinstance(result, BaseModel):
        result = Reply(result, 200)
    content = None if result.body is None else result.body.model_dump_json().encode()
    return Response(content, result.status, headers=dict(result.headers), media_type="application/json")


def _make_response(problem: Problem) -> Response:
    content = problem.document().model_dump_json().encode()
    return Response(content, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def _log_failure(request: Request, error: Exception) -> Problem:
    """Return the problem of a request that failed for a reason that is not the caller's. The log has the error."""
    mark = uuid.uuid4().hex[:12]
    logger.error("request failed method=%s mark=%s", request.method, mark, exc_info=error)
    return Problem(500, "internal-error", f"the request failed; see the log, mark={mark}")


def web_app(settings: Settings, *, jobs: Iterable[Job[..., Any]] | None = None) -> WebApp:
    """Return the HTTP API as an ASGI application.

    ```python
    app.mount("/longhaul", web_app(settings))
    ```

    Nothing is opened before the first request. An application that mounts it calls `close()` when it ends.

    Args:
        settings: the settings; the section `web` is for this application.
        jobs: the jobs; by default those found in `worker.packages`.
    """
    return WebApp(settings, jobs)
