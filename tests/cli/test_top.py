"""`worker top`: the page with real keys and a live worker, one frame as text, and the cost of a frame."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from textual.pilot import Pilot
from textual.widgets import Static

from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.mail_jobs import cured, index_names, send_mail
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.arq_compat import Worker
from worker.cli.top.app import Page
from worker.cli.top.dialogs import Details, Question
from worker.cli.top.format import per_second
from worker.cli.top.tables import Name
from worker.db.engine import Database
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.queue import keys

gate: dict[str, asyncio.Event] = {}


@job(concurrency=1)
async def export(ctx: JobContext) -> None:
    """Hold the only slot until the test ends."""
    await gate["go"].wait()


@dataclass
class Scene:
    """A worker with a slow walk; its page."""

    worker: Worker
    redis: Redis
    client: Client
    page: Page
    pilot: Pilot[None]

    def rows(self, name: Name) -> dict[str, dict[str, str]]:
        """Return the content of a table, by the key of a row and the title of a column."""
        grid = self.page.query_one(f"#{name}")
        titles = [column.title for column in grid._sheet.columns]  # type: ignore[attr-defined]
        return {
            row.key: dict(zip(titles, (cell.text for cell in row.cells), strict=True))
            for row in grid.rows  # type: ignore[attr-defined]
        }

    async def has(self, name: Name, key: str, **wanted: str) -> dict[str, str]:
        """Wait until a row has these texts."""
        names = {title.replace("_", "/"): text for title, text in wanted.items()}

        async def look() -> dict[str, str]:
            row = self.rows(name).get(key, {})
            return row if all(row.get(title) == text for title, text in names.items()) else {}

        return await until(look)

    async def select(self, name: Name, key: str) -> None:
        """Go to a row with tab and the arrows."""
        for _ in range(8):
            if self.page.focused is self.page.query_one(f"#{name}"):
                break
            await self.pilot.press("tab")
        assert self.page.focused is not None
        assert self.page.focused.id == name
        await self.pilot.press("home")
        for _ in range(20):
            if self.page.focused.selected == key:  # type: ignore[attr-defined]
                return
            await self.pilot.press("down")
        raise AssertionError(f"no row {key} in {name}: {list(self.rows(name))}")

    def text(self, where: str) -> str:
        """Return the text of a line of the page."""
        return str(self.page.query_one(f"#{where}", Static).content)

    async def told(self, text: str) -> None:
        """Wait until the page has shown a message."""

        async def said() -> bool:
            return text in self.text("message")

        await until(said)

    async def state_is(self, run_id: str, state: str) -> None:
        """Wait until the mirror has this state."""
        wanted = state.encode()

        async def look() -> bool:
            return bool(await self.redis.hget(keys.RUN + run_id, "state") == wanted)

        await until(look)


@pytest_asyncio.fixture
async def scene(database: Database, client: Client, redis: Redis, fast: Settings) -> AsyncIterator[Scene]:
    """Three slots; a slow walk, a run that holds the slot of its job, one that waits for it, and a dead letter."""
    cured["yes"] = False
    gate["go"] = asyncio.Event()
    await fill_authors(database, 1000)
    await redis.hset(keys.PACE, "index_names", "20")
    settings = with_worker(fast, name="north", max_jobs=3)
    async with working(settings, index_names, send_mail, export) as worker:
        await client.enqueue(index_names.options(id="night"))
        with pytest.raises(JobFailed):
            await (await client.enqueue(send_mail.options(id="mail-1"), to="bob")).result(timeout=120)
        await client.enqueue(send_mail.options(id="mail-2", delay=3600), to="anne")
        await client.enqueue(export.options(id="export-1"))
        await until(lambda: redis.zscore(keys.LIMIT + "export", "export-1"))
        await client.enqueue(export.options(id="export-2"))
        await until(lambda: redis.zscore(keys.HELD + "export", "export-2"))
        page = Page(client, settings, every=0.1)
        async with page.run_test(size=(160, 50)) as pilot:
            here = Scene(worker, redis, client, page, pilot)
            await here.has("runs", "night")
            yield here
        gate["go"].set()
        await client.run("night").cancel()


async def test_the_tables_show_what_is(scene: Scene) -> None:
    await scene.has("queues", "arq:queue", waiting="0", deferred="2", running="2")
    night = await scene.has("runs", "night", job="index_names", worker="north", state="throttled")
    assert re.fullmatch(r"[█▏▎▍▌▋▊▉]?·+ ~? *\d+ %", night["progress"])
    assert "rows" in night[""]
    mirror = await scene.redis.hget(keys.RUN + "night", "rows")
    assert 0 < int(night["rows"]) <= int(mirror)
    assert night["left"]
    assert (night["attempt"], re.fullmatch(r"\d+ s", night["age"]) is not None) == ("1", True)
    assert (await scene.has("runs", "export-1", state="running"))["progress"] == ""
    assert (await scene.has("runs", "export-2", state="waiting"))[""] == "for a place: no more of export at once"
    assert scene.rows("holds").keys() == {"pace index_names", "limit export"}
    held = scene.rows("holds")["limit export"]["what"]
    assert re.fullmatch(r"1 running, the limit, 1 wait, the first for \d+ s", held)
    assert scene.rows("holds")["pace index_names"]["what"] == "20 rows/s by command, job"
    north = await scene.has("workers", "north", slots="███▍· 2 of 3", state="running")
    assert north["pid"] == str(os.getpid())
    assert re.fullmatch(r"[0-3] s ago", north["seen"])
    assert scene.rows("failures")["mail-1"]["error"] == "NonRetryableError: bob has moved [2J"  # no terminal obeys it
    assert scene.rows("jobs")["send_mail"]["failed"] == "1"
    head = scene.text("header")
    assert "2 of 3 slots in use" in head
    assert "0 waiting · 2 deferred · 1 workers · 1 dead letters" in head
    assert "Valkey" in head or "Redis" in head

    # The rates are those of the last seconds.
    for run in await scene.client.enqueue_many(send_mail, [{"to": "anne"}] * 30):
        await run.result(timeout=120)
    await scene.has("jobs", "send_mail", done="30")
    began = time.monotonic()

    async def counted() -> bool:
        rate = scene.page.frame.done_rate
        return bool(rate)

    await until(counted)
    assert time.monotonic() - began < 10
    rate = float(scene.rows("jobs")["send_mail"]["done/s"])
    assert 30 / 12 <= rate <= 30 / 0.1
    assert f"{per_second(scene.page.frame.done_rate)} done/s" in scene.text("header")


async def test_a_run_or_a_queue_is_paused_and_resumed(scene: Scene) -> None:
    paused: tuple[tuple[Name, str, str], ...] = (("runs", "night", "the run"), ("queues", "arq:queue", "its queue"))
    for table, name, why in paused:
        await scene.select(table, name)
        await scene.pilot.press("p")
        await scene.told(f"paused: {name}")
        await scene.state_is("night", "paused")
        assert (await scene.has("runs", "night", state="paused"))[""] == f"{why} is paused"
        assert await scene.redis.smembers(keys.PAUSED) == {name.encode()}
        await scene.select(table, name)
        await scene.pilot.press("r")
        await scene.told(f"resumed: {name}")
        await scene.state_is("night", "running")
        assert await scene.redis.exists(keys.PAUSED) == 0


async def test_a_job_is_paused_and_orders_are_taken_back_where_they_hold_something_back(scene: Scene) -> None:
    await scene.has("jobs", "index_names")
    await scene.select("jobs", "index_names")
    await scene.pilot.press("p")
    await scene.told("paused: index_names")
    assert await scene.redis.smembers(keys.PAUSED) == {b"index_names"}
    await scene.has("runs", "night", state="paused")
    await scene.select("runs", "night")
    await scene.pilot.press("r")
    await scene.told("not paused: night (its job is paused: resume that)")
    await scene.has("holds", "pause index_names", what="job paused by command")
    await scene.select("holds", "pause index_names")
    await scene.pilot.press("r")
    await scene.told("resumed: index_names")
    assert await scene.redis.exists(keys.PAUSED) == 0
    await scene.select("holds", "limit export")
    await scene.pilot.press("r")
    await scene.told("is neither a pause nor a pace")
    await scene.select("holds", "pace index_names")
    await scene.pilot.press("r")
    await scene.told("pace of index_names: as settings and job set it")
    assert await scene.client.run("night").result(timeout=120) == 1000


async def test_a_run_is_cancelled_when_that_was_confirmed(scene: Scene) -> None:
    await scene.select("runs", "night")
    await scene.pilot.press("c")
    assert isinstance(scene.page.screen, Question)
    await scene.pilot.press("n")
    await scene.told("nothing was changed")
    assert await scene.redis.exists(keys.CANCELLED) == 0
    await scene.pilot.press("c")
    await scene.pilot.press("y")
    await scene.told("cancelled: night")
    await scene.state_is("night", "cancelled")

    async def gone() -> bool:
        return "night" not in scene.rows("runs")

    await until(gone)
    await scene.has("jobs", "index_names", cancelled="1")


async def test_a_dead_letter_is_shown_and_retried(scene: Scene) -> None:
    await scene.select("failures", "mail-1")

    async def shown() -> bool:
        return 'arguments: {"to": "bob"}' in scene.text("letter_text")

    await until(shown)
    assert "NonRetryableError: bob has moved [2J" in scene.text("letter_text")
    await scene.pilot.press("enter")
    details = scene.page.screen
    assert isinstance(details, Details)
    assert "Traceback (most recent call last)" in details.text.plain
    assert 'raise NonRetryableError("bob has moved' in details.text.plain
    await scene.pilot.press("escape")
    cured["yes"] = True
    await scene.pilot.press("t")
    await scene.told("enqueued again: mail-1")
    assert await scene.client.run("mail-1").result(timeout=120) == "sent to bob"

    async def gone() -> bool:
        return not scene.rows("failures")

    await until(gone)


async def test_a_worker_is_drained_when_that_was_confirmed(scene: Scene) -> None:
    gate["go"].set()
    await scene.select("workers", "north")
    await scene.pilot.press("d")
    assert isinstance(scene.page.screen, Question)
    await scene.pilot.press("escape")
    await scene.told("nothing was changed")
    assert await scene.redis.exists(keys.DRAINED) == 0
    await scene.pilot.press("d", "y")
    await scene.told("draining: north")

    async def ended() -> bool:
        return not await scene.redis.hexists(keys.WORKERS, "north") and not scene.rows("workers")

    await until(ended)
    assert scene.worker.is_draining
    assert await scene.redis.exists(keys.DRAINED) == 0


async def test_a_filter_holds_until_escape_enter_shows_more_and_the_keys_are_told(scene: Scene) -> None:
    await scene.has("failures", "mail-1")
    await scene.pilot.press("slash", *"nighT")
    await until(lambda: _is(lambda: scene.rows("runs").keys() == {"night"} and not scene.rows("failures")))
    await scene.pilot.press("enter")
    assert scene.page.focused is scene.page.query_one("#runs")
    await scene.pilot.press("escape")
    assert "export-1" in scene.rows("runs")
    assert "mail-1" in scene.rows("failures")

    await scene.select("runs", "night")
    await scene.pilot.press("enter")
    await until(lambda: _is(lambda: isinstance(scene.page.screen, Details)))
    details = scene.page.screen
    assert isinstance(details, Details)
    assert re.search(r"^step +1-chunks$", details.text.plain, re.MULTILINE)
    await scene.pilot.press("escape")
    await scene.pilot.press("question_mark")
    assert "drain the selected worker" in scene.page.screen.text.plain  # type: ignore[attr-defined]
    await scene.pilot.press("escape")
    offered = {one.binding.description for one in scene.page.screen.active_bindings.values()}
    assert {"pause", "resume", "cancel", "quit"} <= offered
    assert not {"retry", "drain"} & offered  # those are for other tables
    await scene.pilot.press("q")
    await until(lambda: _is(lambda: not scene.page.is_running))
    assert scene.page.return_code == 0


async def _is(look: Any) -> bool:
    return bool(look())


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server that the test may stop."""
    server = EmbeddedValkey(make_home())
    server.start()
    yield server
    server.stop()


