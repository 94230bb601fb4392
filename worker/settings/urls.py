"""Where Redis is: URLs of a server, of a unix socket, and of Sentinels that know the primary.

    redis://user:password@host:6379/0        rediss:// with TLS
    unix:///run/valkey/valkey.sock?db=0
    redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0        rediss+sentinel:// with TLS

User and password are those of the servers; the Sentinels' own are `sentinel_username` and `sentinel_password`.
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
    """Processes that know which server is the primary.

    Attributes:
        urls: of each, as redis-py reads it.
        service: name of the primary, as they have it.
    """

    urls: tuple[str, ...]
    service: str


class RedisPlace(NamedTuple):
    """Where Redis is.

    Attributes:
        url: as redis-py reads it; with Sentinels, its host stands for the one that they tell.
        sentinels: those that are to be asked; None where the URL has the server.
    """

    url: str
    sentinels: Sentinels | None = None

    def at(self, host: str, port: int) -> str:
        """Return the URL of the server that Sentinels tell."""
        parts = urlsplit(self.url)
        who, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{who}{at}{_netloc(host, port)}"))


def redis_place(value: str) -> RedisPlace:
    """Read a URL.

    Raises:
        ValueError: it is none of these, or has an option that is not known.
    """
    parts = urlsplit(value)
    scheme = parts.scheme
    if scheme not in SCHEMES:
        raise ValueError(
            f"a Redis URL starts with {', '.join(f'{known}://' for known in SCHEMES[:-1])} or {SCHEMES[-1]}://"
        )
    by_sentinel, tls = scheme.endswith("+sentinel"), scheme.startswith("rediss")
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    known = _OPTIONS | (_TLS if tls else set()) | (_SENTINEL if by_sentinel else set())
    known |= set() if scheme == "unix" else {"socket_keepalive"}
    for name in options:
        if name in _TLS and not tls:
            raise ValueError(f"{name} is for TLS: write rediss:// instead of redis://")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown option {name!r} in the URL; did you mean {near[0]}?")
    if tls and "ssl_check_hostname" not in options and options.get("ssl_cert_reqs", "required") == "required":
        options["ssl_check_hostname"] = "true"  # redis-py 5 would take any certificate of the authority, whoever's
    if scheme == "unix":
        if not parts.path:
            raise ValueError("a URL of a unix socket has its path: unix:///run/valkey/valkey.sock?db=0")
        _database(options.get("db", "0"))
        return RedisPlace(value)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if not by_sentinel:
        if len(path) > 1:
            raise ValueError(f"the path of a Redis URL is the number of its database, not {parts.path!r}")
        _database(options.get("db", path[0] if path else "0"))
        return RedisPlace(_url(scheme, parts.netloc, parts.path, options))
    if not 1 <= len(path) <= 2:
        raise ValueError(
            "a URL of Sentinels has the name of the primary in its path, and perhaps a database: "
            "redis+sentinel://host1:26379,host2:26379/mymaster/0"
        )
    database = _database(options.pop("db", path[1] if len(path) == 2 else "0"))
    who, at, hosts = parts.netloc.rpartition("@")
    user, password = (options.pop(f"sentinel_{name}", "") for name in ("username", "password"))
    sentinel_tls = tls and options.pop("sentinel_ssl", "true").lower() not in _FALSE
    own = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    asked = {name: text for name, text in options.items() if sentinel_tls and name in _TLS}
    scheme = "rediss" if sentinel_tls else "redis"
    urls = tuple(_url(scheme, own + _netloc(*_host(each)), "", asked) for each in hosts.split(","))
    url = _url("rediss" if tls else "redis", f"{who}{at}sentinels", f"/{database}", options)
    return RedisPlace(url, Sentinels(urls, path[0]))


def _url(scheme: str, netloc: str, path: str, options: dict[str, str]) -> str:
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(options, quote_via=quote)}" if options else "")


def _database(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"the database of a Redis URL is a number, e.g. 0, not {text!r}")
    return int(text)


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no host of a Sentinel; write e.g. host1:26379,host2:26379")
    return found["six"] or found["name"], int(found["port"] or _SENTINEL_PORT)
