"""Sessions of the page: a cookie names a token of the file, and is signed; orders need a CSRF token as well."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from worker.settings.sections import WebSettings
from worker.web.access import LOCAL, Access, Caller, check_local
from worker.web.problems import Problem
from worker.web.tokens import Token

logger = logging.getLogger("longhaul.web")

COOKIE = "longhaul_session"
FLASH = "longhaul_flash"
_KEY_BYTES = 32
_FLASH_SECONDS = 60
_LONGEST_COOKIE = 4_000  # browsers keep 4,096 bytes
_LONGEST_MESSAGE = 1_000  # bytes; JSON doubles at most


@dataclass(frozen=True)
class Visitor:
    """The visitor of the page.

    Attributes:
        caller: the name and the roles.
        csrf: the token that each form of this session has.
        has_session: whether there is a session to end; False without tokens.
    """

    caller: Caller
    csrf: str
    has_session: bool


class Sessions:
    """Opens and checks sessions. The tokens of the file stay the authority: one that was revoked ends its sessions.

    Cookies are signed with a key in a file beside the tokens, so a session survives a restart, and holds for several
    servers that share the file. If the file cannot be written, the key lives as long as the process.

    Args:
        access: the tokens.
        settings: the section `web`.
    """

    def __init__(self, access: Access, settings: WebSettings) -> None:
        self._access = access
        self._seconds = settings.session_hours * 3600
        path = None if settings.tokens_file is None else Path(settings.tokens_file + ".key")
        self._key = secrets.token_bytes(_KEY_BYTES) if path is None else _read_key(path)

    def find(self, request: Request) -> Visitor | None:
        """Return who sends a request; None if they must log in.

        Raises:
            Problem: there are no tokens, and the request comes from another machine.
        """
        if self._access.file is None:
            check_local(request)
            return Visitor(LOCAL, self._sign("csrf", "local"), has_session=False)
        cookie = request.cookies.get(COOKIE, "")
        values = self._open(COOKIE, cookie)
        if values is None:
            return None
        token = next((one for one in self._access.list_tokens() if one.name == values[0]), None)
        if token is None or _mark(token) != values[1] or not self._access.is_valid(token):
            return None
        return Visitor(Caller(f"web:{token.name}", token.roles), self._sign("csrf", cookie), has_session=True)

    def still_has(self, request: Request, visitor: Visitor) -> bool:
        """Return whether an open request of a visitor would be answered, with the same rights, if it came now."""
        try:
            return self.find(request) == visitor
        except Problem:
            return False

    def begin(self, request: Request, response: Response, text: str) -> None:
        """Open a session by the text of a token: set its cookie.

        Raises:
            Problem: the token is not valid, or there were too many failures.
        """
        token = self._access.check_token(request, text)
        cookie = self._close(COOKIE, [token.name, _mark(token)], self._seconds)
        _set_cookie(request, response, COOKIE, cookie, round(self._seconds))

    def end(self, request: Request, response: Response) -> None:
        """Delete the cookie of a session."""
        response.delete_cookie(COOKIE, path=_path(request))

    def check_order(self, request: Request, visitor: Visitor, csrf: str) -> None:
        """Raise `Problem` unless a form was sent by a page of this session."""
        site, origin = request.headers.get("sec-fetch-site", "same-origin"), request.headers.get("origin")
        is_foreign = site not in ("same-origin", "none") or (
            origin is not None and origin.partition("://")[2] != request.headers.get("host")
        )
        if is_foreign or not hmac.compare_digest(visitor.csrf.encode(), csrf.encode(errors="replace")):
            raise Problem(403, "invalid-csrf-token", "the form is of another session: load the page again, and repeat")

    # --- a message that the next page shows

    def leave_message(
        self, request: Request, response: Response, text: str, links: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Show a text on the next page of this browser.

        Args:
            request: the request that orders.
            response: the response that leads to the page.
            text: the text.
            links: names in the text with their addresses. Those that the cookie cannot hold are left out.
        """
        shown = [text.encode(errors="replace")[:_LONGEST_MESSAGE].decode(errors="ignore")]
        cookie = self._close(FLASH, shown, _FLASH_SECONDS)
        for link in links:
            shown += link
            longer = self._close(FLASH, shown, _FLASH_SECONDS)
            if len(longer) > _LONGEST_COOKIE - len(FLASH):
                break
            cookie = longer
        _set_cookie(request, response, FLASH, cookie, _FLASH_SECONDS)

    def take_message(self, request: Request, response: Response) -> None:
        """Delete the text that was shown."""
        if FLASH in request.cookies:
            response.delete_cookie(FLASH, path=_path(request))

    def read_message(self, request: Request) -> tuple[str, list[tuple[str, str]]] | None:
        """Return the text that the page before has left, and its links."""
        values = self._open(FLASH, request.cookies.get(FLASH, ""))
        return (values[0], list(zip(values[1::2], values[2::2], strict=True))) if values else None

    # --- signed texts

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}\n{text}".encode(errors="replace"), hashlib.sha256).hexdigest()

    def _close(self, purpose: str, values: list[str], seconds: float) -> str:
        raw = json.dumps([*values, time.time() + seconds], ensure_ascii=False).encode()
        body = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        return f"{body}.{self._sign(purpose, body)}"

    def _open(self, purpose: str, cookie: str) -> list[str] | None:
        body, _, signature = cookie[:_LONGEST_COOKIE].partition(".")
        if not hmac.compare_digest(self._sign(purpose, body), signature.encode("ascii", "replace").decode()):
            return None
        *values, expires_at = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return values if time.time() < expires_at else None


def _mark(token: Token) -> str:
    """Return what tells two tokens of one name apart."""
    return hashlib.sha256(token.digest.encode()).hexdigest()[:16]


def _path(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/") + "/"


def _set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    is_secure = request.url.scheme == "https"
    response.set_cookie(
        name, value, max_age=seconds, path=_path(request), secure=is_secure, httponly=True, samesite="strict"
    )


def _read_key(path: Path) -> bytes:
    """Return the key of a file, which only its owner may read; write it if there is none."""
    try:
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(temporary, path)  # another server may have been first: its key counts
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        key = path.read_bytes()
        if len(key) == _KEY_BYTES:
            return key
        logger.warning("session key not valid path=%s: sessions end with this process", path)
    except OSError as error:
        logger.warning("session key not stored path=%s error=%s: sessions end with this process", path, error)
    return secrets.token_bytes(_KEY_BYTES)
