"""URLs of servers: PostgreSQL's as asyncpg reads them, and those of Redis.

Redis is a TCP server, a unix socket, or a primary that Sentinels know:

    redis://user:password@host:6379/0        rediss:// with TLS
    unix:///run/valkey/valkey.sock?db=0
    redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0        rediss+sentinel:// with TLS

User and password are those of the Redis server. The Sentinels' own are `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit, urlunsplit

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")

_TLS = {
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_keyfile",
}
_OPTIONS = {
    "client_name",
    "db",
    "health_check_interval",
    "max_connections",
    "password",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_timeout",
    "username",
}
_SENTINEL = {"sentinel_password", "sentinel_ssl", "sentinel_username"}
_FALSE = {"0", "f", "false", "n", "no", "off"}
_HOST = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>\d+))?")
_SENTINEL_PORT = 26379


class Sentinels(NamedTuple):
    """Sentinels, which know the current primary.

    Attributes:
        urls: URL of each Sentinel, as redis-py reads it.
        service: Name of the primary in the Sentinels' configuration.
    """

    urls: tuple[str, ...]
    service: str


class RedisUrl(NamedTuple):
    """A parsed Redis URL.

    Attributes:
        url: URL of the server, as redis-py reads it. With Sentinels, its host is a placeholder.
        sentinels: The Sentinels to ask for the primary, or None if `url` is the server's.
    """

    url: str
    sentinels: Sentinels | None = None

    def at(self, host: str, port: int) -> str:
        """Return the URL with the address of the primary in place of the placeholder."""
        parts = urlsplit(self.url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}{_netloc(host, port)}"))


def parse_redis_url(value: str) -> RedisUrl:
    """Parse a Redis URL.

    Raises:
        ValueError: The scheme or an option is unknown, or the path is invalid.
    """
    parts = urlsplit(value)
    scheme = parts.scheme
    if scheme not in SCHEMES:
        raise ValueError(
            f"a Redis URL must start with {', '.join(f'{known}://' for known in SCHEMES[:-1])} or {SCHEMES[-1]}://"
        )
    by_sentinel, tls = scheme.endswith("+sentinel"), scheme.startswith("rediss")
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    known = _OPTIONS | (_TLS if tls else set()) | (_SENTINEL if by_sentinel else set())
    known |= set() if scheme == "unix" else {"socket_keepalive"}
    for name in options:
        if name in _TLS and not tls:
            raise ValueError(f"{name} needs TLS: write rediss:// instead of redis://")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown option {name!r} in the URL; did you mean {near[0]}?")
    if tls and "ssl_check_hostname" not in options and options.get("ssl_cert_reqs", "required") == "required":
        options["ssl_check_hostname"] = "true"  # redis-py 5 does not compare the host name by default
    if scheme == "unix":
        if not parts.path:
            raise ValueError("the URL of a unix socket needs a path: unix:///run/valkey/valkey.sock?db=0")
        _database(options.get("db", "0"))
        return RedisUrl(value)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if not by_sentinel:
        if len(path) > 1:
            raise ValueError(f"the path of a Redis URL must be the number of a database, not {parts.path!r}")
        _database(options.get("db", path[0] if path else "0"))
        return RedisUrl(_url(scheme, parts.netloc, parts.path, options))
    if not 1 <= len(path) <= 2:
        raise ValueError(
            "the path of a Sentinel URL must be the name of the primary, optionally followed by a database: "
            "redis+sentinel://host1:26379,host2:26379/mymaster/0"
        )
    database = _database(options.pop("db", path[1] if len(path) == 2 else "0"))
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, password = (options.pop(f"sentinel_{name}", "") for name in ("username", "password"))
    sentinel_tls = tls and options.pop("sentinel_ssl", "true").lower() not in _FALSE
    own = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    asked = {name: text for name, text in options.items() if sentinel_tls and name in _TLS}
    scheme = "rediss" if sentinel_tls else "redis"
    urls = tuple(_url(scheme, own + _netloc(*_host(each)), "", asked) for each in hosts.split(","))
    url = _url("rediss" if tls else "redis", f"{credentials}{at}sentinels", f"/{database}", options)
    return RedisUrl(url, Sentinels(urls, path[0]))


def _url(scheme: str, netloc: str, path: str, options: dict[str, str]) -> str:
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(options, quote_via=quote)}" if options else "")


def _database(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"the database of a Redis URL must be a number, e.g. 0, not {text!r}")
    return int(text)


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not the address of a Sentinel: write e.g. host1:26379,host2:26379")
    return found["six"] or found["name"], int(found["port"] or _SENTINEL_PORT)


def asyncpg_url(value: str) -> str:
    """Return `value` as a URL of SQLAlchemy's asyncpg dialect. `sslmode` becomes asyncpg's `ssl`.

    Raises:
        ValueError: The scheme is not PostgreSQL's, the driver is not asyncpg, or an isolation level is set.
    """
    parts = urlsplit(value)
    if parts.scheme not in {"postgres", "postgresql", "postgresql+asyncpg"}:
        raise ValueError("a PostgreSQL URL must start with postgresql:// (or postgres://, or postgresql+asyncpg://)")
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if "isolation_level" in query:
        raise ValueError(
            "isolation_level cannot be set in the URL: set it for a transaction. Batches cannot work with AUTOCOMMIT."
        )
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    text = "&".join(f"{name}={quote(value, safe='/')}" for name, value in query.items())
    # urlunsplit() drops the empty authority of postgresql:///name, which asyncpg needs.
    return f"postgresql+asyncpg://{parts.netloc}{parts.path}" + (f"?{text}" if text else "")


def mask_passwords(value: str) -> str:
    """Return a URL with `***` in place of each password, including those in its query."""
    parts = urlsplit(value)
    netloc = parts.netloc
    if parts.password:
        userinfo, _, host = netloc.rpartition("@")
        netloc = f"{userinfo.split(':', 1)[0]}:***@{host}"
    query = re.sub(r"(?i)\b(\w*passw(?:or)?d)=[^&]*", r"\1=***", parts.query)
    # urlunsplit drops the empty authority of unix:///path.
    return f"{parts.scheme}://{netloc}{parts.path}" + (f"?{query}" if query else "")
