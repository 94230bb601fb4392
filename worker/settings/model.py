"""Settings: `settings.toml`, then the environment, then the command line; one typed tree."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import time
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import parse_qs, quote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from worker.errors import SettingsError
from worker.settings.urls import redis_place

DEFAULT_FILE = "settings.toml"
ENV_PREFIX = "LONGHAUL_"
_ENV_DELIMITER = "__"
_SHORT_NAMES = {"DATABASE_URL": ("database", "url"), "REDIS_URL": ("redis", "url")}


def asyncpg_url(value: str) -> str:
    """Return `value` as a URL of SQLAlchemy's asyncpg dialect; `sslmode` becomes asyncpg's `ssl`.

    Raises:
        ValueError: another scheme than PostgreSQL's, a driver that is not asyncpg, or an isolation level.
    """
    parts = urlsplit(value)
    if parts.scheme not in {"postgres", "postgresql", "postgresql+asyncpg"}:
        raise ValueError(
            "a PostgreSQL URL starts with postgresql:// (postgres:// and postgresql+asyncpg:// are the same)"
        )
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if "isolation_level" in query:
        raise ValueError(
            "isolation_level is for single transactions, not for the URL; AUTOCOMMIT has no batches at all"
        )
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    text = "&".join(f"{name}={quote(value, safe='/')}" for name, value in query.items())
    # urlunsplit drops the empty authority of postgresql:///name, which asyncpg needs.
    return f"postgresql+asyncpg://{parts.netloc}{parts.path}" + (f"?{text}" if text else "")


def parse_window(hours: str, timezone: str) -> tuple[time, time, ZoneInfo]:
    """Return begin, end and zone of a time of the day, e.g. `01:00-06:00`; it may be over midnight.

    Raises:
        ValueError: it is no window, or no zone.
    """
    begin, dash, end = hours.partition("-")
    try:
        if not dash:
            raise ValueError
        times = [time.fromisoformat(each.strip()) for each in (begin, end)]
    except ValueError:
        raise ValueError(f"window {hours!r}: write begin and end, e.g. 01:00-06:00") from None
    try:
        return times[0], times[1], ZoneInfo(timezone)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"there is no time zone {timezone!r}; write e.g. Europe/London") from None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DatabaseSettings(_Section):
    """PostgreSQL: where it is, and how many connections a process takes."""

    url: str = Field(
        "postgresql://localhost/longhaul",
        description="URL of the database; `postgres://` and `postgresql://` become asyncpg's. "
        "`?sslmode=` (disable, prefer, require, verify-ca, verify-full) chooses TLS; `sslrootcert`, `sslcert` and "
        "`sslkey` name files.",
    )
    replica_url: str | None = Field(
        None,
        description="URL of a replica that `ctx.stream(..., replica=True)` reads from; by default it reads here.",
    )
    pgbouncer: bool | Literal["auto"] = Field(
        "auto",
        description="Whether PgBouncer in transaction mode is between; `auto`: found out with the first connection.",
    )
    pool_size: int | None = Field(
        None,
        ge=1,
        description="Connections kept open. Default: two for each of `worker.max_jobs` (a run's own and one "
        "for `ctx.session()` or the reader of a stream) and two for the worker itself.",
    )
    max_overflow: int | None = Field(
        None,
        ge=0,
        description="Connections beyond `pool_size`, closed after use. Default: `worker.max_jobs`.",
    )
    pool_timeout_seconds: float = Field(30.0, gt=0, description="Longest wait for a connection of the pool.")
    pool_pre_ping: bool = Field(True, description="Test a connection before it is handed out.")
    pool_recycle_seconds: int = Field(3600, ge=-1, description="Age at which a connection is replaced; -1: never.")
    connect_timeout_seconds: float = Field(10.0, gt=0, description="Longest wait for a new connection.")
    statement_timeout_seconds: float = Field(300.0, ge=0, description="Longest run of one statement; 0: no limit.")
    lock_timeout_seconds: float = Field(
        0.0, ge=0, description="Longest wait for a lock; 0: no limit. A batch that waits longer is tried again, halved."
    )
    idle_in_transaction_timeout_seconds: float = Field(
        60.0,
        ge=0,
        description="Longest idle time inside a transaction; 0: no limit. The second line against "
        "a frozen worker that keeps its locks.",
    )
    application_name: str = Field(
        "longhaul",
        max_length=20,
        description="Start of `application_name`; the worker and the job follow it.",
    )
    echo: bool = Field(False, description="Log every statement.")

    @field_validator("url", "replica_url")
    @classmethod
    def _asyncpg_url(cls, value: str | None) -> str | None:
        return None if value is None else asyncpg_url(value)


class RedisSettings(_Section):
    """Redis or Valkey: where it is."""

    url: str = Field(
        "redis://localhost:6379/0",
        description="`redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://` or `rediss+sentinel://` URL: "
        "[operations.md](operations.md#urls-of-redis).",
    )
    connect_timeout_seconds: float = Field(5.0, gt=0, description="Longest wait for a connection.")
    command_timeout_seconds: float = Field(10.0, gt=0, description="Longest wait for an answer.")

    @field_validator("url")
    @classmethod
    def _of_a_kind_that_is_known(cls, value: str) -> str:
        redis_place(value)
        return value


class WorkerSettings(_Section):
    """The worker process: what it runs, how much at once, and how patiently."""

    name: str | None = Field(
        None,
        max_length=40,
        pattern=r"^[\w.@-]+$",
        description="Name of this worker; default: host and process id.",
    )
    packages: list[str] = Field(["jobs"], min_length=1, description="Packages in which `@job` functions are found.")
    middleware: list[str] = Field(
        [], description="Middleware around each enqueueing and each run, `module:name`; the first is the outermost."
    )
    queue: str = Field("arq:queue", min_length=1, description="Sorted set that jobs are taken from (arq's own).")
    queues: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="Several queues with their weights, e.g. `{ 'arq:urgent' = 9, 'arq:queue' = 1 }`; else `queue`."
    )
    queue_order: Literal["weighted", "strict"] = Field(
        "weighted", description="Serve several queues by their weights, or the heavier one first, always."
    )
    queue_limits: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="Jobs of a queue that run at the same time, over all workers, e.g. `{ 'arq:heavy' = 2 }`."
    )
    max_jobs: int = Field(10, ge=1, description="Jobs that run at the same time in this process.")
    max_attempts: int = Field(5, ge=1, description="Tries without progress after which a run ends as dead.")
    max_threads: int = Field(8, ge=1, description="Plain `def` jobs that run at the same time, each in a thread.")
    max_job_processes: int | None = Field(
        None,
        ge=1,
        description="Jobs of `@job(process=True)` that run at the same time, each in a process. Default: one a CPU.",
    )
    job_timeout_seconds: float = Field(
        300.0, gt=0, description="Longest run of a job without a durable loop; walks have no limit."
    )
    grace_period_seconds: float = Field(
        30.0,
        ge=0,
        description="Time that a job has to clean up once it was interrupted (timeout, cancel, stall); then it is "
        "given up, and its slot is free.",
    )
    stall_timeout_seconds: float = Field(
        600.0,
        gt=0,
        description="A run that makes no progress for so long (no batch, no `ctx.progress`) is reported as stalled.",
    )
    backoff_base_seconds: float = Field(2.0, gt=0, description="Wait before the second try; doubles with each.")
    backoff_max_seconds: float = Field(600.0, gt=0, description="Longest wait between two tries.")
    lease_seconds: float = Field(10.0, ge=0.5, description="Life of a claim that is not renewed.")
    loop_block_tolerance_seconds: float = Field(
        60.0, gt=0, description="How long a blocked event loop still has its leases renewed."
    )
    drain_timeout_seconds: float = Field(
        30.0, ge=0, description="Time for running jobs to reach a boundary at SIGTERM."
    )
    poll_interval_seconds: float = Field(0.2, gt=0, le=5, description="Pause between two looks at an empty queue.")
    rescue_interval_seconds: float = Field(10.0, gt=0, description="Pause between two searches for orphaned runs.")
    result_ttl_seconds: float = Field(3600.0, ge=0, description="Life of results and mirrors in Redis.")
    dead_letter_ttl_days: float = Field(30.0, ge=0, description="Life of dead letters in Redis.")
    run_retention_days: float = Field(
        30.0,
        ge=0,
        description="Life of ended runs in the ledger, also of dead ones, unless they have rows in quarantine; "
        "0: for ever.",
    )
    max_result_bytes: int = Field(1_048_576, ge=1, description="Largest JSON of a result that is kept.")
    cron_catch_up: Literal["once", "skip"] = Field(
        "once", description="A cron time that no worker saw: run it once when one is back, or skip it."
    )
    accept_pickle: bool = Field(
        False, description="Read pickles of stock arq clients. A pickle from Redis can run any code."
    )
    uvloop: bool = Field(True, description="Run the event loop of uvloop where it is installed.")


class BatchSettings(_Section):
    """The durable loops."""

    size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Rows in a batch where the loop does not say; `auto`: as many as take `target_seconds`."
    )
    target_seconds: float = Field(0.5, gt=0, description="Time of a batch that `auto` aims at.")
    first_size: int = Field(1000, ge=1, description="Rows in the first batch of `auto`.")
    min_size: int = Field(100, ge=1, description="Fewest rows of `auto`.")
    max_size: int = Field(20_000, ge=1, description="Most rows of `auto`: what the memory of a worker has to hold.")
    max_snapshot_seconds: float = Field(
        3600,
        ge=0,
        description="Age at which a stream gives its snapshot up for a new one, behind its last partition; 0: never.",
    )
    copy_from_rows: int = Field(200, ge=1, description="`bulk.insert` uses COPY from this many rows on.")


class ThrottleSettings(_Section):
    """Reasons for a walk to wait between two batches; none by default."""

    max_rows_per_second: float | None = Field(None, gt=0, description="Rows a second, for each walk.")
    max_replication_lag_seconds: float | None = Field(
        None, gt=0, description="Lag of the slowest replica (`pg_stat_replication`), or of this one."
    )
    max_active_sessions: int | None = Field(
        None, ge=0, description="Sessions that run a statement, of all roles that this one may see (`pg_monitor`)."
    )
    max_lock_waiters: int | None = Field(None, ge=0, description="Sessions that wait for a lock.")
    max_wal_bytes_per_second: float | None = Field(None, gt=0, description="WAL that the whole server writes.")
    checkpoint_cooldown_seconds: float | None = Field(
        None, gt=0, description="Rest after a checkpoint that WAL has forced before its time."
    )
    max_dead_row_ratio: float | None = Field(
        None, gt=0, lt=1, description="Dead rows of the walked table, of all its rows, from 10,000 dead ones on."
    )
    wait_for_vacuum: bool = Field(False, description="Wait while the walked table is being vacuumed.")
    min_free_connections: int | None = Field(None, ge=0, description="Connections of the server that stay free.")
    window: str | None = Field(None, description="Time of the day in which walks go on, e.g. `01:00-06:00`.")
    window_timezone: str = Field("UTC", description="Zone of the window, e.g. `Europe/London`.")
    check_interval_seconds: float = Field(1.0, gt=0, description="How often the server is asked.")

    @model_validator(mode="after")
    def _window_is_one(self) -> ThrottleSettings:
        if self.window is not None:
            parse_window(self.window, self.window_timezone)
        return self


class LogSettings(_Section):
    """The log."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe level written.")
    format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object each.")


