"""The jobs of the demo, on a few places."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

import jobs.places
from jobs.models import CountrySummary, Place, PlaceName
from jobs.places import fold, index_place_names, purge_place_names, retire_hamlets, summarise_countries
from worker.testing.runner import JobRunner
from worker.types import Database


async def add_places(database: Database, count: int) -> None:
    """Add places with three names each, one of them empty; every second one in CH, the others in AT."""
    async with database.transaction() as session:
        session.add_all(
            Place(
                id=number,
                name=f"Place {number}",
                country_code="CH" if number % 2 else "AT",
                population=number * 100,
                latitude=0.0,
                longitude=0.0,
                timezone="UTC",
                alternate_names=[f"Plätz {number}", " ", f"PLACE {number}"],
            )
            for number in range(1, count + 1)
        )


async def names(database: Database) -> list[tuple[int, str, str]]:
    async with database.session() as session:
        rows = await session.execute(select(PlaceName.place_id, PlaceName.name, PlaceName.folded))
        return sorted((place, name, folded) for place, name, folded in rows)


async def test_each_name_that_is_not_empty_is_indexed_once(tables: Database, run_job: JobRunner) -> None:
    await add_places(tables, 25)
    assert await run_job(index_place_names, size=10) == 25
    expected = [(n, f"Plätz {n}", f"platz {n}") for n in range(1, 26)]
    expected += [(n, f"PLACE {n}", f"place {n}") for n in range(1, 26)]
    assert await names(tables) == sorted(expected)


async def test_an_index_that_failed_in_the_middle_goes_on_where_it_was(
    tables: Database, run_job: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_places(tables, 25)

    def fail_at_seventeen(name: str) -> str:
        if name == "Plätz 17":
            raise RuntimeError("the power went")
        return fold(name)

    with monkeypatch.context() as patch:
        patch.setattr(jobs.places, "fold", fail_at_seventeen)
        with pytest.raises(RuntimeError, match="the power went"):
            await run_job.attempt(index_place_names, "run", size=10)
    assert len(await names(tables)) == 20  # ten places with two names: the first batch, and nothing of the second
    assert await run_job.attempt(index_place_names, "run", size=10) == 25
    assert len(await names(tables)) == 50
    assert len({(place, name) for place, name, _ in await names(tables)}) == 50


async def test_countries_are_summed_up_and_again(tables: Database, run_job: JobRunner) -> None:
    await add_places(tables, 5)
    for _ in range(2):  # the second time updates
        assert await run_job(summarise_countries) == 2
    async with tables.session() as session:
        found = (await session.scalars(select(CountrySummary).order_by(CountrySummary.country_code))).all()
    assert [(one.country_code, one.places, one.population, one.names) for one in found] == [
        ("AT", 2, 600, 6),
        ("CH", 3, 900, 9),
    ]


async def test_hamlets_are_retired(tables: Database, run_job: JobRunner) -> None:
    await add_places(tables, 25)
    assert await run_job(retire_hamlets, below=1_000) == 9
    assert await run_job(retire_hamlets, below=1_000) == 0
    async with tables.session() as session:
        assert await session.scalar(select(func.max(Place.id)).where(Place.retired)) == 9


async def test_the_names_of_one_country_are_purged(tables: Database, run_job: JobRunner) -> None:
    await add_places(tables, 10)
    await run_job(index_place_names)
    assert await run_job(purge_place_names, country_code="CH") == 10
    assert {place % 2 for place, _, _ in await names(tables)} == {0}


@pytest.mark.parametrize(
    ("name", "folded"),
    [("Zürich", "zurich"), ("  New   YORK ", "new york"), ("Straße", "strasse"), ("Łódź", "łodz"), ("東京", "東京")],
)
def test_folding(name: str, folded: str) -> None:
    assert fold(name) == folded
