"""Bearer tokens: each has a name and roles, and the file keeps nothing of it but a hash.

A token has 256 random bits, so a plain SHA-256 of it cannot be inverted; a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
import tomllib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal, cast, get_args

from worker.errors import SettingsError

logger = logging.getLogger("longhaul.web")

#: read: see runs, queues and all else. enqueue: enqueue runs. operate: give orders. None includes another.
Role = Literal["read", "enqueue", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)
_PREFIX = "lh_"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CHECK_SECONDS = 1.0
_MINUTE = 60.0
_MOST_ADDRESSES = 10_000
_IPV6_NETWORK_BITS = 64


@dataclass(frozen=True)
class Token:
    """A token, as the file has it.

    Attributes:
        name: its name, which the audit shows.
        roles: what it may do.
        digest: SHA-256 of its text, in hexadecimal digits.
        expires_at: the time from which it is not accepted; None for none.
    """

    name: str
    roles: frozenset[Role]
    digest: str
    expires_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return whether the token has not expired."""
        return self.expires_at is None or now < self.expires_at


class TokenFile:
    """The file of `web.tokens_file`: TOML, one table for each token. A change of the file takes effect in a second.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tokens: tuple[Token, ...] = ()
        self._seen: tuple[int, int, int] | None = None
        self._checked_at = -_CHECK_SECONDS

    def tokens(self) -> tuple[Token, ...]:
        """Return the tokens; read the file if it has changed.

        Raises:
            SettingsError: the file cannot be read, or is not valid. No token is accepted then.
        """
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS or self._seen is None:
            try:
                state = self.path.stat()
                seen = (state.st_mtime_ns, state.st_size, state.st_ino)
                if seen != self._seen:
                    self._tokens, self._seen = parse_tokens(self.path.read_text(encoding="utf-8"), self.path), seen
            except (OSError, UnicodeDecodeError) as error:
                self._seen = None
                raise SettingsError(f"{self.path}: cannot read the tokens: {error}") from None
            except SettingsError:
                self._seen = None
                raise
            self._checked_at = now
        return self._tokens

    def find(self, text: str) -> Token | None:
        """Return the valid token with this text; None if there is none. The time does not depend on the text."""
        digest, now, found = _digest(text), datetime.now(UTC), None
        for token in self.tokens():
            if hmac.compare_digest(token.digest, digest) and token.is_valid(now):
                found = token
        return found

    def create(self, name: str, roles: Iterable[Role], *, days: float | None = None) -> str:
        """Add a token to the file, which only its owner may read. Return its text, which is not stored.

        Args:
            name: its name.
            roles: what it may do.
            days: the days until it expires; None for never.

        Raises:
            SettingsError: the name is not valid or exists, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise SettingsError(f"token {name!r}: a name has 1 to 60 letters, digits, - and _")
        known = self.tokens() if self.path.exists() else ()
        if any(token.name == name for token in known):
            raise SettingsError(f"{self.path}: there is a token {name!r}: revoke it first, or choose another name")
        text, now = _PREFIX + secrets.token_urlsafe(32), datetime.now(UTC)
        expires = None if days is None else now + timedelta(days=days)
        token = Token(name, frozenset(roles), _digest(text), expires)
        self._write([*known, token])
        return text

    def revoke(self, name: str) -> bool:
        """Remove a token from the file. Return False if there is none of this name."""
        known = self.tokens()
        rest = [token for token in known if token.name != name]
        if len(rest) == len(known):
            return False
        self._write(rest)
        return True

    def _write(self, tokens: Iterable[Token]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("# Tokens of `worker web`; `worker web token` adds one. The file has hashes only.\n")
                file.writelines(_format_token(token) for token in tokens)
            temporary.replace(self.path)
        except OSError as error:
            raise SettingsError(f"{self.path}: cannot write the tokens: {error.strerror or error}") from None
        self._seen = None


def parse_tokens(text: str, path: Path) -> tuple[Token, ...]:
    """Return the tokens of a file.

    Raises:
        SettingsError: the file is not valid. The message contains no value of it.
    """
    try:
        tables = tomllib.loads(text)
        return tuple(_read_token(name, table) for name, table in tables.items())
    except (tomllib.TOMLDecodeError, RecursionError):
        raise SettingsError(f"{path}: not valid TOML") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _read_token(name: str, table: Any) -> Token:
    digest, roles, expires = table["sha256"], table["roles"], table.get("expires_at")
    if not _NAME.fullmatch(name) or not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ValueError(f"token {name!r}: sha256 is not a hash of 64 hexadecimal digits")
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise ValueError(f"token {name!r}: roles are some of {', '.join(ROLES)}")
    if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
        raise ValueError(f"token {name!r}: expires_at is not a time with a zone")
    return Token(name, frozenset(cast(list[Role], roles)), digest, expires)


def _format_token(token: Token) -> str:
    roles = ", ".join(f'"{role}"' for role in ROLES if role in token.roles)
    expires = "" if token.expires_at is None else f"expires_at = {token.expires_at.isoformat(timespec='seconds')}\n"
    return f'\n[{token.name}]\nroles = [{roles}]\n{expires}sha256 = "{token.digest}"\n'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class FailedTokens:
    """Counts requests without a valid token by their address, and refuses an address for a minute.

    Args:
        limit: the failures in a minute after which an address is refused.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()  # begin of the minute, and number

    def seconds_refused(self, address: str) -> float:
        """Return the seconds for which an address is refused; 0 if it is not."""
        began, count = self._failures.get(_network(address), (0.0, 0))
        rest = began + _MINUTE - time.monotonic()
        return rest if count >= self._limit and rest > 0 else 0.0

    def add(self, address: str) -> None:
        """Count a failure of an address."""
        network, now = _network(address), time.monotonic()
        began, count = self._failures.pop(network, (now, 0))
        if now - began >= _MINUTE:
            began, count = now, 0
        self._failures[network] = (began, count + 1)
        if count + 1 == self._limit:
            logger.warning("address refused address=%s failed_tokens=%d seconds=%.0f", network, count + 1, _MINUTE)
        while len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)


def _network(address: str) -> str:
    """Return the address; of IPv6, the network, because one host has a whole network of addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:100]
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> _IPV6_NETWORK_BITS << _IPV6_NETWORK_BITS))
    return str(parsed)
