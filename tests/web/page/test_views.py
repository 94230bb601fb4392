"""The page of a job in Chromium: its form enqueues, plans and tries, and keeps what was typed."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import expect
from sqlalchemy import func, select

from tests.models import Author
from tests.web.page.jobs import nightly
from tests.web.page.scene import JOBS, PageSite

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_nightly_job_is_run_now_with_other_arguments(site: PageSite) -> None:
    async with site.open("/page/cron") as page:
        await site.check(page)
        row = page.locator("tr", has_text="nightly")
        await expect(row).to_contain_text("not due yet")
        await row.get_by_role("link", name="Other arguments").click()
        await page.get_by_label("depth").select_option(label="deep")
        await page.get_by_label("day").fill("2026-01-31")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator(".note")).to_contain_text("Enqueued")
        await expect(page.locator("main")).to_contain_text("deep 2026-01-31 10")
        run_id = await page.locator("h1").inner_text()
        await page.goto(f"{site.url}/page/jobs/nightly")
        await expect(page.locator("#region-history")).to_contain_text(run_id)
        await expect(page.locator("#region-history svg.bars rect")).to_have_count(1)
        await page.goto(f"{site.url}/page/cron")
        await page.locator("tr", has_text="nightly").get_by_role("button", name="Run now nightly", exact=True).click()
        await expect(page.locator("#toasts")).to_contain_text("Enqueued cron:nightly:by-hand:")


async def test_the_form_keeps_what_was_typed_and_names_each_fault_beside_its_field(site: PageSite) -> None:
    async with site.open("/page/jobs/chosen_walk", java_script_enabled=False) as page:
        field = page.get_by_label("ids")
        await field.fill("[3, <b>]")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(field).to_have_value("[3, <b>]")
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(page.locator("#arg-1-hint")).to_contain_text("it is not JSON")
        await field.fill('[3, "x"]')
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("#arg-1-hint")).to_contain_text("1: input should be a valid integer")
        await page.locator("summary", has_text="under which id").click()
        await page.get_by_label("Priority").fill("12")
        await field.fill("[]")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("#option-priority-hint")).to_contain_text("less than or equal to 9")
        await page.get_by_label("Priority").fill("")
        await page.get_by_label("Id of the run").fill("typed-1")
        await page.get_by_role("button", name="As a command").click()
        lines = await page.locator("[data-lines-out] code").all_inner_texts()
        assert lines[0] == "worker enqueue --id typed-1 chosen_walk 'ids=[]'"
        assert [line.split()[1] for line in lines[1:]] == ["SET", "ZADD"]
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("h1")).to_have_text("typed-1")
    assert await site.redis.exists("worker:run:typed-1", "arq:job:typed-1")


async def test_a_walk_is_planned_and_tried_and_nothing_changes(site: PageSite) -> None:
    async with site.database.session() as session:
        before = await session.scalar(select(func.sum(Author.seen)))
    async with site.open("/page/jobs/chosen_walk") as page:
        await page.get_by_label("ids").fill("[1, 2, 3, 4, 5, 6, 7]")
        await page.get_by_role("button", name="Plan").click()
        await expect(page.locator("#plan")).to_contain_text("over author")
        await expect(page.locator("#plan")).to_contain_text("FOR NO KEY UPDATE")
        await page.get_by_label("Rows in a batch").fill("2")
        await page.get_by_role("button", name="Try", exact=True).click()
        await expect(page.locator("#trial article")).to_have_count(3)
        await expect(page.locator("#trial")).to_contain_text("seen")
        await expect(page.get_by_label("ids")).to_have_value("[1, 2, 3, 4, 5, 6, 7]")
        await site.check(page)
        # The command follows what is typed.
        await page.get_by_role("button", name="As a command").click()
        await expect(page.locator("[data-lines-out] code").first).to_have_text(
            "worker enqueue chosen_walk 'ids=[1, 2, 3, 4, 5, 6, 7]'"
        )
        await page.get_by_label("ids").fill("[1]")
        await expect(page.locator("[data-lines-out] code").first).to_have_text("worker enqueue chosen_walk 'ids=[1]'")
        await page.goto(f"{site.url}/page/jobs/nightly")
        await expect(page.get_by_role("button", name="Plan")).to_have_count(0)
    async with site.database.session() as session:
        assert await session.scalar(select(func.sum(Author.seen))) == before


async def test_the_list_of_jobs_is_searched_and_opened_by_keys(site: PageSite) -> None:
    async with site.open("/page/jobs") as page:
        await expect(page.locator("[data-row]")).to_have_count(len(JOBS))
        await site.check(page)
        await page.keyboard.press("/")
        await page.keyboard.type("NIGHT")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-row]")).to_have_count(1)
        assert page.url.endswith("/page/jobs?search=NIGHT")
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_have_text("nightly")
        await page.get_by_role("button", name="Pause the job").click()
        await expect(page.locator("#region-facts")).to_contain_text("No run of this job begins.")
        await page.get_by_role("button", name="Resume the job").click()
        await expect(page.locator("#region-facts")).not_to_contain_text("No run of this job begins.")
    assert await site.redis.scard("worker:paused") == 0


async def test_a_unique_id_twice_is_one_run(site: PageSite) -> None:
    await site.client.enqueue(nightly.options(id="twice", delay=3600))
    async with site.open("/page/jobs/nightly") as page:
        await page.locator("summary", has_text="under which id").click()
        await page.get_by_label("Id of the run").fill("twice")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator(".note")).to_have_text("twice was enqueued before.")
    payload = json.loads(await site.redis.get("arq:job:twice") or b"{}")
    assert payload["k"] == {}