async def test_without_redis_the_page_stays_and_says_so_until_it_is_back(
    own_valkey: EmbeddedValkey, settings: Settings
) -> None:
    there = settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": own_valkey.url})})
    async with Client(there) as client:
        await client.enqueue_by_name("a", id="one", delay=60)
        page = Page(client, there, every=0.1)
        async with page.run_test(size=(120, 40)) as pilot:
            queues = page.query_one("#queues")

            def deferred() -> str:
                return (queues.render_line(1).text.split() + [""] * 3)[2]  # type: ignore[attr-defined]

            await until(lambda: _is(lambda: deferred() == "1"))
            own_valkey.stop()
            await until(
                lambda: _is(lambda: "has not answered since" in str(page.query_one("#header", Static).content)), 20
            )
            assert deferred() == "1"
            await pilot.press("p")  # an order, too, is answered
            await pilot.press("tab", "tab", "tab", "tab", "p")
            await until(lambda: _is(lambda: "start Redis there" in str(page.query_one("#message", Static).content)))
            own_valkey.start()
            await until(lambda: _is(lambda: page.problem is None))
            assert "has not answered" not in str(page.query_one("#header", Static).content)
            await client.enqueue_by_name("a", id="two", delay=60)
            await client.enqueue_by_name("a", id="three", delay=60)
            await until(lambda: _is(lambda: deferred() == "2"))


