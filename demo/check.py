"""Counts errors by a comparison with the source data in Python and SQL, independent of the jobs' own reports."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from sqlalchemy import text

from demo.data import ACCOUNTS, BALANCE, Source
from worker.types import Database


@dataclass
class Counts:
    """The numbers of errors, all of which must be zero."""

    doubled: int = 0
    missing: int = 0
    wrong: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"doubled {self.doubled} · missing {self.missing} · wrong {self.wrong}"

    @property
    def clean(self) -> bool:
        """Whether there are no errors."""
        return not (self.doubled or self.missing or self.wrong)

    def add_wrong(self, count: int, what: str) -> None:
        """Add a number of differences from the source data."""
        if count:
            self.wrong += count
            self.notes.append(f"{count} {what}")


async def check(database: Database, source: Source, *, purged: str, retired_below: int) -> Counts:
    """Compare every table that the jobs wrote with the source data."""
    counts = Counts()
    await _names(database, source, purged, counts)
    await _countries(database, source, counts)
    await _hamlets(database, source, retired_below, counts)
    await _money(database, counts)
    return counts


async def _names(database: Database, source: Source, purged: str, counts: Counts) -> None:
    expected = {
        place["geonameid"]: [name for name in place["alternatenames"] if name.strip()]
        for place in source.places
        if place["countrycode"] != purged
    }
    query = "SELECT place_id, array_agg(name), array_agg(folded) FROM place_name GROUP BY place_id"
    async with database.connection() as connection:
        found = {key: (names, folded) for key, names, folded in await connection.execute(text(query))}
    misfolded = unknown = 0
    for key, names in expected.items():
        got, folded = found.pop(key, ([], []))
        misfolded += sum(_fold(name) != form for name, form in zip(got, folded, strict=True))
        if sorted(got) == sorted(names):
            continue
        more, fewer = Counter(got), Counter(names)
        counts.missing += sum((fewer - more).values())
        for name, times in (more - fewer).items():
            if name in fewer:
                counts.doubled += times
            else:
                unknown += times
    unknown += sum(len(names) for names, _ in found.values())
    counts.add_wrong(misfolded, "names have a wrong folded form")
    counts.add_wrong(unknown, f"names are of no place, or of {purged}, which was purged")


async def _countries(database: Database, source: Source, counts: Counts) -> None:
    expected: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for place in source.places:
        sums = expected[place["countrycode"]]
        sums[0] += 1
        sums[1] += place["population"]
        sums[2] += len(place["alternatenames"])
    async with database.connection() as connection:
        rows = await connection.execute(text("SELECT country_code, places, population, names FROM country_summary"))
        found = {code: list(sums) for code, *sums in rows}
    counts.missing += len(expected.keys() - found.keys())
    different = sum(found[code] != expected.get(code) for code in found)
    counts.add_wrong(different, "countries have a wrong summary")


async def _hamlets(database: Database, source: Source, below: int, counts: Counts) -> None:
    expected = {place["geonameid"] for place in source.places if place["population"] < below}
    async with database.connection() as connection:
        found = set((await connection.scalars(text("SELECT id FROM place WHERE retired"))).all())
    counts.missing += len(expected - found)
    counts.add_wrong(len(found - expected), "places were retired that have people enough")


async def _money(database: Database, counts: Counts) -> None:
    async with database.connection() as connection:
        total, negative = (
            await connection.execute(text("SELECT sum(balance), count(*) FILTER (WHERE balance < 0) FROM account"))
        ).one()
    counts.add_wrong(int(total != ACCOUNTS * BALANCE), f"sum of money: {total} instead of {ACCOUNTS * BALANCE}")
    counts.add_wrong(negative, "accounts are overdrawn")


def _fold(name: str) -> str:
    """A second implementation of the job's `fold`: a check that calls the checked code would find no errors."""
    letters = [each for each in unicodedata.normalize("NFKD", name) if unicodedata.combining(each) == 0]
    return re.sub(r"\s+", " ", "".join(letters).casefold()).strip()