class Settings(BaseSettings):
    """All settings. Build it with `load_settings`, which knows file, environment and errors."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    database: DatabaseSettings = DatabaseSettings.model_validate({})
    redis: RedisSettings = RedisSettings.model_validate({})
    worker: WorkerSettings = WorkerSettings.model_validate({})
    batch: BatchSettings = BatchSettings.model_validate({})
    throttle: ThrottleSettings = ThrottleSettings.model_validate({})
    log: LogSettings = LogSettings.model_validate({})

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.worker.backoff_max_seconds < self.worker.backoff_base_seconds:
            raise ValueError("worker.backoff_max_seconds is below worker.backoff_base_seconds")
        if self.batch.max_size < self.batch.min_size:
            raise ValueError("batch.max_size is below batch.min_size")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings has read and checked all three layers, to name the one that is at fault.
        return (init_settings,)

    @property
    def pool_size(self) -> int:
        """Connections that the pool keeps open."""
        return self.database.pool_size or 2 * self.worker.max_jobs + 2

    @property
    def max_overflow(self) -> int:
        """Connections beyond `pool_size`."""
        overflow = self.database.max_overflow
        return self.worker.max_jobs if overflow is None else overflow

    def pool_warning(self) -> str | None:
        """Return a warning when jobs could wait for each other's connections, else None.

        A walk holds one connection, and needs a second one for `ctx.session()` or a stream's reader.
        """
        needed, given = 2 * self.worker.max_jobs + 1, self.pool_size + self.max_overflow
        if given >= needed:
            return None
        return (
            f"database.pool_size + database.max_overflow is {given}, but worker.max_jobs = "
            f"{self.worker.max_jobs} may need {needed}: jobs can wait for each other's connections until "
            f"database.pool_timeout_seconds. Raise the pool or lower worker.max_jobs."
        )


class Origins(dict[str, str]):
    """Where each dotted setting came from: a file's name, `environment NAME`, `command line`, `default`."""