# --- one frame as text


async def test_one_frame_is_text_without_secrets(cli: CommandLine, scene: Scene, fast: Settings) -> None:
    await scene.redis.acl_setuser("ops", enabled=True, passwords=["+hunter2"], commands=["+@all"], keys=["*"])
    url = fast.redis.url.replace("redis://", "redis://ops:hunter2@")
    await scene.redis.mset({f"other:{number}": 1 for number in range(3000)})  # limits are not found by luck
    walked = re.compile(r"^  night +index_names +.+ %  .* north +(running|throttled)", re.MULTILINE)

    async def shows_the_walk() -> Any:
        ran = await cli("top", "--once", "--every", "0.2", REDIS_URL=url)
        return ran if walked.search(ran.stdout) else None  # the mirror is written behind the walk

    ran = await until(shows_the_walk)
    await scene.redis.acl_deluser("ops")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\x1b" not in ran.stdout
    assert re.search(r"^  arq:queue +0 +2 +2$", ran.stdout, re.MULTILINE)
    assert re.search(r"^  limit +export +1 running, the limit, 1 wait", ran.stdout, re.MULTILINE)
    assert re.search(r"mail-1 +send_mail +1  NonRetryableError: bob has moved \[2J$", ran.stdout, re.MULTILINE)
    assert re.search(r"^\d\S* done/s · 0 failed/s", ran.stdout, re.MULTILINE)
    assert "hunter2" not in ran.stdout
    assert "redis://ops:***@" in ran.stdout
