"""URLs of servers: PostgreSQL's as asyncpg reads them, and those of Redis.

Redis is a TCP server, a unix socket, a primary that Sentinels know, or a cluster:

    redis://user:password@host:6379/0        rediss:// with TLS
    unix:///run/valkey/valkey.sock?db=0
    redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0        rediss+sentinel:// with TLS
    redis+cluster://user:password@host1:6379,host2:6379/?namespace=shop        rediss+cluster:// with TLS

User and password are those of the Redis server. The Sentinels' own are `sentinel_username` and `sentinel_password`.
`namespace=` is accepted with each scheme; see `RedisSettings.namespace`.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlencode, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
#: The namespace in a cluster, where all keys must have one.
DEFAULT_NAMESPACE = "longhaul"
NAMESPACE_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"

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
    "namespace",
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
_CLUSTER_PORT = 6379


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
        url: URL of the server, as redis-py reads it. With Sentinels or a cluster, its host is a placeholder.
        sentinels: The Sentinels to ask for the primary, or None if there are none.
        cluster: URLs of nodes of the cluster, each as redis-py reads it; empty if there is no cluster.
        namespace: The namespace of all keys; None for plain names.
    """

    url: str
    sentinels: Sentinels | None = None
    cluster: tuple[str, ...] = ()
    namespace: str | None = None


def parse_redis_url(value: str) -> RedisUrl:
    """Parse a Redis URL.

    Raises:
        ValueError: The scheme, an option or the namespace is unknown, or the path is invalid.
    """
    parts = urlsplit(value)
    scheme = parts.scheme
    if scheme not in SCHEMES:
        raise ValueError(
            f"a Redis URL must start with {', '.join(f'{known}://' for known in SCHEMES[:-1])} or {SCHEMES[-1]}://"
        )
    options = _read_options(parts)
    namespace = options.pop("namespace", None)
    if namespace is not None:
        check_namespace(namespace)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if scheme.endswith("+sentinel"):
        return _by_sentinel(parts, path, options)._replace(namespace=namespace)
    if scheme.endswith("+cluster"):
        return _by_cluster(parts, path, options)._replace(namespace=namespace)
    if scheme == "unix":
        if not parts.path:
            raise ValueError("the URL of a unix socket needs a path: unix:///run/valkey/valkey.sock?db=0")
        _database(options.get("db", "0"))
    elif len(path) > 1:
        raise ValueError(f"the path of a Redis URL must be the number of a database, not {parts.path!r}")
    else:
        _database(options.get("db", path[0] if path else "0"))
    return RedisUrl(_url(scheme, parts.netloc, parts.path, options), namespace=namespace)


def check_namespace(name: str) -> str:
    """Return a namespace.

    Raises:
        ValueError: It has another character than a letter, a digit, `_`, `.` or `-`, or more than 64 of them.
    """
    if not re.fullmatch(NAMESPACE_PATTERN, name):
        raise ValueError(f"the namespace {name!r} must be 1 to 64 letters, digits, or characters of _.-")
    return name


def _read_options(parts: SplitResult) -> dict[str, str]:
    """Return the options of a URL.

    Raises:
        ValueError: An option is unknown.
    """
    scheme = parts.scheme
    tls = scheme.startswith("rediss")
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    known = _OPTIONS | (_TLS if tls else set()) | (_SENTINEL if scheme.endswith("+sentinel") else set())
    known |= set() if scheme == "unix" else {"socket_keepalive"}
    for name in options:
        if name in _TLS and not tls:
            raise ValueError(f"{name} needs TLS: write rediss:// instead of redis://")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown option {name!r} in the URL; did you mean {near[0]}?")
    if tls and "ssl_check_hostname" not in options and options.get("ssl_cert_reqs", "required") == "required":
        options["ssl_check_hostname"] = "true"  # redis-py 5 does not compare the host name by default
    return options


def _by_sentinel(parts: SplitResult, path: list[str], options: dict[str, str]) -> RedisUrl:
    if not 1 <= len(path) <= 2:
        raise ValueError(
            "the path of a Sentinel URL must be the name of the primary, optionally followed by a database: "
            "redis+sentinel://host1:26379,host2:26379/mymaster/0"
        )
    tls = parts.scheme.startswith("rediss")
    database = _database(options.pop("db", path[1] if len(path) == 2 else "0"))
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, password = (options.pop(f"sentinel_{name}", "") for name in ("username", "password"))
    sentinel_tls = tls and options.pop("sentinel_ssl", "true").lower() not in _FALSE
    own = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    asked = {name: text for name, text in options.items() if sentinel_tls and name in _TLS}
    scheme = "rediss" if sentinel_tls else "redis"
    addresses = [_host(each, "a Sentinel", _SENTINEL_PORT) for each in hosts.split(",")]
    urls = tuple(_url(scheme, own + _netloc(*address), "", asked) for address in addresses)
    url = _url("rediss" if tls else "redis", f"{credentials}{at}sentinels", f"/{database}", options)
    return RedisUrl(url, Sentinels(urls, path[0]))


def _by_cluster(parts: SplitResult, path: list[str], options: dict[str, str]) -> RedisUrl:
    if len(path) > 1 or _database(options.pop("db", path[0] if path else "0")):
        raise ValueError(
            "a Redis Cluster has no numbered databases: redis+cluster://host1:6379,host2:6379/?namespace=shop "
            "(a namespace keeps applications apart)"
        )
    scheme = parts.scheme.partition("+")[0]
    credentials, at, hosts = parts.netloc.rpartition("@")
    addresses = [_host(each, "a node", _CLUSTER_PORT) for each in hosts.split(",")]
    urls = tuple(_url(scheme, f"{credentials}{at}{_netloc(*address)}", "", options) for address in addresses)
    return RedisUrl(_url(scheme, f"{credentials}{at}cluster", "", options), cluster=urls)


def _url(scheme: str, netloc: str, path: str, options: dict[str, str]) -> str:
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(options, quote_via=quote)}" if options else "")


def _database(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"the database of a Redis URL must be a number, e.g. 0, not {text!r}")
    return int(text)


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host(text: str, owner: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not the address of {owner}: write e.g. host1:{port},host2:{port}")
    return found["six"] or found["name"], int(found["port"] or port)


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
