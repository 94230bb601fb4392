"""Converts arq's `RedisSettings` and pools to the URL of Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from worker.errors import RegistrationError


def make_redis_url(given: RedisSettings | None, pool: ArqRedis | None) -> str:
    """Return the URL of the server of arq's settings, or of a pool."""
    if pool is not None:
        return _url_of_pool(pool.connection_pool)
    assert given is not None  # noqa: S101
    if given.sentinel == isinstance(given.host, str):
        raise RegistrationError("redis_settings: with sentinel=True, host is a list of Sentinels; without, one name")
    options: dict[str, Any] = {}
    if given.ssl:
        options = {
            "ssl_cert_reqs": given.ssl_cert_reqs,
            "ssl_keyfile": given.ssl_keyfile,
            "ssl_certfile": given.ssl_certfile,
            "ssl_ca_certs": given.ssl_ca_certs,
            "ssl_ca_data": given.ssl_ca_data,
            "ssl_check_hostname": given.ssl_check_hostname,
        }
    return _joined(
        ssl=given.ssl,
        path=given.unix_socket_path,
        hosts=[(given.host, given.port)] if isinstance(given.host, str) else given.host,
        service=given.sentinel_master if given.sentinel else None,
        database=given.database,
        username=given.username,
        password=given.password,
        # arq uses TLS only for the servers, not for the Sentinels
        options=options | ({"sentinel_ssl": False} if given.sentinel and given.ssl else {}),
    )


def _url_of_pool(pool: Any) -> str:
    values, kind = pool.connection_kwargs, pool.connection_class
    by_sentinel = isinstance(pool, SentinelConnectionPool)
    is_unix = issubclass(kind, UnixDomainSocketConnection)
    if not is_unix and not by_sentinel and "host" not in values:
        raise RegistrationError(f"redis_pool: {kind.__name__} does not connect to a server by host and port")
    ssl = issubclass(kind, SSLConnection)
    options = {name: value for name, value in values.items() if name.startswith("ssl_")} if ssl else {}
    hosts = [(values.get("host", "localhost"), values.get("port", 6379))]
    if by_sentinel:
        asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
        hosts = [(one["host"], one["port"]) for one in asked]
        options |= {f"sentinel_{name}": asked[0].get(name) for name in ("username", "password")}
        if ssl and not issubclass(pool.sentinel_manager.sentinels[0].connection_pool.connection_class, SSLConnection):
            options["sentinel_ssl"] = False
    return _joined(
        ssl=ssl,
        path=values.get("path") if is_unix else None,
        hosts=hosts,
        service=pool.service_name if by_sentinel else None,
        database=values.get("db") or 0,
        username=values.get("username"),
        password=values.get("password"),
        options=options,
    )


def _joined(
    *,
    ssl: bool,
    path: str | None,
    hosts: Sequence[tuple[str, int]],
    service: str | None,
    database: int,
    username: str | None,
    password: str | None,
    options: Mapping[str, Any],
) -> str:
    who = quote(username or "", safe="")
    if password:
        who += f":{quote(password, safe='')}"
    who += "@" if who else ""
    query = {name: value for name, value in options.items() if value is not None}
    if path:
        return f"unix://{who}{path}?{urlencode({'db': database, **query})}"
    scheme = f"{'rediss' if ssl else 'redis'}{'' if service is None else '+sentinel'}"
    shown = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
    path = f"/{database}" if service is None else f"/{quote(service, safe='')}/{database}"
    return f"{scheme}://{who}{shown}{path}" + (f"?{urlencode(query)}" if query else "")