def load_settings(
    file: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings in force.

    Args:
        file: TOML file; None for $LONGHAUL_SETTINGS or `settings.toml`, which may be absent.
        overrides: values of the command line, by section and field.
        environment: variables; None for those of this process.

    Raises:
        SettingsError: unknown key, wrong type or a file that cannot be read; the message names the place.
    """
    return load_with_origins(file, overrides, environment)[0]


def load_with_origins(
    file: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Settings, Origins]:
    """Like `load_settings`, together with the origin of every value."""
    env = os.environ if environment is None else environment
    layers = [
        *_file_layer(file, env),
        *_environment_layer(env),
        *((("command line"), section, field, value) for section, field, value in _flatten(overrides or {})),
    ]
    origins = Origins(dict.fromkeys(field_names(), "default"))
    tree: dict[str, dict[str, Any]] = {}
    for origin, section, field, value in layers:
        _check_name(origin, section, field)
        tree.setdefault(section, {})[field] = value
        origins[f"{section}.{field}"] = origin
    try:
        return Settings.model_validate(tree), origins
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from None


def field_names() -> list[str]:
    """Return every setting as `section.field`."""
    return [f"{section}.{field}" for section, model in _sections().items() for field in model.model_fields]


def mask_passwords(value: str) -> str:
    """Return a URL with `***` for its password, also for one in the query."""
    parts = urlsplit(value)
    netloc = parts.netloc
    if parts.password:
        userinfo, _, host = netloc.rpartition("@")
        netloc = f"{userinfo.split(':', 1)[0]}:***@{host}"
    query = re.sub(r"(?i)\b(\w*passw(?:or)?d)=[^&]*", r"\1=***", parts.query)
    # urlunsplit drops the empty authority of unix:///path.
    return f"{parts.scheme}://{netloc}{parts.path}" + (f"?{query}" if query else "")


def _sections() -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for name, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)  # noqa: S101
        found[name] = field.annotation
    return found


def _flatten(tree: Mapping[str, Any], origin: str = "command line") -> Iterator[tuple[str, str, Any]]:
    for section, fields in tree.items():
        if section not in _sections():
            raise SettingsError(f"{origin}: unknown section [{section}]{_nearest(section, list(_sections()))}")
        if not isinstance(fields, Mapping):
            raise SettingsError(f"{origin}: {section} is a section; write [{section}] and its keys below it")
        for field, value in fields.items():
            yield section, field, value


def _file_layer(file: str | Path | None, env: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    named = file or env.get(f"{ENV_PREFIX}SETTINGS")
    path = Path(named or DEFAULT_FILE)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise SettingsError(f"{path}: no such settings file") from None
        return
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    for section, field, value in _flatten(tree, str(path)):
        yield str(path), section, field, value


def _environment_layer(env: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    for variable, (section, field) in _SHORT_NAMES.items():
        if env.get(variable):
            yield f"environment {variable}", section, field, env[variable]
    for variable, raw in env.items():
        if not variable.startswith(ENV_PREFIX) or _ENV_DELIMITER not in variable:
            continue
        section, _, field = variable.removeprefix(ENV_PREFIX).lower().partition(_ENV_DELIMITER)
        origin = f"environment {variable}"
        _check_name(origin, section, field)
        annotation = _sections()[section].model_fields[field].annotation
        # pydantic-settings' own reading of one variable: JSON for lists, the text as it is for the rest.
        value: Any = raw
        if get_origin(annotation) is list:
            source = EnvSettingsSource(Settings)
            try:
                value = source.decode_complex_value(field, _sections()[section].model_fields[field], raw)
            except ValueError:
                value = [part.strip() for part in raw.split(",") if part.strip()]
        yield origin, section, field, value


def _check_name(origin: str, section: str, field: str) -> None:
    sections = _sections()
    if section not in sections:
        raise SettingsError(f"{origin}: unknown section {section!r}{_nearest(section, list(sections))}")
    fields = list(sections[section].model_fields)
    if field not in fields:
        nearest = _nearest(field, fields, prefix=f"{section}.")
        raise SettingsError(f"{origin}: unknown key {section}.{field}{nearest}")


def _nearest(word: str, known: list[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _explain(error: ValidationError, origins: Origins) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][:2])
        origin = origins.get(name, "settings")
        shown = problem.get("input")
        message = problem["msg"].removeprefix("Value error, ")
        if name.endswith("url") or isinstance(shown, dict | BaseModel):
            lines.append(f"{origin}: {name}: {message}" if name else f"settings: {message}")
        else:
            lines.append(f"{origin}: {name} = {shown!r}: {message}")
    return "\n".join(lines)


def describe_type(section: str, field: str) -> str:
    """Return the type of a setting as a person writes it, e.g. `float` or `once | skip`."""
    return _described(_sections()[section].model_fields[field].annotation)


def _described(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if origin is Annotated:
        return _described(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " | ".join(_described(part) for part in get_args(annotation))
    if origin is dict:
        return f"dict[{', '.join(_described(part) for part in get_args(annotation))}]"
    return getattr(annotation, "__name__", str(annotation)) if origin is None else str(annotation)


def describe_all() -> str:
    """Return every setting as a Markdown table for each section: what docs/settings.md holds."""
    lines: list[str] = []
    for section, model in _sections().items():
        lines += [f"## {section}", "", (model.__doc__ or "").strip(), "", "| key | type | default | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for name, field in model.model_fields.items():
            default = "" if field.default is None else f"`{field.default}`"
            kind = describe_type(section, name).replace("|", "\\|")
            lines.append(f"| `{name}` | {kind} | {default} | {field.description} |")
        lines.append("")
    return "\n".join(lines)
