"""The page in Chromium, over a real worker and real servers."""

from __future__ import annotations

import json
import re

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import func, select, text

from demo.page_server import serving
from tests.models import Author
from tests.support.waiting import until
from tests.support.workers import with_web
from tests.web.page.jobs import HOSTILE, brittle, nightly, picky_walk, slow_walk
from tests.web.page.scene import ROWS, PageSite
from worker import JobFailed
from worker.queue import keys
from worker.web import web_app

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE_ID = "<img src=x onerror=alert(1)>\"'{{7*7}}"
_WAIT_MS = 60_000
expect.set_options(timeout=_WAIT_MS)


async def pace(site: PageSite, run_id: str) -> str | None:
    """Return the pace that Redis has for a run."""
    found = await site.redis.hget(keys.PACE, run_id)
    return None if found is None else found.decode()


async def rows_of(page: Page) -> int:
    """Return the rows that the page of a run shows."""
    return int((await page.locator(".totals dd").first.inner_text()).split()[0].replace(",", ""))


async def test_page_of_a_run_follows_it_over_orders_a_kill_and_a_second_run(site: PageSite) -> None:
    await site.client.pace("walk-1", rows_per_second=8)
    run = await site.client.enqueue(slow_walk.options(id="walk-1"), size=2)
    async with site.open("/page/runs/walk-1") as page:
        state = page.locator(".big .state")
        await expect(state).to_have_text("running · throttled")
        await expect(page.locator(".alert.is-throttled")).to_contain_text("8 rows/s at most")
        await expect(page.locator(".progress.long")).to_contain_text("% by position")
        await expect(page.locator("svg.story .span").last).to_have_class("span is-throttled")
        seen = await rows_of(page)
        await until(lambda: _has_moved(page, seen))
        assert await page.evaluate("performance.getEntriesByName('page-update').length") > 0
        await site.check(page)

        slider = page.get_by_label("Pace in rows a second")
        await slider.focus()
        await slider.press("ArrowLeft")
        await expect(page.locator("#toasts")).to_contain_text("Pace of walk-1: 8 → ")
        slower = float(await pace(site, "walk-1") or "0")
        await expect(page.locator("#toasts")).to_contain_text(f"Pace of walk-1: 8 → {slower:g} rows/s.")
        assert 1 < slower < 8, "one step to the left of the pace that was set"
        await expect(page.locator(".totals")).to_contain_text(f"rows/s, at most {slower:g}")
        assert f"{slower:g}" == await page.locator("[name=rows_per_second]").input_value()
        await expect(page.locator(".alert.is-throttled")).to_contain_text(f"{slower:g} rows/s at most")

        place = await slider.input_value()
        await page.locator("[name=rows_per_second]").fill("50")  # the slider follows
        assert float(await slider.input_value()) > float(place) + 10
        await page.locator("[name=rows_per_second]").fill(f"{slower:g}")
        await page.locator("h1").click()  # away from the slider
        await page.keyboard.press("p")
        told = re.compile(r"Paused (now|\d+ s ago) by web:local\. Resume continues from its checkpoint, \d+ rows")
        await expect(page.locator(".alert.is-paused")).to_have_text(told)
        await expect(page.locator("svg.story .span").last).to_have_class("span is-paused")
        assert await site.redis.smembers(keys.PAUSED) == {b"walk-1"}
        await page.keyboard.press("p")
        await expect(state).to_have_text("running · throttled")
        seen = await rows_of(page)
        await until(lambda: _has_moved(page, seen))  # north has the run again, from the queue

        site.start_worker("south")
        site.kill_worker("north")
        await expect(page.locator(".totals")).to_contain_text("1 takeover")
        await expect(page.locator(".keys")).to_contain_text("without a worker")
        await page.locator(".events summary").click()
        for words in ("south took it over", "Pace set to", "Paused by web:local", "Attempt 1 began on north."):
            await expect(page.locator(".events")).to_contain_text(words)

        await slider.focus()
        await slider.press("End")  # no limit
        await expect(state).to_have_text("succeeded")
        assert (await run.result(timeout=60), await pace(site, "walk-1")) == (ROWS, None)
        assert await _seen(site) == (1, 1), "each row is done once"
        await expect(page.get_by_role("button", name="Pause")).to_have_count(0)

        await page.locator("h1").click()
        await page.keyboard.press("r")
        dialog = page.get_by_role("dialog", name="Run it again?")
        await expect(dialog).to_contain_text("every row is processed again: 400 rows are done twice")
        await dialog.get_by_role("button", name="Delete the checkpoints").click()
        await until(lambda: _is_seen_twice(site))
        await expect(state).to_have_text("succeeded")
    site.start_worker("north")
    site.kill_worker("south")


