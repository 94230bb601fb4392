"""The five questions of an operator who has only the page: each is answered within three clicks from the overview."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import text

from tests.web.page.jobs import nightly, picky_walk, slow_walk, strict_walk
from tests.web.page.scene import PageSite
from worker import JobFailed
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.cron_lines import firing_id

pytestmark = pytest.mark.asyncio(loop_scope="module")
expect.set_options(timeout=60_000)

_COUNT = """addEventListener("click", (event) => {
  if (event.isTrusted && event.detail) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true)"""

_FIRED = text(
    "INSERT INTO worker.cron_firing (job, line, due_at) VALUES ('nightly', :line, :due) "
    "ON CONFLICT (job, line) DO UPDATE SET due_at = excluded.due_at"
)


@asynccontextmanager
async def at_most(clicks: int, site: PageSite) -> AsyncIterator[Page]:
    """Open the overview. The block takes no more clicks than that."""
    async with site.context() as context:
        await context.add_init_script(_COUNT)
        page = await context.new_page()
        await page.goto(site.url)
        yield page
        assert int(await page.evaluate("sessionStorage.clicks ?? 0")) <= clicks


async def spoil(site: PageSite, author: int) -> None:
    """Give an author a bad nickname."""
    async with site.database.session() as session:
        await session.execute(text("UPDATE author SET nickname = 'bad ' || id WHERE id = :id"), {"id": author})
        await session.commit()


async def mend(site: PageSite) -> None:
    """Correct the nicknames, as a human does when the cause is known."""
    async with site.database.session() as session:
        await session.execute(text("UPDATE author SET nickname = NULL"))
        await session.commit()


async def test_which_run_is_the_slowest_and_why_and_it_is_slowed_down(site: PageSite) -> None:
    for name, pace in (("quick", 12.0), ("slowest", 3.0)):
        await site.client.pace(name, rows_per_second=pace)
        await site.client.enqueue(slow_walk.options(id=name), size=1)
    async with at_most(0, site) as page:
        first = page.locator("#region-active tbody tr").first
        await expect(first).to_contain_text("slowest")
        await expect(first).to_contain_text("3 rows/s at most")
    async with at_most(2, site) as page:  # slow the other one down
        await page.locator("#region-active").get_by_role("link", name="quick").click()
        await page.get_by_label("Pace in rows a second").focus()
        await page.get_by_label("Pace in rows a second").press("ArrowLeft")
        await expect(page.locator("#toasts")).to_contain_text("Pace of quick: 12 → ")
        assert float(await site.redis.hget(keys.PACE, "quick") or 12) < 12  # type: ignore[misc]
        await expect(page.locator("ul.keys")).to_contain_text("throttled: pace")
        await expect(page.locator("ul.keys svg.tone")).to_have_count(1)
        await site.check(page)
    await site.client.cancel("quick", "slowest")


async def test_why_a_run_failed_and_on_which_row_and_it_is_set_right(site: PageSite) -> None:
    await spoil(site, 131)
    run = await site.client.enqueue(strict_walk.options(id="strict"))
    with pytest.raises(JobFailed):
        await run.result(timeout=60)
    async with at_most(3, site) as page:
        await expect(page.locator("#ended-strict")).to_contain_text("dead")
        await page.locator("#region-failures").get_by_role("link", name="strict").click()
        await expect(page.locator("#region-outcome")).to_contain_text("this nickname is not allowed")
        await expect(page.locator("#region-outcome")).to_contain_text("key 131]")
        await mend(site)
        await page.get_by_role("button", name="Run again…").click()
        await page.get_by_role("button", name="Continue from the checkpoint").click()
        await expect(page.locator(".big .state")).to_have_text("succeeded")
        await expect(page.locator("[data-again]")).to_contain_text("by web:local, after it was dead")
        await expect(page.locator("tr[id^=attempt-] .state").first).to_have_text("succeeded")
        await expect(page.locator("tr[id^=attempt-] .error").nth(1)).to_contain_text("this nickname is not allowed")
    assert await run.result(timeout=60) == 400


async def test_which_rows_are_in_quarantine_and_they_are_processed_again(site: PageSite) -> None:
    await spoil(site, 77)
    await (await site.client.enqueue(picky_walk.options(id="picky"))).result(timeout=60)
    async with at_most(3, site) as page:
        await page.locator("nav").get_by_role("link", name="Quarantine").click()
        await expect(page.locator("[data-row]")).to_contain_text("author 77 has a bad nickname")
        await mend(site)
        await page.locator("[data-row] input.pick").check()
        await page.get_by_role("button", name="Process again", exact=True).first.click()
        await expect(page.locator("[data-row]")).to_have_count(0)


async def test_a_nightly_job_runs_now_with_other_arguments(site: PageSite) -> None:
    async with at_most(2, site) as page:
        await page.locator("#region-cron").get_by_role("link", name="nightly").first.click()
        await page.get_by_label("depth").select_option("deep")
        await page.get_by_label("day").fill("2026-11-20")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("#region-outcome")).to_contain_text("deep 2026-11-20 10")


async def test_whether_the_cron_job_of_last_night_ran(site: PageSite) -> None:
    [line] = nightly.schedule
    due = line.next_after(datetime.now(UTC) - timedelta(hours=24))
    run_id = firing_id("nightly", str(line), due, await Ledger(site.database).read_application())
    async with site.database.session() as session:  # as a worker that was there last night
        await session.execute(_FIRED, {"line": str(line), "due": due})
        await session.commit()
    await (await site.client.enqueue(nightly.options(id=run_id))).result(timeout=60)
    async with at_most(0, site) as page:
        shown = page.locator("#region-cron li", has_text="nightly")
        await expect(shown.locator(".last")).to_contain_text("succeeded")
        await expect(shown.locator(".last time")).to_have_attribute("datetime", due.astimezone(UTC).isoformat())
