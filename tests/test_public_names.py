"""The names of `worker`, and the modules that their import loads."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version

import pytest
from redis.asyncio import Redis

import worker
from worker.embedded import Services

HEAVY = ("sqlalchemy", "asyncpg", "alembic", "arq")


@pytest.mark.parametrize("name", worker.__all__)
def test_a_public_name_is_that_of_its_home(name: str) -> None:
    value = getattr(worker, name)
    home = worker._HOMES.get(name)
    if home is not None:
        assert value is getattr(importlib.import_module(home), name)
    assert name in dir(worker)


def test_the_public_names_are_few_and_each_stands_in_the_docstring() -> None:
    assert len(worker.__all__) <= 35
    documented = worker.__doc__ or ""
    assert [name for name in worker.__all__ if name != "__version__" and f"`{name}`" not in documented] == []


def test_worker_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        worker.nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert worker.__version__ == version("longhaul-worker")


def test_job_is_the_decorator_even_if_its_package_was_imported_first() -> None:
    code = "import worker.job.registry; from worker import job; print(callable(job), job.__name__)"
    assert _python(code) == "True job"


def test_a_client_loads_neither_database_nor_arq_nor_the_settings_that_it_was_not_asked_for() -> None:
    code = "import sys; from worker import Client, SyncClient, job; print([n for n in {names!r} if n in sys.modules])"
    assert _python(code.format(names=(*HEAVY, "pydantic_settings"))) == "[]"


def test_a_client_enqueues_without_loading_database_or_arq(servers: Services, redis: Redis) -> None:
    """The modules that enqueueing, waiting and operating load at run time count as well."""
    code = f"""
import asyncio, sys
from worker import Client, SyncClient, load_settings

def use_without_loop():
    settings = load_settings("/dev/null", environment={{"REDIS_URL": {servers.redis_url!r}}})
    with SyncClient(settings) as client:
        run = client.enqueue("add", 1, b=2)
        print(run.status(), client.status().queue, client.dead_letters(), client.find_run("none"))

async def main():
    settings = load_settings("/dev/null", environment={{"REDIS_URL": {servers.redis_url!r}}})
    async with Client(settings) as client:
        run = await client.enqueue("add", 1, b=2)
        group = await client.group([])
        print(await run.status())

use_without_loop()
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert _python(code).splitlines() == ["waiting arq:queue [] None", "InvalidArguments", "[]"]


def _python(code: str, *flags: str) -> str:
    run = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