async def _has_moved(page: Page, seen: int) -> bool:
    return await rows_of(page) > seen


async def _seen(site: PageSite) -> tuple[int, int]:
    async with site.database.session() as session:
        least, most = (await session.execute(select(func.min(Author.seen), func.max(Author.seen)))).one()
        return least, most


async def _is_seen_twice(site: PageSite) -> bool:
    return await _seen(site) == (2, 2)


_LINES = """(link) => {
  const range = document.createRange();
  range.selectNodeContents(link);
  return range.getClientRects().length;
}"""


async def test_an_id_is_not_broken_while_another_column_has_room(site: PageSite) -> None:
    pairs = {"throttled": "replication lag " * 6, "helps": "", "percent": "40", "percent_by": "position", "rows": "1"}
    run_id = "export-2026-08/part-1"
    text_ = "x" * 300
    for name in (run_id, text_):
        await site.redis.hset(f"worker:run:{name}", mapping=pairs | {"job": "slow_walk", "state": "running"})  # type: ignore[misc]
    worker = {"state": "running", "queue": "arq:queue", "jobs": [run_id, text_], "seen_at": "2099-01-01T00:00:00+00:00"}
    await site.redis.hset("worker:workers", "west", json.dumps(worker))  # type: ignore[misc]
    for width in (1100, 1280, 390):
        async with site.open("/", viewport={"width": width, "height": 900}) as page:
            link = page.locator("#region-active").get_by_role("link", name=run_id)
            await expect(link).to_be_visible()
            assert await link.evaluate(_LINES) == 1, width
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
    await site.redis.hdel("worker:workers", "west")  # type: ignore[misc]
    await site.redis.delete(*(f"worker:run:{name}" for name in (run_id, text_)))
    async with site.open("/page/runs?job=nightly") as page:
        await expect(page.locator(".empty")).to_contain_text("Short runs without a loop are not listed here")
        await page.get_by_role("link", name="its events").click()
        assert page.url.endswith("/page/events?job=nightly&brief=true")


async def test_pace_that_was_typed_stays_although_another_one_was_set(site: PageSite) -> None:
    await site.client.pace("typed", rows_per_second=6)
    run = await site.client.enqueue(slow_walk.options(id="typed"), size=1)
    async with site.open("/page/runs/typed") as page:
        field, note = page.locator("[name=rows_per_second]"), page.locator("[data-pace-note]")
        await expect(page.locator("body.is-live")).to_be_visible()
        await field.fill("770")
        await page.locator("h1").click()  # the field has no focus any more
        await site.client.pace("typed", rows_per_second=5)
        await expect(note).to_have_text("Changed meanwhile: 5 rows/s.")
        await expect(field).to_have_value("770")
        await site.check(page)
        await field.fill("7")
        await page.get_by_role("button", name="Set pace").click()
        await expect(page.locator("#toasts")).to_contain_text("Pace of typed: 5 → 7 rows/s.")
        await expect(note).to_have_text("")
        await site.client.pace("typed", rows_per_second=8)
        await expect(field).to_have_value("8")  # nothing is typed: it follows
    await site.client.pace("typed", rows_per_second=None)
    await run.result(timeout=60)


