"""The page: routing, and the answers to views, orders, login and static files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from worker.queue.payload import read_run_id
from worker.web.access import Access, check_role
from worker.web.backend import Backend
from worker.web.events import EventStream
from worker.web.page.assets import Assets
from worker.web.page.form import Form, read_form
from worker.web.page.forms import give_order, list_commands
from worker.web.page.links import list_links, split
from worker.web.page.live import Live
from worker.web.page.render import CSRF_MARK, Rendered, Templates
from worker.web.page.session import Sessions, Visitor
from worker.web.page.views import VIEWS
from worker.web.page.visit import View, Visit
from worker.web.problems import Problem, explain_any_error, invalid, not_found

logger = logging.getLogger("longhaul.web")

_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "font", "connect")),
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, a form would send `Origin: null`
    "X-Frame-Options": "DENY",
}
_LIVE = "live"
_LOGIN = ("page", "login")
_LOGOUT = ("page", "logout")


class Site:
    """The page of an application.

    Args:
        backend: the servers.
        access: the tokens.
    """

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._assets = Assets()
        self._templates = Templates(VIEWS, self._assets.version)
        self._sessions = Sessions(access, backend.settings.web)
        self._live = Live(backend)

    @staticmethod
    def owns(parts: tuple[str, ...]) -> bool:
        """Return whether a path belongs to the page, and not to the API."""
        return parts in ((), ("",)) or parts[0] == "page"

    def prepare(self) -> None:
        """Compile the templates, which the first page would wait for."""
        self._templates.compile()

    async def close(self) -> None:
        """End the streams."""
        await self._live.close()

    async def respond(self, request: Request, parts: tuple[str, ...]) -> Response:
        """Return the response to a request.

        Raises:
            Problem: the request is not valid, or not allowed. `show_problem` makes a page of it.
        """
        parts = tuple(part for part in parts if part)
        if parts[:2] == ("page", "static") and len(parts) == 4 and request.method == "GET":
            response = self._assets.respond(request, parts[2], parts[3])
        elif parts[:2] == ("page", "orders") and len(parts) == 3:
            response = await self._give_order(request, parts[2])
        elif parts[:2] == ("page", "commands") and len(parts) == 3:
            response = await self._show_commands(request, parts[2])
        elif parts == _LOGIN and request.method == "POST":
            response = await self._log_in(request)
        elif parts == _LOGOUT:
            response = await self._log_out(request)
        elif request.method == "POST":
            response = await self._submit(request, parts)
        else:
            response = await self._show(request, parts)
        response.headers.update(_HEADERS)
        return response

    # --- views

    async def _show(self, request: Request, parts: tuple[str, ...]) -> Response:
        _check_method(request, "GET")
        if _is_from_elsewhere(request):
            # The browser does not send the cookie with a link of another site: it does when the page loads itself.
            return self._respond(request, "again.html", None, {"address": _address(request)})
        visitor = self._sessions.find(request)
        if visitor is None:
            if parts == _LOGIN:
                return self._respond(request, "login.html", None, {"next": request.query_params.get("next", "")})
            if _LIVE in request.query_params:
                raise Problem(401, "no-session", "the session has ended: log in again")
            root = _root(request)
            return RedirectResponse(f"{root}/page/login?{urlencode({'next': _address(request)})}", 303)
        if parts == _LOGIN:
            return RedirectResponse(f"{_root(request)}/", 303)
        check_role(visitor.caller, "read")
        view, path = _find_view(parts)
        visit = Visit(request, self._backend, visitor.caller, path, _read_query(view, request))
        if _LIVE in request.query_params:
            return self._stream(view, visit, visitor)
        rendered = await self._render(view, visit)
        return self._respond(request, rendered, visitor, {})

    async def _render(self, view: View, visit: Visit, more: Mapping[str, Any] | None = None) -> Rendered:
        """Return a view, from one rendering for all that look at it at the moment.

        Args:
            view: the view.
            visit: the request.
            more: further values for this visit alone.
        """
        root, roles = _root(visit.request), visit.caller.roles
        message = self._sessions.read_message(visit.request)

        async def render() -> Rendered:
            values: dict[str, Any] = {
                "view": view,
                "message": split(*message) if message else [],
                "address": _address(visit.request),
                "visitor": visit.caller,
            }
            values |= {"has_session": self._has_tokens, "query": visit.query, "path": visit.path}
            return self._templates.render(
                f"{view.name}.html", root, roles, values | dict(await view.load(visit)) | dict(more or {})
            )

        if message or more is not None:
            return await render()
        return await self._backend.reads.get(("page", *self._key(view, visit)), render)

    async def _submit(self, request: Request, parts: tuple[str, ...]) -> Response:
        """Give a form to the view at whose path it arrives."""
        visitor, form = await self._read_order(request)
        view, path = _find_view(parts)
        if view.submit is None:
            _check_method(request, "GET")
            raise AssertionError("this is no GET")
        visit = Visit(request, self._backend, visitor.caller, path, _read_query(view, request))
        submitted = await view.submit(visit, form)
        if _wants_json(request):
            return JSONResponse(submitted.data, submitted.status)
        response: Response
        if submitted.done is None:
            rendered = await self._render(view, visit, submitted.values)
            response = self._respond(request, rendered, visitor, {})
            response.status_code = submitted.status
            return response
        place = self._templates.make_url(_root(request), submitted.view, submitted.parameters)
        # A script cannot read where a redirect leads, and would take the message by following it.
        response = JSONResponse({"place": place}) if _is_of_script(request) else RedirectResponse(place, 303)
        self._sessions.leave_message(request, response, submitted.done)
        return response

    @property
    def _has_tokens(self) -> bool:
        return self._backend.settings.web.tokens_file is not None

    def _key(self, view: View, visit: Visit) -> tuple[Any, ...]:
        return view.name, _address(visit.request), _root(visit.request), visit.caller

    def _stream(self, view: View, visit: Visit, visitor: Visitor) -> Response:
        self._live.check()

        async def render() -> dict[str, str]:
            try:
                return (await self._render(view, visit)).regions
            except Problem:
                raise
            except Exception as error:
                problem = explain_any_error(error, self._backend.settings)
                if problem is None:
                    logger.error("page cannot be updated view=%s", view.name, exc_info=error)
                    problem = Problem(500, "internal-error", "the page cannot be read; see the log")
                raise problem from None

        run_id = visit.path.get("run_id") if view.watch == "run" else None
        messages = self._live.stream(
            self._key(view, visit),
            run_id,
            view.seconds,
            render,
            (CSRF_MARK, visitor.csrf),
            lambda: self._sessions.still_has(visit.request, visitor),
        )
        return EventStream(messages)

    def _respond(
        self, request: Request, template: str | Rendered, visitor: Visitor | None, values: Mapping[str, Any]
    ) -> Response:
        if isinstance(template, str):
            template = self._templates.render(template, _root(request), frozenset(), values)
        response = HTMLResponse(template.html.replace(CSRF_MARK, visitor.csrf if visitor else ""))
        if visitor is not None:
            self._sessions.take_message(request, response)
        return response

    # --- login

    async def _log_in(self, request: Request) -> Response:
        form = await read_form(request, self._backend.settings.web.max_body_bytes)
        place = form.get("next")
        response: Response = RedirectResponse(place if _is_own(request, place) else f"{_root(request)}/", 303)
        try:
            self._sessions.begin(request, response, form.get("token").strip())
        except Problem as problem:
            detail = "this token is not valid" if problem.status == 401 else problem.detail
            values = {"next": place, "refused": detail}
            response = self._respond(request, "login.html", None, values)
            response.status_code = problem.status
        return response

    async def _log_out(self, request: Request) -> Response:
        _check_method(request, "POST")
        visitor = self._sessions.find(request)
        form = await read_form(request, self._backend.settings.web.max_body_bytes)
        response = RedirectResponse(f"{_root(request)}/page/login", 303)
        if visitor is not None:
            self._sessions.check_order(request, visitor, form.get("csrf"))
            self._sessions.end(request, response)
        return response

    # --- orders

    async def _give_order(self, request: Request, name: str) -> Response:
        """Give an order. The script of the page asks for JSON; a plain form is sent back to the page."""
        visitor, form = await self._read_order(request)
        text, result = await give_order(name, form, request, self._backend, visitor.caller)
        place = form.get("back")
        links = [
            (link.name, self._templates.make_url(_root(request), link.view, link.parameters))
            for link in await list_links(name, result, self._backend)
        ]
        if _wants_json(request):
            content = result.model_dump(mode="json") if isinstance(result, BaseModel) else None
            others = [link for link in links if link[1] != place]  # that page is open
            return JSONResponse({"text": text, "result": content, "links": others})
        response = RedirectResponse(place if _is_own(request, place) else f"{_root(request)}/", 303)
        self._sessions.leave_message(request, response, text, links)
        return response

    async def _show_commands(self, request: Request, name: str) -> Response:
        """Return the command lines of an order. The script of the page shows them in a dialog."""
        visitor, form = await self._read_order(request)
        lines = await list_commands(name, form, self._backend, visitor.caller)
        if _wants_json(request):
            return JSONResponse({"lines": lines})
        place = form.get("back")
        values = {"lines": lines, "back": place if _is_own(request, place) else f"{_root(request)}/"}
        return self._respond(request, "commands.html", None, values)

    async def _read_order(self, request: Request) -> tuple[Visitor, Form]:
        """Return who sends a form, and the form.

        Raises:
            Problem: it was not sent by a page of their session.
        """
        _check_method(request, "POST")
        visitor = self._sessions.find(request)
        if visitor is None:
            raise Problem(401, "no-session", "the session has ended: log in again")
        form = await read_form(request, self._backend.settings.web.max_body_bytes)
        self._sessions.check_order(request, visitor, form.get("csrf"))
        return visitor, form

    # --- problems

    def show_problem(self, request: Request, problem: Problem) -> Response:
        """Return the page of a problem; for the script of the page, its document."""
        if _is_of_script(request):
            response: Response = JSONResponse({"text": problem.detail}, problem.status)
        else:
            values = {"status": problem.status, "title": HTTPStatus(problem.status).phrase, "detail": problem.detail}
            values |= {"errors": problem.errors}
            html = self._templates.render("problem.html", _root(request), frozenset(), values).html
            response = HTMLResponse(html, problem.status)
        response.headers.update(problem.headers)
        response.headers.update(_HEADERS)
        return response


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


def _address(request: Request) -> str:
    """Return path and query of the page, without the mark of its stream."""
    raw: bytes | None = request.scope.get("raw_path")
    path = raw.partition(b"?")[0].decode("latin-1") if raw else quote(request.scope["path"])
    root = _root(request)
    query = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != _LIVE])
    return (path if path.startswith(f"{root}/") else root + path) + (f"?{query}" if query else "")


def _is_own(request: Request, place: str) -> bool:
    """Return whether an address is a path of this page, and of no other site."""
    root = _root(request)
    is_path = (
        place.startswith("/") and not place.startswith(("//", "/\\")) and place.isprintable() and "\\" not in place
    )
    if not is_path or urlsplit(place).netloc:
        return False
    path = urlsplit(place).path
    return path in (root, f"{root}/") or path.startswith(f"{root}/page/")


def _is_from_elsewhere(request: Request) -> bool:
    """Return whether a link of another site has led here."""
    is_foreign = request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    return is_foreign and request.headers.get("sec-fetch-mode") == "navigate"


def _wants_json(request: Request) -> bool:
    return request.headers.get("accept") == "application/json"


def _is_of_script(request: Request) -> bool:
    """Return whether the script of the page has sent a request: it takes JSON, of a job also HTML."""
    return _wants_json(request) or request.headers.get("accept") == "text/html, application/json"


def _check_method(request: Request, method: str) -> None:
    if request.method != method:
        raise Problem(405, "method-not-allowed", f"the path takes {method}", headers={"Allow": method})


def _find_view(parts: tuple[str, ...]) -> tuple[View, dict[str, str]]:
    for view in VIEWS:
        values = view.match(parts)
        if values is not None:
            if any(read_run_id(text) is None for text in values.values()):
                raise not_found("that is not a name: it has 1 to 500 printable characters")
            return view, values
    raise not_found("there is no such page")


def _read_query(view: View, request: Request) -> Any:
    """Return the query of a view. A form sends the fields that were left empty as well."""
    values = {name: text for name, text in request.query_params.items() if name != _LIVE and text.strip()}
    try:
        return view.query.model_validate(values)
    except ValidationError as error:
        raise invalid("query", error) from None
