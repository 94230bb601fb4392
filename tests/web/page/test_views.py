"""The views beside overview and run, in Chromium: jobs with their form, failures, cron, limits, events, outbox."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect
from sqlalchemy import func, select, text

from demo.page_server import serving
from tests.models import Author
from tests.support.waiting import until
from tests.support.workers import with_web
from tests.web.page.jobs import HOSTILE, picky_walk, slow_walk
from tests.web.page.scene import JOBS, PageSite
from worker.queue.dead_letters import encode_letter
from worker.web import letter_reads, web_app
from worker.web.tokens import TokenFile

pytestmark = pytest.mark.asyncio(loop_scope="module")
expect.set_options(timeout=60_000)


async def test_a_nightly_job_is_run_now_with_other_arguments(site: PageSite) -> None:
    async with site.open("/page/cron") as page:
        await site.check(page)
        row = page.locator("tr", has_text="nightly")
        await expect(row).to_contain_text("this line is known only since")
        await row.get_by_role("link", name="Other arguments").click()
        await expect(page.locator(".field", has=page.get_by_label("rows"))).to_contain_text("default 10")
        await page.get_by_label("depth").select_option(label="deep")
        await page.get_by_label("day").fill("2026-01-31")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator(".note")).to_contain_text("Enqueued")
        await expect(page.locator("main")).to_contain_text("deep 2026-01-31 10")
        await expect(page.locator("[data-enqueued-by]")).to_have_text("web:local")
        await expect(page.locator(".events")).to_contain_text("Enqueued by web:local")
        run_id = await page.locator("h1").inner_text()
        await page.goto(f"{site.url}/page/jobs/nightly")
        await expect(page.locator("#region-history")).to_contain_text(run_id)
        await expect(page.locator("#region-history svg.bars rect")).not_to_have_count(0)
        await page.goto(f"{site.url}/page/cron")
        await expect(row).to_contain_text("by hand, ")
        await page.locator("tr", has_text="nightly").get_by_role("button", name="Run now nightly", exact=True).click()
        await expect(page.locator("#toasts")).to_contain_text("Enqueued cron:nightly:by-hand:")
        newest = row.locator("a.sub", has_text=re.compile(r"by hand, \d\d:\d\d:\d\d UTC, succeeded, (\d|under)"))
        await expect(newest).to_have_attribute("href", re.compile("cron%3Anightly%3Aby-hand%3A"))
        await site.check(page)


async def test_the_form_keeps_what_was_typed_and_names_each_fault_beside_its_field(site: PageSite) -> None:
    async with site.open("/page/jobs/chosen_walk", java_script_enabled=False) as page:
        field = page.get_by_label("ids")
        await field.fill("[3, <b>]")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(field).to_have_value("[3, <b>]")
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(page.locator("#arg-1-error")).to_contain_text("it is not JSON")
        await field.fill('[3, "x"]')
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("#arg-1-error")).to_contain_text("1: input should be a valid integer")
        await page.locator("summary", has_text="under which id").click()
        await page.get_by_label("Priority").fill("12")
        await field.fill("[]")
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("#option-priority-error")).to_contain_text("less than or equal to 9")
        await page.get_by_label("Priority").fill("")
        await page.get_by_label("Id of the run").fill("typed-1")
        await page.get_by_role("button", name="As a command", exact=True).click()
        lines = await page.locator("[data-lines-out] code").all_inner_texts()
        assert lines[0] == "worker enqueue --id typed-1 chosen_walk 'ids=[]'"
        assert [line.split()[1] for line in lines[1:]] == ["SET", "ZADD"]
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("h1")).to_have_text("typed-1")
    await until(lambda: site.redis.exists("worker:run:typed-1"))


async def test_a_walk_is_planned_and_tried_and_nothing_changes(site: PageSite) -> None:
    async with site.database.session() as session:
        before = await session.scalar(select(func.sum(Author.seen)))
    async with site.open("/page/jobs/chosen_walk") as page:
        await page.get_by_label("ids").fill("[1, 2, 3, 4, 5, 6, 7]")
        await page.get_by_role("button", name="Plan").click()
        await expect(page.locator("#plan")).to_contain_text("over author")
        await expect(page.locator("#plan")).to_contain_text("FOR NO KEY UPDATE")
        await page.get_by_label("Rows in a batch").fill("2")
        warning = page.locator(".joined", has=page.get_by_role("button", name="Try", exact=True))
        await expect(warning).to_contain_text("are real and are not undone")
        await page.get_by_role("button", name="Try", exact=True).click()
        await expect(page.locator("#trial article")).to_have_count(3)
        await expect(page.locator("#trial")).to_contain_text("seen")
        await expect(page.get_by_label("ids")).to_have_value("[1, 2, 3, 4, 5, 6, 7]")
        await site.check(page)
        # The command follows what is typed.
        await page.get_by_role("button", name="As a command", exact=True).click()
        await expect(page.locator("[data-lines-out] code").first).to_have_text(
            "worker enqueue chosen_walk 'ids=[1, 2, 3, 4, 5, 6, 7]'"
        )
        await page.get_by_label("ids").fill("[1]")
        await expect(page.locator("[data-lines-out] code").first).to_have_text("worker enqueue chosen_walk 'ids=[1]'")
        await page.goto(f"{site.url}/page/jobs/nightly")
        await expect(page.get_by_role("button", name="Plan")).to_have_count(0)
        await expect(page.locator(".prose code")).to_have_text("deep")
    async with site.database.session() as session:
        assert await session.scalar(select(func.sum(Author.seen))) == before


async def test_back_leaves_a_form_that_was_refused_planned_and_enqueued(site: PageSite) -> None:
    async with site.open("/page/jobs") as page:
        await page.get_by_role("link", name="chosen_walk").first.click()
        await expect(page.locator("body.is-live")).to_be_visible()
        before = await page.evaluate("history.length")
        field = page.get_by_label("ids")
        await field.fill("[3, <b>]")
        await page.locator("summary", has_text="under which id").click()
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator("#arg-1-error")).to_contain_text("it is not JSON")
        await expect(field).to_be_focused()
        await expect(page.get_by_label("Id of the run")).to_be_visible()  # what was opened stays open
        await expect(page.locator("#toasts")).to_contain_text("1 field is not valid.")
        await site.check(page)
        await page.get_by_label("Rows in a batch").fill("2")
        await field.fill("[1, 2, 3]")
        await page.get_by_role("button", name="Plan").click()
        await expect(page.locator("#plan")).to_be_focused()
        await expect(field).not_to_have_attribute("aria-invalid", "true")
        await page.get_by_role("button", name="Try", exact=True).click()
        await expect(page.locator("#trial")).to_be_focused()
        await expect(page.locator("#plan")).to_have_count(0)
        await expect(page.get_by_label("Rows in a batch")).to_have_value("2")
        assert await page.evaluate("history.length") == before
        await page.get_by_role("button", name="Enqueue").last.click()
        await expect(page.locator(".note")).to_contain_text("Enqueued ")
        await expect(page.locator("[data-enqueued-by]")).to_have_text("web:local")
        await page.go_back()
        await expect(page.locator("h1")).to_have_text("chosen_walk")
        await expect(page.locator("[aria-busy]")).to_have_count(0)
        await page.go_back()
        await expect(page.locator("h1")).to_have_text("Jobs")


async def test_the_list_of_jobs_is_searched_and_opened_by_keys(site: PageSite) -> None:
    async with site.open("/page/jobs") as page:
        await expect(page.locator("[data-row]")).to_have_count(len(JOBS))
        await site.check(page)
        await page.keyboard.press("/")
        await page.keyboard.type("NIGHT")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-row]")).to_have_count(1)
        assert page.url.endswith("/page/jobs?search=NIGHT")
        await expect(page.locator("body.is-live")).to_be_visible()  # its scripts take keys
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_have_text("nightly")
        await page.get_by_role("button", name="Pause the job", exact=True).click()
        await expect(page.locator("#region-facts")).to_contain_text("No run of this job begins.")
        await page.get_by_role("button", name="Resume the job", exact=True).click()
        await expect(page.locator("#region-facts")).not_to_contain_text("No run of this job begins.")
    assert await site.redis.scard("worker:paused") == 0


async def add_letters(site: PageSite, count: int) -> None:
    """Add dead letters of Redis; the newest has hostile texts."""
    about: dict[str, Any] = {"queue": "arq:queue", "attempts": 3, "trace": "x" * 200, "in_ledger": False}
    now = round(time.time() * 1000)
    letters: dict[str, Any] = {
        f"letter-{n}": encode_letter(
            b'{"f": "nightly", "k": {}}',
            job="brittle" if n % 2 else "nightly",
            error=f"Timeout: {HOSTILE}" if n == 0 else f"Refused: mail {n}",
            **about,
        )
        for n in range(count)
    }
    await site.redis.hset("worker:dead", mapping=letters)  # type: ignore[misc]
    await site.redis.zadd("worker:dead:at", {name: now - 1_000 * n for n, name in enumerate(letters)})


async def test_of_many_dead_letters_some_are_found_retried_and_deleted(
    site: PageSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_letters(site, 2_600)
    monkeypatch.setattr(letter_reads, "_LONGEST_LOOK_SECONDS", 600.0)
    async with site.open("/page/dead-letters") as page:
        await expect(page.locator("h1 + .hint")).to_have_text("2,600 runs have failed for good")
        await expect(page.locator("[data-row]")).to_have_count(50)
        await expect(page.locator("tr#letter-letter-0")).to_contain_text("<script>alert(1)</script> \\x1b[31mred")
        await site.check(page)
        await page.get_by_label("Search id, job, arguments, error").fill("mail 259")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-row]")).to_have_count(11)  # 259, and 2590 to 2599, which are the oldest
        await expect(page.locator("[data-looked-at]")).to_have_text("All 2,600 letters were looked at.")
        monkeypatch.setattr(letter_reads, "_LONGEST_LOOK_SECONDS", 0.0)
        await page.get_by_label("Search id, job, arguments, error").fill("mail 77")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-row]")).to_have_count(1)
        await expect(page.locator("[data-looked-at]")).to_contain_text("The newest 200 of 2,600 letters")
        monkeypatch.setattr(letter_reads, "_LONGEST_LOOK_SECONDS", 600.0)
        await page.goto(f"{site.url}/page/dead-letters?search=MAIL 77")
        await expect(page.locator("[data-row]")).to_have_count(11)
        await page.get_by_label("Select letter-77", exact=True).check()
        await page.get_by_label("Select letter-770", exact=True).check()
        await expect(page.locator("[data-picked]")).to_have_text("2 selected")
        await page.get_by_role("button", name="Retry as a command").click()
        lines = ["worker retry letter-77 letter-770", "redis-cli SADD worker:retry letter-77 letter-770"]
        await expect(page.locator("#lines code")).to_have_text(lines)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Retry", exact=True).click()
        await expect(page.locator("#toasts")).to_contain_text("Enqueued again: letter-77, letter-770.")
        await expect(page.locator("tr#letter-letter-770")).to_have_count(0)
        await page.goto(f"{site.url}/page/dead-letters?job=brittle&limit=500")
        await expect(page.locator("[data-row]")).to_have_count(500)
        await page.get_by_label("Select all that are shown").check()
        await page.get_by_role("button", name="Delete…", exact=True).click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(page.locator("#toasts")).to_contain_text("and 497 more")
    assert 2_090 < await site.redis.hlen("worker:dead") <= 2_100
    await site.redis.delete("worker:dead", "worker:dead:at")


async def test_quarantined_rows_are_processed_again_after_their_cause_was_set_right(site: PageSite) -> None:
    async with site.database.session() as session:
        await session.execute(text("UPDATE author SET nickname = 'bad' || id WHERE id IN (3, 5, 7)"))
        await session.commit()
    await (await site.client.enqueue(picky_walk.options(id="picky-1"))).result(timeout=60)
    async with site.open("/page/quarantine") as page:
        await expect(page.locator("[data-row]")).to_have_count(3)
        await expect(page.locator("main")).to_contain_text("author 5 has a bad nickname: <script>alert(1)</script>")
        await (await site.client.enqueue(picky_walk.options(id="picky-2"))).result(timeout=60)
        await expect(page.locator("[data-row]")).to_have_count(6)  # by an update: each run keeps a box for all its rows
        await expect(page.get_by_label("Select all rows of picky-1", exact=True)).not_to_be_checked()
        await page.get_by_label("Select all rows of picky-2", exact=True).check()
        await expect(page.locator("[data-picked]")).to_have_text("3 selected")
        await page.keyboard.press("d")
        await page.get_by_role("button", name="Discard", exact=True).click()
        await expect(page.locator("[data-row]")).to_have_count(3)
        await page.keyboard.press("j")
        await page.keyboard.press("x")
        await expect(page.locator("[data-picked]")).to_have_text("1 selected")
        await page.keyboard.press("x")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-row] details").nth(1)).to_have_attribute("open", "")
        await site.check(page)
        async with site.database.session() as session:
            await session.execute(text("UPDATE author SET nickname = 'good' || id WHERE id IN (3, 5)"))
            await session.commit()
        for row in (await page.locator("[data-row] .main .id").all())[1:]:
            assert await row.inner_text() in ("3", "5")
        boxes = page.locator("[data-row] input.pick")
        await boxes.nth(1).check()
        await boxes.nth(2).check()
        await page.get_by_role("button", name="Process again", exact=True).first.click()
        await expect(page.locator("[data-row]")).to_have_count(1)
        await page.locator("[data-row] input.pick").check()
        await page.keyboard.press("d")
        await page.get_by_role("button", name="Discard", exact=True).click()
        await expect(page.locator("main")).to_contain_text("No row is in quarantine")


async def test_limits_are_set_and_a_walk_is_slowed_down(site: PageSite) -> None:
    await site.client.pace("paced-1", rows_per_second=5)
    run = await site.client.enqueue(slow_walk.options(id="paced-1"))
    async with site.open("/page/limits", viewport={"width": 390, "height": 844}) as page:
        await page.get_by_label("Job or queue").fill("brittle")
        await page.get_by_label("Runs at once").last.fill("2")
        await page.get_by_role("button", name="Set the limits", exact=True).last.click()
        row = page.locator("[data-row]", has_text="brittle")
        await expect(row).to_contain_text("0 of 2")
        await page.get_by_label("Run or job").fill("paced-1")
        await page.get_by_label("Rows a second").last.fill("4.5")
        await page.get_by_role("button", name="Set the pace as a command").last.click()
        await expect(page.locator("#lines code").first).to_have_text("worker pace --max-rows-per-second 4.5 paced-1")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Set the pace", exact=True).last.click()
        await expect(page.locator("[data-row]", has_text="paced-1")).to_contain_text("4.5 rows/s")
        await site.check(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await (
            page.locator("[data-row]", has_text="paced-1")
            .get_by_role("button", name="Unset pace", exact=False)
            .first.click()
        )
        await row.get_by_role("button", name="Unset brittle", exact=True).click()
        await expect(page.locator("[data-row]", has_text="brittle")).to_have_count(0)
    await run.result(timeout=60)
    assert await site.redis.hlen("worker:limits") == 0


async def test_refused_rows_of_the_outbox_and_events_are_shown(site: PageSite) -> None:
    async with site.database.session() as session:
        await session.execute(
            text(
                "INSERT INTO worker.outbox (run_id, job, payload, problem) VALUES ('out-1', 'brittle', '{}', :problem)"
            ),
            {"problem": HOSTILE},
        )
        await session.commit()
    async with site.open("/page/outbox", color_scheme="dark") as page:
        await expect(page.locator("[data-row]")).to_contain_text("refused")
        await site.check(page)
        await page.get_by_label("Select 1").check()
        await page.get_by_role("button", name="Delete…").click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(page.locator("main")).to_contain_text("The outbox is empty")
        await page.goto(f"{site.url}/page/events?event=ordered")
        await expect(page.locator("[data-row]").first).to_contain_text("outbox_delete")
        await site.check(page)
        await page.locator("select[name=event]").select_option("workers")
        await expect(page.locator("[data-row]").first).to_contain_text("worker started")
        assert "event=workers" in page.url and "brief=false" in page.url, "the address has the filter"
        await page.get_by_label("Search all fields").fill("no such text")
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_contain_text("No event matches.")
        await (await site.client.enqueue(slow_walk.options(id="found-1"), size=200)).result(timeout=60)
        await page.goto(f"{site.url}/page/runs?search=FOUND")
        await expect(page.locator("[data-row]")).to_have_count(1)
        await site.check(page)
        await site.client.pause("slow_walk?size=3")
        await site.client.resume("slow_walk?size=3")
        await page.goto(f"{site.url}/page/audit")
        await expect(page.locator("[data-row]").first).to_contain_text("resume")
        await expect(page.locator("[data-row]", has_text="web:local")).not_to_have_count(0)
        await site.check(page)
        await page.get_by_role("link", name="slow_walk?size=3").first.click()
        await expect(page.locator("h1")).to_have_text("slow_walk")


async def test_a_read_only_visitor_sees_no_order_and_may_give_none(site: PageSite, tmp_path: Path) -> None:
    tokens = TokenFile(str(tmp_path / "tokens.toml"))
    token = tokens.create("reader", ["read"])
    settings = with_web(site.settings, tokens_file=str(tmp_path / "tokens.toml"))
    app = web_app(settings, jobs=JOBS)
    await add_letters(site, 1)
    try:
        async with serving(settings, app) as url, site.context() as context:
            page = await context.new_page()
            await page.goto(f"{url}/page/login")
            await page.get_by_label("Token").fill(token)
            await page.keyboard.press("Enter")
            await expect(page.locator("nav")).to_be_visible()
            for path in ("jobs/nightly", "jobs", "cron", "dead-letters", "limits", "quarantine", "outbox", "runs"):
                html = await (await page.request.get(f"{url}/page/{path}")).text()
                shown = html.partition("<main")[2]
                assert "<h1" in shown and 'method="post"' not in shown and 'class="pick"' not in shown, path
            csrf = await page.locator("meta[name=csrf]").get_attribute("content")
            for order in ("orders/pause", "commands/pause", "jobs/nightly"):
                fields = {"csrf": str(csrf), "targets": "x", "act": "enqueue"}
                answer = await page.request.post(f"{url}/page/{order}", form=fields, headers={"Origin": url})
                text_ = await answer.text()
                assert answer.status in (403, 422) and "has not the role" in text_, (order, answer.status)
    finally:
        await app.close()
    assert await site.redis.scard("worker:paused") == 0


@pytest.mark.long
@pytest.mark.parametrize("colour", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 2560])
async def test_axe_finds_nothing_and_no_view_is_wider_than_the_window(site: PageSite, width: int, colour: Any) -> None:
    await add_letters(site, 3)
    await site.client.limit("brittle", running=2)
    # By redis-cli: our commands refuse the name.
    await site.redis.hset("worker:pace", f"a{HOSTILE[:30]}", "7")  # type: ignore[misc]
    async with site.database.session() as session:
        await session.execute(
            text("INSERT INTO worker.outbox (run_id, job, payload, problem) VALUES (:id, 'brittle', '{}', :problem)"),
            {"id": "x" * 300, "problem": HOSTILE},
        )
        await session.commit()
    views = ("jobs", "jobs/nightly", "jobs/chosen_walk", "cron", "dead-letters", "quarantine", "limits", "outbox")
    async with site.open("/", viewport={"width": width, "height": 900}, color_scheme=colour) as page:
        for path in (*views, "events", "audit", "runs"):
            await page.goto(f"{site.url}/page/{path}")
            await expect(page.locator("h1")).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            await site.check(page)
    await site.client.limit("brittle", running=None)
    await site.redis.delete("worker:dead", "worker:dead:at", "worker:pace")