async def test_failed_run_shows_why_and_its_rows_are_set_right(site: PageSite) -> None:
    async with site.database.session() as session:
        await session.execute(text("UPDATE author SET nickname = 'bad ' || id WHERE id IN (7, 130, 390)"))
        await session.commit()
    await (await site.client.enqueue(picky_walk.options(id="picky"))).result(timeout=60)
    async with site.open("/") as page:
        await page.get_by_role("link", name="Rows in quarantine").click()
        await expect(page.locator("[data-row]")).to_have_count(3)
        await page.goto(f"{site.url}/page/runs?search=picky")
        await page.get_by_role("link", name="3 rows in quarantine").click()
        await page.get_by_role("link", name="picky", exact=True).click()
        await expect(page.locator(".big")).to_have_text("succeeded · 3 rows in quarantine")
        await expect(page.locator(".events")).to_contain_text("It succeeded; 3 rows in quarantine.")
        rows = page.locator("#region-quarantine tbody tr")
        await expect(rows).to_have_count(3)
        await expect(rows.first).to_contain_text("author 390 has a bad nickname")
        await site.check(page)
        await expect(page.get_by_role("button", name="Discard selected", exact=True)).to_be_disabled()
        await rows.nth(0).get_by_role("checkbox").check()
        await page.get_by_role("button", name="Discard selected", exact=True).click()
        await expect(rows).to_have_count(2)

        async with site.database.session() as session:
            await session.execute(text("UPDATE author SET nickname = NULL"))
            await session.commit()
        await rows.filter(has_text="author 130").get_by_role("checkbox").check()
        await page.get_by_role("button", name="Process selected again", exact=True).click()
        await expect(rows).to_have_count(1)
        await expect(rows.first).to_contain_text("author 7 has")
        await page.get_by_role("button", name="Process it again", exact=True).click()
        await expect(page.locator("#toasts")).to_contain_text("1 row is processed again by picky:retry:")
        await expect(rows).to_have_count(0)
        await expect(page.locator("#region-head")).to_contain_text("are processed again by picky:retry:")
        await page.locator("#toasts a").last.click()
        await expect(page.locator("#region-head")).to_contain_text("processes rows in quarantine of picky")
        await expect(page.locator("#region-arguments")).to_contain_text("It has none")
        await expect(page.locator("#region-steps")).not_to_contain_text("rows in all")  # it has ended
    async with site.database.session() as session:
        behind = await session.scalars(select(Author.id).where(Author.seen < await _most_seen(site)))
        assert behind.all() == [390], "only the row that was discarded is not done"


async def _most_seen(site: PageSite) -> int:
    return (await _seen(site))[1]


async def test_hostile_texts_are_shown_and_do_nothing(site: PageSite) -> None:
    run = await site.client.enqueue(brittle.options(id=HOSTILE_ID), text=HOSTILE)
    with pytest.raises(JobFailed):
        await run.result(timeout=60)
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").replace("\u200b", "\\u200b")
    async with site.open("/") as page:
        failures = page.locator("#region-failures")
        await expect(failures).to_contain_text(shown)
        await expect(failures).to_contain_text(HOSTILE_ID)
        await site.check(page)
        await page.locator(".totals div", has_text="Failed in 24 h").click(position={"x": 3, "y": 3})
        await expect(page).to_have_title("Dead letters · Longhaul")
        await page.goto(f"{site.url}/page/runs?state=dead&job=brittle")
        await expect(page.locator("[data-letters]")).to_contain_text("1 run before these filters")
        await page.locator("[data-letters] a").click()
        await expect(page.locator("[data-row]")).to_have_count(1)
        assert page.url.endswith("/page/dead-letters?job=brittle")
        await page.goto(site.url)
        await failures.get_by_role("link", name=HOSTILE_ID).click()
        await expect(page.locator("h1")).to_have_text(HOSTILE_ID)
        for region in ("outcome", "arguments", "story"):
            await expect(page.locator(f"#region-{region}")).to_contain_text(shown)
        regions = await page.locator("[data-region]").evaluate_all("all => all.map((one) => one.id)")
        assert regions.index("region-outcome") < regions.index("region-story"), "the failure comes first"
        assert await page.locator("main img, main script").count() == 0
        commands = page.locator("#region-orders .commands code")
        assert await commands.first.text_content() == f"worker retry {_quoted(HOSTILE_ID)}"
        await site.check(page)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


