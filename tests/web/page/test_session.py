"""Sessions, rights, headers and static files of the page, and one renderer for many pages."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from demo.page_server import serving
from tests.support.waiting import until_true
from tests.support.workers import with_web
from tests.web.conftest import connect
from tests.web.page.jobs import brittle, nightly
from worker import Client, Settings
from worker.db.engine import Database
from worker.queue import keys
from worker.web import WebApp, web_app
from worker.web.page.assets import FOLDER
from worker.web.tokens import TokenFile

JOBS = (brittle, nightly)
_MOST_BYTES = 100_000


@asynccontextmanager
async def app_with_tokens(settings: Settings, file: Path) -> AsyncIterator[WebApp]:
    """The application with a file of tokens."""
    app = web_app(with_web(settings, tokens_file=str(file), refresh_seconds=0.001), jobs=JOBS)
    yield app
    await app.close()


async def log_in(http: httpx.AsyncClient, token: str) -> httpx.Response:
    """Log in by a token."""
    return await http.post("/page/login", data={"token": token, "next": "/page/runs?state=dead"})


def csrf_in(html: str) -> str:
    """Return the CSRF token of a page."""
    found = re.search(r'name="csrf" content="([0-9a-f]+)"', html)
    assert found is not None
    return found[1]


async def test_a_token_opens_a_session_with_its_rights(
    settings: Settings, database: Database, client: Client, redis: Redis, tmp_path: Path
) -> None:
    file = TokenFile(tmp_path / "tokens.toml")
    reader, operator = file.create("eve", ["read"]), file.create("ada", ["read", "operate"])
    await client.enqueue(nightly.options(id="n", delay=3600))
    async with app_with_tokens(settings, file.path) as app, connect(app) as http:
        asked = await http.get("/page/runs?state=dead")
        assert (asked.status_code, asked.headers["location"]) == (303, "/page/login?next=%2Fpage%2Fruns%3Fstate%3Ddead")
        assert (await log_in(http, "lh_wrong")).status_code == 401
        opened = await log_in(http, reader)
        assert (opened.status_code, opened.headers["location"]) == (303, "/page/runs?state=dead")
        cookie = opened.headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/", "max-age=604800"))
        assert reader not in cookie

        page = (await http.get("/page/runs/n")).text
        assert "data-order" not in page
        assert "Pause" not in page
        order = {"csrf": csrf_in(page), "targets": "n", "back": "/"}
        refused = await http.post("/page/orders/pause", data=order)
        assert refused.status_code == 403, "a reader gives no orders, whatever it sends"

        async with connect(app) as other:
            await log_in(other, operator)
            page = (await other.get("/page/runs/n")).text
            for wrong in ("", order["csrf"]):  # none, and that of another session
                assert (await other.post("/page/orders/pause", data=order | {"csrf": wrong})).status_code == 403
            order["csrf"] = csrf_in(page)
            foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
            assert (await other.post("/page/orders/pause", data=order, headers=foreign)).status_code == 403
            assert await redis.exists(keys.PAUSED) == 0
            given = await other.post("/page/orders/pause", data=order | {"back": "//evil.example/"})
            assert (given.status_code, given.headers["location"]) == (303, "/")
            assert await redis.smembers(keys.PAUSED) == {b"n"}
            assert (await redis.xrevrange(keys.ORDERS, count=1))[0][1][b"by"] == b"web:ada"

            again = await other.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
            assert 'http-equiv="refresh" content="0;url=/"' in again.text, "a link of another site sends no cookie"
            api = await other.get("/runs")
            assert api.status_code == 401, "a session is for the page alone"

        async with app_with_tokens(settings, file.path) as after_restart, connect(after_restart) as same:
            same.cookies = http.cookies
            assert (await same.get("/")).status_code == 200
            file.revoke("eve")
            app._access.file._seen = after_restart._access.file._seen = None  # type: ignore[union-attr]
            assert (await same.get("/")).status_code == 303
        assert (file.path.parent / "tokens.toml.key").stat().st_mode & 0o777 == 0o600


async def test_pages_have_a_strict_policy_and_small_files(settings: Settings, database: Database, redis: Redis) -> None:
    sizes = [path.stat().st_size for path in FOLDER.iterdir() if path.suffix in (".css", ".js")]
    assert len(sizes) > 5
    assert sum(sizes) < _MOST_BYTES, "the whole of CSS and JavaScript, uncompressed"
    app = web_app(settings, jobs=JOBS)
    async with connect(app) as http:
        for path, status in (("/", 200), ("/page/runs", 200), ("/page/nothing", 404), ("/page/runs/none", 404)):
            response = await http.get(path)
            assert (response.status_code, response.headers["content-type"]) == (status, "text/html; charset=utf-8")
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", response.text)
        style = re.search(r'href="(/page/static/[^"]+/style.css)"', (await http.get("/")).text)
        assert style is not None
        first = await http.get(style[1])
        assert "immutable" in first.headers["cache-control"]
        assert (await http.get(style[1], headers={"If-None-Match": first.headers["etag"]})).status_code == 304
        assert (await http.get("/page/static/old/style.css")).headers["cache-control"] == "no-cache"
        assert (await http.get("/page/static/x/..%2Fviews.py")).status_code == 404
        assert (await http.get("/page/runs?state=wrong")).status_code == 422
        foreign = await http.get("/", headers={"Host": "evil.example"})
        assert foreign.status_code == 403, "without tokens, only this machine"
    await app.close()


async def test_many_pages_of_one_view_are_rendered_once(settings: Settings, database: Database, client: Client) -> None:
    app = web_app(with_web(settings, port=0), jobs=JOBS)
    async with serving(app.backend.settings, app) as url, AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=None)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, limits=limits, timeout=60))
        streams = [http.stream("GET", "/?live=1") for _ in range(50)]
        responses = await asyncio.gather(*(stack.enter_async_context(one) for one in streams))
        readers = [response.aiter_lines() for response in responses]
        await client.enqueue(nightly.options(id="news", delay=3600))
        await asyncio.gather(*(_read_until(reader, "news") for reader in readers))
        live = app._site._live
        assert (len(live._channels), app.backend.events.count) == (1, 1)
        assert sum(len(channel.pages) for channel in live._channels.values()) == 50
    await app.close()
    await until_true(lambda: not live._channels)


async def _read_until(reader: AsyncIterator[str], word: str) -> None:
    async with asyncio.timeout(60):
        async for line in reader:
            if line.startswith("data:") and word in line:
                return
    raise AssertionError(f"the stream ended without {word}")


async def test_streams_end_with_their_token(
    settings: Settings, database: Database, client: Client, redis: Redis, tmp_path: Path
) -> None:
    file = TokenFile(tmp_path / "tokens.toml")
    token = file.create("eve", ["read"])
    app = web_app(with_web(settings, port=0, tokens_file=str(file.path), refresh_seconds=0.001), jobs=JOBS)
    async with (
        serving(app.backend.settings, app) as url,
        httpx.AsyncClient(base_url=url, timeout=60, headers={"Authorization": f"Bearer {token}"}) as http,
    ):
        await log_in(http, token)
        async with http.stream("GET", "/?live=1") as page, http.stream("GET", "/events") as events:
            assert (page.status_code, events.status_code) == (200, 200)
            await until_true(lambda: app.backend.events.count == 2)
            file.revoke("eve")
            app._access.file._seen = None  # type: ignore[union-attr]
            await client.enqueue(nightly.options(id="secret", delay=3600))
            await redis.xadd(keys.EVENTS, {"event": "secret", "run": "secret"})
            for response in (page, events):
                assert "secret" not in "".join([part async for part in response.aiter_text()])
        assert (await http.get("/?live=1")).status_code == 401
    await app.close()


async def test_messages_and_unreadable_tokens_are_told_whatever_their_letters(
    settings: Settings, database: Database, redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = TokenFile(tmp_path / "tokens.toml")
    token = file.create("ada", ["read", "operate"])
    async with app_with_tokens(settings, file.path) as app, connect(app) as http:
        await log_in(http, token)
        names = [letter * 80 for letter in ("\u6771", "\U0001f525", '"')]
        order = {"csrf": csrf_in((await http.get("/")).text), "targets": names, "back": "/"}
        assert (await http.post("/page/orders/pause", data=order)).status_code == 303
        page = (await http.get("/")).text
        note = page.partition('class="note"')[2].partition("</p>")[0]
        links = re.findall(r'<a href="/page/runs/[^"]*">([^<]*)</a>', note)
        assert links in (names[:1], names[:2]), "as many as the cookie holds"
        assert f"Paused {names[0]}, {names[1]}" in re.sub("</?a[^>]*>", "", note)
        file.path.write_text("x")
        app._access.file._seen = None  # type: ignore[union-attr]
        assert (await http.get("/")).status_code == 503
    assert "tokens.toml: not valid TOML" in caplog.text


async def test_each_open_page_hears_why_it_cannot_be_read(
    settings: Settings, database: Database, client: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.web.page.live._ALIVE_SECONDS", 0.05)
    app = web_app(with_web(settings, port=0), jobs=JOBS)
    async with (
        serving(app.backend.settings, app) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
        http.stream("GET", "/page/runs/gone?live=1") as first,
    ):
        assert await _read_errors(first) == {"regions": GONE, "alive": GONE}
        async with http.stream("GET", "/page/runs/gone?live=1") as second:  # it joins the first one
            assert await _read_errors(second) == {"regions": GONE, "alive": GONE}
    await app.close()


GONE = "there is no run 'gone' in the queue or the ledger, and no dead letter"


async def _read_errors(response: httpx.Response) -> dict[str, str | None]:
    """Return the errors of the first update, and of the first message behind it that has none."""
    found: dict[str, str | None] = {}
    kind = ""
    async with asyncio.timeout(60):
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                if kind == "regions" or found:
                    found[kind] = json.loads(value)["error"]
                if "alive" in found:
                    break
    return found


@pytest.mark.parametrize("path", ["/page/orders/pause", "/page/orders/none", "/page/login"])
async def test_forms_that_are_not_valid_are_refused(
    settings: Settings, database: Database, redis: Redis, path: str
) -> None:
    app = web_app(settings, jobs=JOBS)
    async with connect(app) as http:
        assert (await http.post(path, json={"targets": ["x"]})).status_code == 415
        assert (await http.post(path, content=b"a=\xff", headers=FORM)).status_code == 400
        large = b"a=" + b"x" * 5_000_000
        assert (await http.post(path, content=large, headers=FORM)).status_code == 413
    await app.close()


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
