"""Jobs over the places of GeoNames; `make demo` runs them."""

from __future__ import annotations

import unicodedata

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import load_only

from jobs.models import CountrySummary, Place, PlaceName
from worker import JobContext, job


@job
async def index_place_names(ctx: JobContext, size: int = 2_000) -> int:
    """Write one `place_name` row for each alternate name of each place. Returns the places done."""
    places = select(Place).options(load_only(Place.alternate_names))
    async for batch in ctx.chunks(places, size=size, lock=False):  # places are only read
        names = [
            {"place_id": place.id, "name": name, "folded": fold(name)}
            for place in batch
            for name in place.alternate_names
            if name.strip()  # 42,984 places have an empty one: real data is dirty
        ]
        await batch.bulk.insert(PlaceName, names)
    return ctx.rows_done


@job
async def summarise_countries(ctx: JobContext) -> int:
    """Count places, people and names of each country. Returns the countries done."""
    countries = (
        select(
            Place.country_code,
            func.count(),
            func.sum(Place.population).cast(Place.population.type),
            func.sum(func.cardinality(Place.alternate_names)),
        )
        .group_by(Place.country_code)
        .order_by(Place.country_code)
    )
    async for partition in ctx.stream(countries, size=50):
        await partition.bulk.upsert(
            CountrySummary,
            [
                {"country_code": code, "places": places, "population": population, "names": names}
                for code, places, population, names in partition
            ],
        )
    return ctx.rows_done


@job
async def retire_hamlets(ctx: JobContext, below: int = 1_000) -> int:
    """Mark the places with fewer than `below` people, by two workers together. Returns their number."""
    hamlets = update(Place).where(Place.population < below, ~Place.retired).values(retired=True)
    return await ctx.sweep(hamlets, size=5_000, parallel=2)


@job
async def purge_place_names(ctx: JobContext, country_code: str) -> int:
    """Delete the names of all places of one country. Returns their number."""
    of_country = select(Place.id).where(Place.country_code == country_code)
    return await ctx.sweep(delete(PlaceName).where(PlaceName.place_id.in_(of_country)), size=50_000)


def fold(name: str) -> str:
    """Return a name as it is searched: without accents and case, with single spaces."""
    if not name.isascii():
        decomposed = unicodedata.normalize("NFKD", name)
        name = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(name.casefold().split())
