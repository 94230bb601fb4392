"""The page in Chromium, over a real worker and real servers."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.web.page.jobs import slow_walk
from tests.web.page.scene import PageSite

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_page_of_a_run_follows_its_walk_and_steers_it(site: PageSite) -> None:
    await site.client.pace("walk-1", rows_per_second=20)
    run = await site.client.enqueue(slow_walk.options(id="walk-1"))
    async with site.open("/page/runs/walk-1") as page:
        await expect(page.locator(".state").first).to_have_text("running")
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#toasts")).to_contain_text("Paused walk-1")
        await expect(page.locator(".state").first).to_have_text("paused")
        await site.check(page)
        await site.client.pace("walk-1", rows_per_second=None)
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".state").first).to_have_text("succeeded")
    assert await run.result(timeout=60) == 400
