"""Jobs for the pictures of the page: one that quarantines rows, two that fail, one with a limit."""

from __future__ import annotations

import asyncio
import logging
from datetime import date
from typing import Literal

from sqlalchemy import select, update
from sqlalchemy.orm import load_only

from jobs.models import Place
from worker import JobContext, NonRetryableError, job

logger = logging.getLogger("longhaul.jobs")


class BadTimezone(ValueError):
    """A place has no time zone that can be used."""


@job(cron="30 2 * * *", timezone="Europe/London")
async def check_time_zones(ctx: JobContext, below: int = 2_000_000, strict: bool = True) -> int:
    """Check that the time zone of each place fits its longitude. A place that does not fit goes into quarantine."""
    places = select(Place).options(load_only(Place.timezone, Place.longitude, Place.name)).where(Place.id < below)
    async for batch in ctx.chunks(places, size=500, on_error="quarantine", quarantine_limit=0.5, lock=False):
        for place in batch:
            if strict and place.name.startswith("Oba"):
                raise BadTimezone(f"{place.name}: {place.timezone} does not fit longitude {place.longitude:.2f}")
    return ctx.rows_done


@job(cron="0 3 * * *", timezone="Europe/London")
async def rebuild_search(
    ctx: JobContext, depth: Literal["names", "all"] = "names", since: date | None = None, size: int = 250
) -> int:
    """Rebuild the search index.

    `names` takes ten minutes, `all` an hour. With `since`, only places that changed after that day are indexed.
    """
    async for batch in ctx.chunks(select(Place), size=size, lock=False):
        await asyncio.sleep(0.02)
        if batch.number % 20 == 0:
            logger.info("indexed places=%d", ctx.rows_done)
    return ctx.rows_done


@job(concurrency=1)
async def export_ledger(ctx: JobContext, month: str) -> str:
    """Export one month; one at a time, because the target takes no more."""
    await asyncio.sleep(3600)
    return month


@job
async def sync_prices(ctx: JobContext, feed: str) -> None:
    """Read the prices of a supplier."""
    raise NonRetryableError(f"feed {feed}: HTTP 404, the supplier has withdrawn it; ask for the new address")


@job
async def retire_villages(ctx: JobContext, size: int = 500) -> int:
    """Mark places with few people, by four hands."""
    villages = update(Place).where(Place.population < 5_000, ~Place.retired).values(retired=True)
    return await ctx.sweep(villages, size=size, parallel=4)


class UnknownRegions(ValueError):
    """The regions of a country have not been loaded."""


@job
async def load_regions(ctx: JobContext, country: str) -> str:
    """Load the regions of a country."""
    await ctx.redis.set(f"demo:regions:{country}", 1)
    return country


@job(max_attempts=2, backoff=0.05)
async def assign_regions(ctx: JobContext) -> int:
    """Check that each place of some countries can be assigned to a region."""
    places = select(Place).where(Place.country_code.in_(["AT", "LI", "SI"]))
    async for batch in ctx.chunks(places, size=200, lock=False):
        for place in batch:
            if place.country_code == "LI" and not await ctx.redis.exists("demo:regions:LI"):
                raise UnknownRegions(f"{place.name} is in LI, whose regions are not loaded: run load_regions for LI")
    return ctx.rows_done
