"""The tables of the shop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import make_url, text

from tests.maintenance.shop import Shop
from worker import Settings, load_settings
from worker.db.migrate import migrate
from worker.embedded import Services
from worker.types import Database


@pytest_asyncio.fixture
async def shop(servers: Services, settings: Settings) -> AsyncIterator[Shop]:
    """The tables, empty."""
    if not Shop.is_made:
        database = Database(settings, "test")
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("DROP DATABASE IF EXISTS shop WITH (FORCE)"))
            await connection.execute(text("CREATE DATABASE shop"))
        await database.close()
    url = make_url(servers.database_url).set(database="shop").render_as_string(hide_password=False)
    environment = {"DATABASE_URL": url, "REDIS_URL": servers.redis_url}
    own = load_settings(environment=environment, overrides={"database": {"pgbouncer": False}})
    database = Database(own, "test")
    if not Shop.is_made:
        await migrate(database)
    made = Shop(database, own)
    await made.empty()
    yield made
    made.run.close()
    await database.close()


@pytest_asyncio.fixture
async def changed_shop(shop: Shop) -> AsyncIterator[Shop]:
    """The tables, for a test that changes more than their rows."""
    yield shop
    Shop.is_made = False
