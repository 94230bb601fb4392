"""Arguments of the facade, classes of settings, and the servers that they name."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio.sentinel import Sentinel

from tests.arq_compat.functions import add
from worker import Settings
from worker.arq_compat import Worker, create_worker, get_kwargs, run_worker
from worker.arq_compat.codec import ArqCodec
from worker.errors import InvalidPayload, RegistrationError


class WorkerSettings:
    """As arq documents it."""

    functions = (add, "tests.arq_compat.test_worker.fail")
    max_jobs = 3
    burst = True
    handle_signals = False
    unknown = "is left out"


def test_a_class_of_settings_is_taken_as_arq_takes_it(settings: Settings, event_loop_for_arq: None) -> None:
    assert set(get_kwargs(WorkerSettings)) == {"functions", "max_jobs", "burst", "handle_signals"}
    assert get_kwargs({"max_jobs": 2, "other": 1}) == {"max_jobs": 2}
    worker = create_worker(WorkerSettings, max_jobs=4)
    assert worker.max_jobs == 4
    assert set(worker.functions) == {"add", "tests.arq_compat.test_worker.fail"}
    ran = run_worker(WorkerSettings, redis_settings=RedisSettings.from_dsn(settings.redis.url))
    assert ran.jobs_complete == 0


@pytest.fixture
def event_loop_for_arq() -> Any:
    """An event loop for a worker that is created outside of one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


async def test_arguments_that_cannot_be_are_refused(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="at least one function"):
        Worker(handle_signals=False)
    with pytest.raises(ValueError, match="If queue_name is absent"):
        Worker([add], queue_name=None, handle_signals=False)
    with pytest.raises(RuntimeError, match="must be instances of CronJob"):
        Worker([add], cron_jobs=[add], handle_signals=False)  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="is not a coroutine function"):
        Worker([print], handle_signals=False)  # type: ignore[list-item]
    with pytest.raises(RegistrationError, match="host is a list of Sentinels"):
        Worker([add], redis_settings=RedisSettings(host="a", sentinel=True), handle_signals=False)
    with pytest.raises(TypeError):
        Worker([add], maxjobs=1, handle_signals=False)  # type: ignore[call-arg]


async def test_a_project_without_ours_may_have_a_database_url_and_settings_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, settings: Settings
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text("[theirs]\nkey = 1\n")
    monkeypatch.setenv("DATABASE_URL", "mysql://somewhere/else")
    worker = Worker([add], redis_settings=RedisSettings.from_dsn(settings.redis.url), burst=True, handle_signals=False)
    await worker.main()
    await worker.close()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (RedisSettings(), "redis://localhost:6379/0"),
        (RedisSettings(host="h", port=1, database=3, username="u", password="p@:/"), "redis://u:p%40%3A%2F@h:1/3"),
        (RedisSettings(password="p"), "redis://:p@localhost:6379/0"),
        (RedisSettings(unix_socket_path="/run/r.sock", database=2), "unix:///run/r.sock?db=2"),
        (
            RedisSettings(ssl=True, ssl_ca_certs="/ca.pem"),
            "rediss://localhost:6379/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem&ssl_check_hostname=False",
        ),
        (
            RedisSettings(host=[("a", 1), ("::1", 2)], sentinel=True, sentinel_master="it", password="p", database=3),
            "redis+sentinel://:p@a:1,[::1]:2/it/3",
        ),
    ],
    ids=["default", "all", "password", "unix", "tls", "sentinel"],
)
async def test_redis_settings_lead_to_the_same_server(given: RedisSettings, url: str) -> None:
    worker = Worker([add], redis_settings=given, handle_signals=False)
    assert worker._settings_in_force().redis.url == url


async def test_a_pool_by_sentinels_leads_to_the_same_primary() -> None:
    sentinel = Sentinel([("a", 1), ("b", 2)], sentinel_kwargs={"password": "s"}, password="p", db=3)
    pool: Any = sentinel.master_for("it", redis_class=ArqRedis)
    worker = Worker([add], redis_pool=pool, handle_signals=False)
    assert worker._settings_in_force().redis.url == "redis+sentinel://:p@a:1,b:2/it/3?sentinel_password=s"


def test_a_payload_has_at_most_the_size_of_the_settings() -> None:
    codec = ArqCodec(None, None, accept_pickle=True, max_bytes=2_000)
    values = {"t": None, "f": "echo", "a": ("x" * 1_000,), "k": {}, "et": 0}
    assert codec.read(pickle.dumps(values)).function == "echo"
    with pytest.raises(InvalidPayload, match="the limit is 2,000"):
        codec.read(pickle.dumps(values | {"k": {"y": "y" * 1_000}}))
