"""Settings: the model, their sources, the URLs of servers, and the reference of all fields.

Each name is loaded when it is first used: a client that was given a URL needs no pydantic-settings to be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.settings.model import Settings
    from worker.settings.reference import describe_all, describe_type, field_names
    from worker.settings.sections import (
        BatchSettings,
        DatabaseSettings,
        LogSettings,
        RedisSettings,
        ThrottleSettings,
        WorkerSettings,
        parse_window,
    )
    from worker.settings.sources import DEFAULT_FILE, Origins, load_settings, load_with_origins
    from worker.settings.urls import RedisUrl, Sentinels, asyncpg_url, mask_passwords, parse_redis_url

_HOMES = {
    "model": ("Settings",),
    "reference": ("describe_all", "describe_type", "field_names"),
    "sections": (
        "BatchSettings",
        "DatabaseSettings",
        "LogSettings",
        "RedisSettings",
        "ThrottleSettings",
        "WorkerSettings",
        "parse_window",
    ),
    "sources": ("DEFAULT_FILE", "Origins", "load_settings", "load_with_origins"),
    "urls": ("RedisUrl", "Sentinels", "asyncpg_url", "mask_passwords", "parse_redis_url"),
}

__all__ = [
    "DEFAULT_FILE",
    "BatchSettings",
    "DatabaseSettings",
    "LogSettings",
    "Origins",
    "RedisSettings",
    "RedisUrl",
    "Sentinels",
    "Settings",
    "ThrottleSettings",
    "WorkerSettings",
    "asyncpg_url",
    "describe_all",
    "describe_type",
    "field_names",
    "load_settings",
    "load_with_origins",
    "mask_passwords",
    "parse_redis_url",
    "parse_window",
]


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
