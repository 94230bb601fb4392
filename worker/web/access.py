"""Authentication of a request by its token, and the rights of its role."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request

from worker.errors import SettingsError
from worker.observe.loopback import is_loopback, names_loopback
from worker.settings.sections import WebSettings
from worker.web.problems import Problem
from worker.web.tokens import ROLES, FailedTokens, Role, Token, TokenFile

logger = logging.getLogger("longhaul.web")

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="longhaul"'}


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        name: name for the audit: `web:<token>`, or `web:local` without tokens.
        roles: what the caller may do.
    """

    name: str
    roles: frozenset[Role]


#: A sender who was not asked for a token, and may do nothing that needs one.
ANYONE = Caller("web:anyone", frozenset())
LOCAL = Caller("web:local", frozenset(ROLES))


class Access:
    """Authenticates requests: by a bearer token, or, if there is no file of tokens, by the caller's own machine.

    Args:
        settings: the section `web`.
    """

    def __init__(self, settings: WebSettings) -> None:
        self.file = None if settings.tokens_file is None else TokenFile(settings.tokens_file)
        self._failed = FailedTokens(settings.failed_tokens_per_minute)
        self._problem = ""  # of the file, as it was logged last

    def authenticate(self, request: Request) -> Caller:
        """Return who sends a request.

        Raises:
            Problem: the request has no valid token, or comes from another machine although there are no tokens.
        """
        if self.file is None:
            check_local(request)
            return LOCAL
        token = self.check_token(request, _read_bearer(request))
        return Caller(f"web:{token.name}", token.roles)

    def check_token(self, request: Request, text: str | None) -> Token:
        """Return the token with a text.

        Args:
            request: the request that sends it: its address is refused for a while after too many failures.
            text: the text of the token; None if the request has none.

        Raises:
            Problem: the token is not valid, or there were too many failures.
        """
        address = request.client.host if request.client else "unknown"
        refused = self._failed.seconds_refused(address)
        if refused:
            detail = f"too many requests without a valid token: wait {refused:.0f} s"
            raise Problem(429, "too-many-failures", detail, headers={"Retry-After": str(max(1, round(refused)))})
        token = self._find(text)
        if token is None:
            self._failed.add(address)
            detail = "send a valid token: Authorization: Bearer …; `worker web token NAME` creates one"
            raise Problem(401, "no-valid-token", detail, headers=_CHALLENGE)
        return token

    def list_tokens(self) -> tuple[Token, ...]:
        """Return the tokens of the file; none if there is no file.

        Raises:
            Problem: the file cannot be read.
        """
        try:
            tokens = () if self.file is None else self.file.tokens()
        except SettingsError as error:
            self._log_problem(str(error))
            raise Problem(503, "tokens-not-readable", "the file of tokens cannot be read; see the log") from None
        self._problem = ""
        return tokens

    def still_allows(self, request: Request, role: Role) -> bool:
        """Return whether an open request would be answered if it came now. A failure is not counted."""
        try:
            token = None if self.file is None else self._find(_read_bearer(request))
        except Problem:
            return False
        return self.file is None or (token is not None and role in token.roles)

    def _find(self, text: str | None) -> Token | None:
        if self.file is None or text is None:
            return None
        self.list_tokens()
        return self.file.find(text)

    def _log_problem(self, problem: str) -> None:
        """Log why the file cannot be read, once and not for each request."""
        if problem != self._problem:
            self._problem = problem
            logger.error("tokens cannot be read, and no request is accepted: %s", problem)

    def is_valid(self, token: Token) -> bool:
        """Return whether a token of the file has not expired."""
        return token.is_valid(datetime.now(UTC))


def _read_bearer(request: Request) -> str | None:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


def check_role(caller: Caller, role: Role) -> None:
    """Raise `Problem` unless a caller has a role."""
    if role not in caller.roles:
        raise Problem(403, "role-missing", f"{caller.name} has not the role {role}: use another token")


def check_local(request: Request) -> None:
    """Raise `Problem` unless a request comes from this machine, and from no other site's page in its browser.

    A page of another site can send requests to this machine from a browser that runs here, also under a name of its
    own that resolves to 127.0.0.1. Both show in the headers `Host` and `Origin`, which a page cannot change.
    """
    advice = "without web.tokens_file only this machine may send requests: create a token with `worker web token`"
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    if request.client is None or not is_loopback(request.client.host) or is_forwarded:
        raise Problem(401, "not-local", advice, headers=_CHALLENGE)
    origin = request.headers.get("origin")
    for place in (f"//{request.headers.get('host', '')}", *([] if origin is None else [origin])):
        if not names_loopback(place):
            raise Problem(403, "foreign-origin", "the headers Host and Origin do not name this machine; " + advice)
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Problem(403, "foreign-origin", "a page of another origin sent the request; " + advice)
