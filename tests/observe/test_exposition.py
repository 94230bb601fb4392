"""The text of the metrics: that of prometheus_client, and cheap to make again."""

from __future__ import annotations

import random
from functools import reduce
from operator import add

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.scrapes import check_by_promtool, parse
from worker.observe.metrics import definitions as names
from worker.observe.metrics import exposition
from worker.observe.metrics.exposition import Exposition
from worker.observe.metrics.snapshot import Histogram, Snapshot

#: Labels as only a hostile client would choose them.
NAMES = ("walk", 'a"b\\c\nd', "100 %s of %(x)d {}", "\u2028 \x85 é", " ends with a number 7", "# HELP")


def fill(job: str, chance: random.Random) -> tuple[Snapshot, dict[tuple[str, ...], float]]:
    """Return values of each kind for a job, and what a scrape of them has to show."""
    runs, at = float(chance.randrange(10**9)), chance.uniform(1.7e9, 2e9)
    took = Histogram(names.RUN_SECONDS)
    seconds = [chance.choice([0.004, 0.1, 3.0, 1e6]) for _ in range(chance.randrange(5))]
    for one in seconds:
        took.observe(one)
    shown = {("longhaul_jobs_total", job, "dead"): runs, ("longhaul_last_success_timestamp_seconds", job): at}
    for bound in (*names.RUN_SECONDS.buckets, float("inf")):
        text = "+Inf" if bound == float("inf") else str(bound)
        shown["longhaul_attempt_duration_seconds_bucket", job, text] = sum(one <= bound for one in seconds)
    shown["longhaul_attempt_duration_seconds_count", job] = len(seconds)
    shown["longhaul_attempt_duration_seconds_sum", job] = reduce(add, seconds, 0)  # Python 3.12's sum() is more exact
    snapshot: Snapshot = {
        names.JOBS.name: {(job, "dead"): runs},
        names.LAST_SUCCESS.name: {(job,): at},
        names.RUN_SECONDS.name: {(job,): took.value()},
    }
    return snapshot, shown


@pytest.mark.parametrize("seed", range(5))
def test_each_page_has_the_values_of_its_own_snapshot(seed: int) -> None:
    chance, page = random.Random(seed), Exposition()
    for _ in range(10):
        snapshot: Snapshot = {}
        shown: dict[tuple[str, ...], float] = {}
        for job in chance.sample(NAMES, chance.randrange(1, len(NAMES) + 1)):  # some are new, and some are gone
            values, expected = fill(job, chance)
            shown |= expected
            for name, series in values.items():
                snapshot.setdefault(name, {}).update(series)
        assert parse(page.render(snapshot).decode()) == shown


async def test_a_page_is_valid_and_describes_each_metric_once() -> None:
    page, snapshot = Exposition(), Snapshot()
    for job in NAMES:
        for name, series in fill(job, random.Random(1))[0].items():
            snapshot.setdefault(name, {}).update(series)
    assert page.render({}) == b""
    text = page.render(snapshot).decode()
    assert page.render(snapshot).decode() == text
    families = list(text_string_to_metric_families(text))
    assert [(one.type, one.documentation) for one in families] == [
        (names.BY_NAME[name].kind, names.BY_NAME[name].help)
        for name in (names.JOBS.name, names.RUN_SECONDS.name, names.LAST_SUCCESS.name)
    ]
    await check_by_promtool(text)


def test_prometheus_client_renders_a_series_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[bytes] = []

    def generate(registry: CollectorRegistry) -> bytes:
        rendered.append(generate_latest(registry))
        return rendered[-1]

    monkeypatch.setattr(exposition, "generate_latest", generate)
    page, chance = Exposition(), random.Random(1)
    for _ in range(3):
        page.render(fill("walk", chance)[0])
    assert len(rendered) == 3  # one for each metric
    page.render(fill("send", chance)[0])
    assert len(rendered) == 6
