"""Settings: the model, their sources, the URLs of servers, and the reference of all fields."""

from worker.settings.model import (
    BatchSettings,
    DatabaseSettings,
    LogSettings,
    RedisSettings,
    Settings,
    ThrottleSettings,
    WorkerSettings,
    parse_window,
)
from worker.settings.reference import describe_all, describe_type, field_names
from worker.settings.sources import DEFAULT_FILE, Origins, load_settings, load_with_origins
from worker.settings.urls import RedisUrl, Sentinels, asyncpg_url, mask_passwords, parse_redis_url

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
