"""`worker top`: the page with real keys and a live worker, one frame as text, and the cost of a frame."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import selectors
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
import typer
from redis.asyncio import Redis
from sqlalchemy import select
from textual.pilot import Pilot
from textual.widgets import Static

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, NonRetryableError, Settings, job
from worker.arq_compat import Worker
from worker.cli.top.app import Page
from worker.cli.top.command import top
from worker.cli.top.dialogs import Details, Question
from worker.cli.top.format import bar, duration, per_second, plain
from worker.cli.top.frame_builder import Rates
from worker.cli.top.layout import fit, heights, line, natural
from worker.cli.top.reader import LETTERS, MIRRORS, Reader
from worker.cli.top.tables import Cell, Column, Name, Row, Sheet
from worker.db.engine import Database
from worker.embedded import Services
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.errors import ServerUnavailable
from worker.queue import keys

cured = {"yes": False}
gate: dict[str, asyncio.Event] = {}


@job
async def index_names(ctx: JobContext) -> int:
    """Walk the authors."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job
async def send_mail(ctx: JobContext, to: str) -> str:
    """Fail permanently for bob, until the cause is removed."""
    if to == "bob" and not cured["yes"]:
        raise NonRetryableError("bob has moved\x1b[2J")
    return f"sent to {to}"


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
            await (await client.enqueue(send_mail.options(id="mail-1"), to="bob")).result(timeout=60)
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
        await run.result(timeout=60)
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
    assert await scene.client.run("night").result(timeout=60) == 1000


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
    assert await scene.client.run("mail-1").result(timeout=60) == "sent to bob"

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


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let commands of this process use another Redis."""
    yield lambda url: monkeypatch.setenv("REDIS_URL", url)


def test_without_a_terminal_one_frame_is_printed(
    at: Callable[[str], None], servers: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    at(servers.redis_url)
    top(every=0.1, once=False)
    assert re.search(r"^workers · \d+$", capsys.readouterr().out, re.MULTILINE)


def test_one_frame_without_redis_is_an_error(at: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    at("redis://127.0.0.1:1/0")
    with pytest.raises(ServerUnavailable, match="start Redis there, or set REDIS_URL"):
        top(every=0.1, once=True)
    assert capsys.readouterr().out == ""


def test_without_textual_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with pytest.raises(typer.Exit) as ended:
        top(every=0.1, once=False)
    assert ended.value.exit_code == 2
    assert "pip install 'longhaul-worker[top]'" in capsys.readouterr().err


# --- as a process


class Terminal:
    """A process with a terminal of its own, 100 by 30."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._side, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = environment | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
        os.close(other)
        self.written = ""
        self._readable = selectors.SelectSelector()
        self._readable.register(self._side, selectors.EVENT_READ)

    def read_until(self, text: str) -> None:
        """Read until a text has come; raise `TimeoutError` after a minute without it."""
        ends_at = time.monotonic() + 60
        while text not in self.written:
            left = ends_at - time.monotonic()
            if left <= 0 or not self._readable.select(left):
                raise TimeoutError(f"{text!r} has not come: {self.written[-2_000:]!r}")
            self.written += os.read(self._side, 65_536).decode(errors="replace")

    def press(self, key: str) -> None:
        """Send a key."""
        os.write(self._side, key.encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        try:
            while chunk := os.read(self._side, 65_536):
                self.written += chunk.decode(errors="replace")
        except OSError:
            pass  # the other side is closed: EIO on Linux
        os.close(self._side)
        return self.process.wait(timeout=30)


async def test_the_page_runs_in_a_terminal_until_q(servers: Services, redis: Redis) -> None:
    await redis.zadd("arq:queue", {"waits": 1})
    terminal = Terminal([sys.executable, "-m", "worker", "top", "--every", "0.2"], servers.environment())

    def use() -> int:
        terminal.read_until("1 waiting")
        terminal.press("q")
        return terminal.end()

    async with asyncio.timeout(60):
        assert await asyncio.to_thread(use) == 0
    assert "slots in use" in terminal.written
    assert terminal.written.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in terminal.written  # left as it was


def test_no_other_command_waits_for_textual() -> None:
    code = "import sys, worker.cli; print([name for name in sys.modules if 'textual' in name])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# --- cost of a frame


async def test_a_look_is_bounded_whatever_there_is(client: Client, redis: Redis, settings: Settings) -> None:
    now = datetime.now(UTC)
    told = {"pid": 1, "host": "h", "queue": "arq:queue", "state": "running", "max_jobs": 20, "done": 1}
    told |= {"started_at": now.isoformat(), "seen_at": (now + timedelta(hours=1)).isoformat()}
    letter = {"job": "a", "queue": "arq:queue", "payload": "{}", "error": "no", "at": now.isoformat(), "attempts": 1}
    pipeline = redis.pipeline(transaction=False)
    for worker in range(50):
        ids = [f"run-{worker}-{number}" for number in range(20)]
        pipeline.hset(keys.WORKERS, f"worker-{worker}", json.dumps(told | {"jobs": ids}))
        for place, run_id in enumerate(ids):
            mirror = {"job": f"job_{place}", "state": "running", "queue": "arq:queue", "started_at": now.isoformat()}
            pipeline.hset(keys.RUN + run_id, mapping=mirror | {"rows": 7})
            pipeline.zadd("arq:queue", {run_id: (time.time() + 60) * 1000})
    for first in range(0, 10_000, 500):
        part = range(first, first + 500)
        pipeline.hset(keys.DEAD, mapping={f"dead-{i}": json.dumps(letter | {"traceback": "x" * 500}) for i in part})
        pipeline.zadd(keys.DEAD_AT, {f"dead-{i}": i for i in part})
        pipeline.zadd("arq:queue", {f"waits-{i}": i for i in part})
    await pipeline.execute()
    reader = Reader(client, settings)
    frame = await reader.read()
    assert (frame.trips, frame.running, frame.failed, len(frame.runs)) == (2, 1000, 10_000, 1000)
    assert [letter.id for letter in frame.failures] == [f"dead-{9_999 - place}" for place in range(LETTERS)]
    on_screen = [f"run-49-{number}" for number in range(20)]
    await redis.config_resetstat()
    looks, commands = 5, 0
    for _ in range(looks):
        frame = await reader.read(on_screen)
        assert frame.trips == 1
        commands += frame.commands
    stats = {name.removeprefix("cmdstat_"): one["calls"] for name, one in (await redis.info("commandstats")).items()}
    asked = sum(stats.values()) - stats.pop("config|resetstat", 0)
    assert asked == commands
    assert frame.commands <= MIRRORS + 80
    assert not stats.keys() & {"hgetall", "smembers", "keys", "hvals", "hkeys"}
    assert stats["hmget"] == looks * MIRRORS  # mirrors; no letter is read twice
    assert (await redis.info("stats"))["total_net_output_bytes"] < looks * 150_000
    # The runs on the screen each time, the others in rotation.
    await redis.hset(keys.RUN + on_screen[0], "rows", 8)
    await redis.hset(keys.RUN + "run-3-3", "rows", 8)
    assert rows_of(await reader.read(on_screen), on_screen[0]) == 8
    for _ in range(6):
        frame = await reader.read(on_screen)
    assert rows_of(frame, "run-3-3") == 8
    assert all(run.job for run in frame.runs)


def rows_of(frame: Any, run_id: str) -> int | None:
    """Return the rows of a run."""
    return next(run.rows for run in frame.runs if run.id == run_id)


async def test_a_run_whose_worker_is_silent_is_lost_and_one_that_has_ended_is_gone(
    client: Client, redis: Redis, settings: Settings
) -> None:
    now = datetime.now(UTC)
    told = {"pid": 1, "host": "h", "queue": "arq:queue", "state": "running", "max_jobs": 2, "done": 1}
    told |= {"jobs": ["one", "two"], "started_at": now.isoformat()}
    await redis.hset(keys.WORKERS, "north", json.dumps(told | {"seen_at": now.isoformat()}))
    for run_id in ("one", "two"):
        await redis.hset(keys.RUN + run_id, mapping={"job": "a", "state": "running", "worker": "north"})
    await redis.hset(keys.RUN + "two", "stalled_since", (now - timedelta(minutes=10)).isoformat())
    reader = Reader(client, settings)
    states = {run.id: (run.state, run.reason) for run in (await reader.read()).runs}
    assert states == {"one": ("running", ""), "two": ("stalled", "no progress for 10 min")}
    silent = (now - timedelta(seconds=11)).isoformat()
    await redis.hset(keys.WORKERS, "north", json.dumps(told | {"seen_at": silent}))
    await redis.hset(keys.RUN + "two", "state", "succeeded")
    frame = await reader.read()
    assert {run.id: run.state for run in frame.runs} == {"one": "lost"}
    assert [(worker.name, worker.state) for worker in frame.workers] == [("north", "lost")]
    assert frame.running == 0


def test_rates_are_over_a_window_and_begin_anew_with_other_data() -> None:
    rates = Rates()
    rates.add(100.0, {("a", "succeeded"): 5})
    assert rates.rate("succeeded") is None
    for second in range(1, 31):
        rates.add(100.0 + second, {("a", "succeeded"): 5 + (second if second > 20 else 0), ("a", "dead"): 1})
    assert rates.rate("succeeded", "a") == pytest.approx(3.0)  # 30 in the last 10 s
    assert rates.rate("dead") == 0
    assert rates.rate("succeeded", "b") == 0
    rates.add(131.0, {("a", "succeeded"): 1})
    assert rates.rate("succeeded") is None


def test_columns_fit_into_what_there_is() -> None:
    columns = (Column("run", soft=True), Column("rows/s", right=True), Column("age", rank=1), Column("state"))
    row = Row("x", (Cell("a-very-long-id-of-a-run"), Cell("7"), Cell("12 min"), Cell("running")))
    sheet = Sheet("runs", "", columns, [row])
    assert fit(sheet, natural(sheet), 60) == [23, 6, 6, 19]
    assert fit(sheet, natural(sheet), 40) == [23, 6, 0, 7]
    widths = fit(sheet, natural(sheet), 32)
    assert widths == [15, 6, 0, 7]
    assert [piece.text for piece in line(sheet, row.cells, widths)] == ["a-very-long-id…  ", "     7  ", "running  "]


def test_bands_share_the_page_and_the_focused_one_has_more() -> None:
    wanted = {"top": 7, "runs": 1003, "middle": 60, "bottom": 90}
    assert heights(50, wanted, "runs") == {"top": 7, "runs": 21, "middle": 11, "bottom": 11}
    assert heights(50, wanted, "bottom") == {"top": 7, "runs": 5, "middle": 11, "bottom": 27}
    assert sum(heights(19, wanted, "middle").values()) == 19
    assert min(heights(19, wanted, "middle").values()) >= 4


def test_words_are_short() -> None:
    assert [duration(one) for one in (None, 0.4, 89, 754, 12_000, 187_200)] == [
        *("", "0 s", "89 s", "13 min", "3 h 20 min", "2 d 4 h")
    ]
    assert [per_second(one) for one in (None, 0, 0.04, 3.5, 9208.2)] == ["", "0", "0.04", "3.5", "9,208"]
    assert (bar(38, 10), bar(0, 4), bar(100, 4), bar(250, 4)) == ("███▊······", "····", "████", "████")
    assert plain("a\x1b[2J\nb") == "a [2J b"
