"""The settings as one typed, immutable tree of the sections of `settings.toml`."""

from __future__ import annotations

from pydantic import BaseModel, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from worker.settings.sections import (
    BatchSettings,
    DatabaseSettings,
    LogSettings,
    MetricsSettings,
    RedisSettings,
    ThrottleSettings,
    TracingSettings,
    WebSettings,
    WorkerSettings,
)

#: The table of other databases: `[databases.NAME]` has the keys of `[database]`.
DATABASES = "databases"


class Settings(BaseSettings):
    """All settings. Build them with `load_settings`, which reads every source and explains errors."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    database: DatabaseSettings = DatabaseSettings.model_validate({})
    redis: RedisSettings = RedisSettings.model_validate({})
    worker: WorkerSettings = WorkerSettings.model_validate({})
    batch: BatchSettings = BatchSettings.model_validate({})
    throttle: ThrottleSettings = ThrottleSettings.model_validate({})
    web: WebSettings = WebSettings.model_validate({})
    metrics: MetricsSettings = MetricsSettings.model_validate({})
    log: LogSettings = LogSettings.model_validate({})
    tracing: TracingSettings = TracingSettings.model_validate({})
    #: Other databases that jobs read from, by name.
    databases: dict[str, DatabaseSettings] = {}

    @model_validator(mode="after")
    def _check_consistency(self) -> Settings:
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
        """Take values from `load_settings` alone, which has read every source and can name it in an error."""
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

    def own_queues(self) -> list[str] | None:
        """Return the queues whose runs are in this Redis, if others may share the ledger; None for all queues."""
        if not self.redis.prefix:
            return None
        return list(self.worker.queues or [self.worker.queue])

    def pool_warning(self) -> str | None:
        """Return a warning if jobs could wait for each other's connections, else None.

        A walk holds one connection, and needs a second one for `ctx.session()` or the reader of a stream.
        """
        needed, given = 2 * self.worker.max_jobs + 1, self.pool_size + self.max_overflow
        if given >= needed:
            return None
        return (
            f"database.pool_size + database.max_overflow is {given}, but worker.max_jobs = "
            f"{self.worker.max_jobs} may need {needed}: jobs can wait for each other's connections until "
            f"database.pool_timeout_seconds. Raise the pool or lower worker.max_jobs."
        )


def sections() -> dict[str, type[BaseModel]]:
    """Return the model of each section by its name, but for `databases`, whose sections are named by the user."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in Settings.model_fields.items():
        if name == DATABASES:
            continue
        assert isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)  # noqa: S101
        found[name] = field.annotation
    return found