async def test_the_jobs_that_an_error_names_are_links(site: PageSite) -> None:
    error = "run picky_walk or slow_walk first, not brittle, nightly, gone_walk or picky_walking"
    run = await site.client.enqueue(brittle.options(id="names"), text=error)
    with pytest.raises(JobFailed):
        await run.result(timeout=60)
    async with site.open("/page/runs/names") as page:
        named = page.locator("[data-named] a")
        await expect(named).to_have_text(["picky_walk", "slow_walk"])
        await named.first.click()
        await expect(page.locator("h1")).to_have_text("picky_walk")


async def test_page_is_read_without_scripts_and_gives_orders(site: PageSite) -> None:
    await site.client.enqueue(nightly.options(id="later", delay=3600))
    await until(lambda: site.redis.hexists(keys.WORKERS, "north"))  # this page is not updated
    async with site.open("/", java_script_enabled=False) as page:
        await expect(page.locator("#region-coming")).to_contain_text("later")
        await expect(page.locator("#region-workers")).to_contain_text("north")
        await expect(page.locator("#region-cron")).to_contain_text("nightly")
        await page.get_by_role("link", name="later", exact=True).first.click()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator(".note")).to_have_text("Paused later.")
        await expect(page.locator(".big .state")).to_have_text("paused")
        await page.get_by_role("button", name="Cancel…").click()
        await page.get_by_role("button", name="Cancel the run").click()
        await expect(page.locator(".note")).to_have_text("Cancelled later.")
        await page.goto(f"{site.url}/page/cron")
        await page.get_by_role("button", name="Run now nightly", exact=True).click()
        await expect(page.locator(".note")).to_contain_text("Enqueued cron:nightly:by-hand:")
        run_id = await page.locator(".note a").inner_text()
        await page.locator(".note a").click()
        await expect(page.locator("h1")).to_have_text(run_id)
        await page.goto(f"{site.url}/page/jobs/nightly")
        await page.get_by_role("button", name="Pause the job", exact=True).click()
        await expect(page.locator(".note a")).to_have_attribute("href", "/page/jobs/nightly")
        await page.get_by_role("button", name="Resume the job", exact=True).click()
        await expect(page.locator(".note")).to_have_text("Resumed nightly.")


async def test_keys_search_move_select_and_open(site: PageSite) -> None:
    for number in range(3):
        await (await site.client.enqueue(slow_walk.options(id=f"key-{number}"), size=400)).result(timeout=60)
    async with site.open("/page/runs?search=key-") as page:
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog", name="Keys")).to_contain_text("next and previous row")
        await site.check(page)
        await page.keyboard.press("Escape")
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        await page.keyboard.press("x")
        await expect(page.locator("[data-picked]")).to_have_text("1 selected")
        await page.keyboard.press("k")
        await expect(page.locator(":focus")).to_have_text("key-2")
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_have_text("key-2")
        await page.keyboard.press("g")
        await page.keyboard.press("o")
        await expect(page).to_have_title("Overview · Longhaul")
        await page.keyboard.press("?")
        keys_ = page.get_by_role("dialog", name="Keys")
        await expect(keys_).to_contain_text("this list")
        await expect(keys_).to_contain_text("search runs")  # this view has no field of its own
        await page.keyboard.press("Escape")
        await page.keyboard.press("/")
        await expect(page).to_have_title("Runs · Longhaul")
        await expect(page.locator("[data-search]")).to_be_focused()
        await page.keyboard.type("key-1")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await site.check(page)


async def test_page_that_loses_its_server_says_so_and_recovers(site: PageSite) -> None:
    async with site.context() as context:
        page = await context.new_page()
        app = web_app(site.settings, jobs=[])
        async with serving(site.settings, app) as url:
            await page.goto(url)
            await expect(page.locator("[data-link]")).to_have_text("Live")
        await expect(page.locator("#stale")).to_contain_text("The connection is lost. Figures are those of")
        await expect(page.locator("[data-link]")).to_have_text("Old")
        await app.close()
        again = web_app(site.settings, jobs=[])
        async with serving(with_web(site.settings, port=int(url.rpartition(":")[2])), again):
            await expect(page.locator("[data-link]")).to_have_text("Live")
            await expect(page.locator("#stale")).to_be_hidden()
        await again.close()
