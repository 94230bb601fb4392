"""The report of a run adds up at each moment: while it walks with several hands, is killed, paused, cancelled, over."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Fleet, fill_targets
from tests.faults.jobs import touch_by_chunks, touch_by_hands
from tests.plan.test_report_times import ensure_adds_up
from tests.support.waiting import until
from worker import Client, Job, JobCancelled
from worker.db.engine import Database
from worker.plan.report import RunReport, make_report
from worker.queue import keys

#: The report takes a gap of more than a second between two samples for one between attempts.
LEASE = {"LONGHAUL_WORKER__LEASE_SECONDS": "2.5"}


@pytest.mark.parametrize(
    ("job", "end"),
    [
        (touch_by_hands, "succeeded"),
        (touch_by_chunks, "cancelled"),
        pytest.param(touch_by_hands, "cancelled", marks=pytest.mark.long),
        pytest.param(touch_by_chunks, "succeeded", marks=pytest.mark.long),
    ],
    ids=lambda one: getattr(one, "name", one),
)
async def test_report_adds_up_over_kill_pause_and_end(
    fleet: Fleet, client: Client, database: Database, job: Job[..., int], end: str
) -> None:
    await fill_targets(database, 1_500)
    await client.redis.hset(keys.PACE, job.name, 100)  # so that the walk outlasts all this
    fleet.start(**LEASE)
    fleet.start(**LEASE)
    run = await client.enqueue(job, size=10)

    async def look(rows: int) -> RunReport | None:
        """Return the report once the run has that many rows; each report on the way adds up."""
        report = await make_report(database, run.id)
        if report is not None:
            ensure_adds_up(report)
            for step in report.steps:  # no rate of a moment, and none that the pace does not allow
                assert all(point.rows_per_second < 5_000 for point in step.rates if point.seconds > 0.5), step.rates
        return report if report is not None and report.run.rows >= rows else None

    await until(lambda: look(150))
    fleet.kill(await fleet.holder(run.id))
    fleet.start(**LEASE)
    taken = await until(lambda: look(350))
    await client.pause(run.id)

    async def look_paused() -> bool:
        report = await look(1)
        return report is not None and report.run.state == "paused" and report.time["paused"] > 0.1

    await until(look_paused)
    await client.resume(run.id)
    if end == "cancelled":
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
    else:
        await client.redis.hdel(keys.PACE, job.name)
        assert await run.result(timeout=120) == 1_500
    report = await until(lambda: look(1))
    assert report is not None and taken is not None and report.run.state == end
    assert report.time["between attempts"] > 0.5, "the lease of the worker that was killed, and the pause"
    assert report.time["pace"] > 0.2
