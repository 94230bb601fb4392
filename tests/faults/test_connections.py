"""A worker connects to Redis by Sentinels, with TLS, as an ACL user with few rights, and by a unix socket."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError
from sqlalchemy import select

from tests.faults import gated as jobs
from tests.faults.gated import begun, complaints, ends_told, gated, run_one, start, stop_renewing
from tests.faults.sentinel import PASSWORD, Watched
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.proxy import proxied
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, JobContext, NonRetryableError, Settings, SyncClient, job
from worker.db.engine import Database
from worker.embedded import process
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.errors import ServerUnavailable
from worker.settings import parse_redis_url

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for servers of one test."""
    made = make_home()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def fast(fast: Settings, database: Database, caplog: pytest.LogCaptureFixture) -> Settings:
    """Short times, a database, and a log."""
    jobs.forget()
    caplog.set_level(logging.INFO, "longhaul")
    return fast


def at(settings: Settings, url: str) -> Settings:
    """Return settings with another Redis."""
    parse_redis_url(url)
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})


async def work_a_little(settings: Settings) -> None:
    """Run jobs, one of them until its lease was renewed."""
    async with working(settings, gated), Client(settings) as client:
        run = await start(client, "renewed")

        async def due() -> float:
            return float(await client.redis.zscore("arq:queue", run.id) or 0)

        first = await due()

        async def is_renewed() -> bool:
            return await due() > first

        await until(is_renewed)
        stop_renewing("renewed")
        assert await run.result(timeout=120) == "renewed"
        await run_one(client, "another")


# --- Sentinel


@pytest_asyncio.fixture
async def watched(home: Path) -> AsyncIterator[Watched]:
    """Two servers and a Sentinel."""
    made = Watched(home)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_a_failover_by_a_sentinel_loses_no_job(
    fast: Settings, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    settings = at(with_worker(fast, lease_seconds=2.0), watched.url)
    first = await watched.primary()
    enqueued: list[str] = []
    async with working(settings, gated), Client(settings) as client:
        sync = SyncClient(settings)
        await asyncio.to_thread(sync.status)  # so that it has a connection to the first primary
        running = await start(client, "running")
        over_it = asyncio.Event()

        async def enqueue_all_the_time() -> None:
            number = 0
            while not over_it.is_set() or number < 20:
                name = f"n{number}"
                stop_renewing(name)
                try:
                    await client.enqueue(gated.options(id=name), name=name)
                except ServerUnavailable:
                    await asyncio.sleep(0.05)  # as a client retries after a refused connection
                    continue
                enqueued.append(name)
                number += 1
                await asyncio.sleep(0.02)

        enqueueing = asyncio.create_task(enqueue_all_the_time())
        await watched.fail_over()
        over_it.set()
        await enqueueing
        second = await watched.primary()
        assert second != first

        async def enqueue_blocking() -> bool:
            try:
                await asyncio.to_thread(sync.enqueue, gated.options(id="blocking"), name="blocking")
            except ServerUnavailable:  # refused by the former primary
                return False
            return True

        stop_renewing("blocking")
        await until(enqueue_blocking)
        sync.close()
        enqueued.append("blocking")
        await run_one(client, "afterwards")
        stop_renewing("running")
        assert await running.result(timeout=120) == "running"
        for name in enqueued:
            assert await client.run(name).result(timeout=120) == name
        async with Redis(port=second, password=PASSWORD) as redis:
            assert await ends_told(redis, "running") == ["succeeded"]
    assert begun["running"] == 1
    assert len(enqueued) >= 20
    said = [line for line in complaints(caplog) if line.startswith("Redis: ")]
    assert 0 < len(said) <= 2  # disconnected, and perhaps refused by the former primary


async def test_a_primary_that_no_sentinel_knows_is_said_in_one_line(fast: Settings, watched: Watched) -> None:
    unknown = at(fast, watched.url.replace("the-primary", "another-one"))
    wrong_password = at(fast, watched.url.replace("s%3Ae%26n", "wrong"))
    for settings, said in (
        (unknown, "no Sentinel knows the primary of another-one"),
        (wrong_password, "WRONGPASS|invalid"),
    ):
        async with Client(settings) as client:
            with pytest.raises(ServerUnavailable, match=said) as refused:
                await client.enqueue(gated, name="in-vain")
        assert "s%3Ae%26n" not in str(refused.value)
        assert "p%40ss" not in str(refused.value)


# --- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate of the server at 127.0.0.1, one of another name, and one of a client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")
    run(*new, "ca.key", "-x509", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
    for name, place in (("server", "IP:127.0.0.1"), ("other", "DNS:elsewhere"), ("client", "DNS:client")):
        run(*new, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text(f"subjectAltName={place}\n")
        signed = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        run(*signed, "-out", f"{name}.pem", "-days", "2", "-extfile", "names")
    return folder


def server_side(folder: Path, name: str = "server", *, asks_for_client: bool = False) -> ssl.SSLContext:
    """Return the TLS of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    if asks_for_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
    return context


@pytest.fixture
def valkey(home: Path) -> Iterator[EmbeddedValkey]:
    """A server of this test, with a unix socket. It has no TLS, so that a proxy stands before it where that matters."""
    server = EmbeddedValkey(home, settings={"unixsocket": str(home / "valkey.sock")})
    server.start()
    yield server
    server.stop(immediate=True)


@pytest.mark.parametrize("asks_for_client", [False, True], ids=["server", "client"])
async def test_tls(
    fast: Settings,
    valkey: EmbeddedValkey,
    certificates: Path,
    asks_for_client: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with proxied(valkey.port, tls=server_side(certificates, asks_for_client=asks_for_client)) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={certificates}/ca.pem"
        if asks_for_client:
            url += f"&ssl_certfile={certificates}/client.pem&ssl_keyfile={certificates}/client.key"
        await work_a_little(at(fast, url))
    assert complaints(caplog) == []


async def test_tls_with_the_wrong_certificate_is_refused(
    fast: Settings, valkey: EmbeddedValkey, certificates: Path
) -> None:
    async def refusal(name: str, query: str) -> str:
        async with (
            proxied(valkey.port, tls=server_side(certificates, name)) as proxy,
            Client(at(fast, f"rediss://127.0.0.1:{proxy.port}/0{query}")) as client,
        ):
            try:
                await client.enqueue(gated, name="in-vain")
            except ServerUnavailable as error:
                return str(error)
        return ""

    known = f"?ssl_ca_certs={certificates}/ca.pem"
    assert "certificate verify failed" in await refusal("server", "")
    assert "certificate verify failed" in await refusal("other", known)  # of the authority, and of another host
    assert await refusal("other", f"{known}&ssl_check_hostname=false") == ""
    assert await refusal("other", "?ssl_cert_reqs=none") == ""


async def test_a_real_server_with_tls(fast: Settings, home: Path, certificates: Path) -> None:
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None or b"libssl" not in Path(found).read_bytes():
        pytest.skip("PATH has no Valkey or Redis with TLS, and that of the wheel has none")
    port = process.free_port()
    options = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
    for option, file in (("cert", "server.pem"), ("key", "server.key"), ("ca-cert", "ca.pem")):
        options += (f"--tls-{option}-file", str(certificates / file))
    server = process.start([found, *options], log=home / "tls.log", user=None, death_signal=signal.SIGTERM)
    try:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificates}/ca.pem"
        url += f"&ssl_certfile={certificates}/client.pem&ssl_keyfile={certificates}/client.key"
        settings = at(fast, url)

        async def answers() -> bool:
            async with Client(settings) as client:
                try:
                    return bool(await client.redis.ping())
                except RedisError:
                    return False

        await until(answers)
        await work_a_little(settings)
    finally:
        process.stop(server, signal.SIGKILL)


# --- unix socket


async def test_a_unix_socket(
    fast: Settings, valkey: EmbeddedValkey, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await work_a_little(at(fast, f"unix://{home}/valkey.sock?db=2"))
    async with Redis(port=valkey.port, db=2) as redis:
        assert await redis.exists("arq:result:another")
    assert complaints(caplog) == []


# --- an ACL user


@job
async def walked(ctx: JobContext) -> int:
    """Enter the ledger."""
    async for batch in ctx.chunks(select(Author), size=4):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job(concurrency=1, rate="100/second")
async def limited(ctx: JobContext) -> None:
    """Pass a gate."""


@job(cron="* * * * *")
async def each_minute(ctx: JobContext) -> None:
    """Be enqueued by cron."""


@job
async def fails(ctx: JobContext) -> None:
    """Become a dead letter."""
    raise NonRetryableError("no")


#: What operators do, in one process.
COMMANDS = (
    "status",
    "runs",
    "jobs",
    "cron",
    "top --once",
    "dead",
    "dead show failed",
    "retry failed",
    "pause walked",
    "resume walked",
    "pace walked --max-rows-per-second 5",
    "pace walked --reset",
    "enqueue touch_by_sweep --delay 600 --id later",
    "cancel later",
    "doctor",
)
COMMANDS_ONE_BY_ONE = """
import sys
from worker.cli import main
for line in sys.argv[1:]:
    sys.argv = ["worker", *line.split()]
    code = main()
    assert code == 0, f"{line}: {code}"
"""


def documented_rules(user: str = "longhaul") -> list[str]:
    """Return the rules of a user of docs/how-to/secure-redis.md."""
    page = (ROOT / "docs" / "how-to" / "secure-redis.md").read_text(encoding="utf-8")
    found = re.search(rf"^redis-cli ACL SETUSER {user} on ((?:.*\\\n)*.*)$", page, re.MULTILINE)
    assert found
    return ["on", *shlex.split(found[1].replace("\\\n", " "))]


async def test_the_documented_acl_user_may_do_all_that_is_needed_and_nothing_else(
    fast: Settings, valkey: EmbeddedValkey, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await fill_authors(database, 12)
    async with Redis(port=valkey.port) as admin:
        rules = documented_rules()
        await admin.execute_command("ACL", "SETUSER", "longhaul", *rules)
        password = next(rule[1:] for rule in rules if rule.startswith(">"))
        url = f"redis://longhaul:{password}@127.0.0.1:{valkey.port}/0"
        settings = at(fast, url)
        known = (gated, walked, limited, each_minute, fails)
        async with working(settings, *known) as worker, Client(settings) as client:

            async def watches() -> bool:
                return worker.listener.active

            await until(watches)
            chain = await client.enqueue(walked.options(then=limited.call(), priority=5))
            assert await chain.result(timeout=120) == 12
            assert await chain.next_runs[0].result(timeout=120) is None
            group = await client.group([limited.call(), limited.call()], then=limited.call())
            assert group.callback is not None
            assert await group.callback.result(timeout=120) is None
            await (await client.enqueue(limited)).result(timeout=120)
            await client.enqueue_many(limited, [{}] * 3)
            run = await start(client, "to-be-cancelled")
            assert await run.cancel()
            with pytest.raises(JobCancelled):
                await run.result(timeout=120)
            failed = await client.enqueue(fails.options(id="failed"))
            await until(lambda: admin.hexists("worker:dead", "failed"))
            [fired] = await worker.scheduler.look(now=worker.scheduler._entries[0].next_due)
            await admin.zadd("arq:queue", {fired: 0})  # now, and not when the next minute begins
            assert await client.run(fired).result(timeout=120) is None
            assert [report.state async for report in failed.progress()][-1] == "dead"
            await until(lambda: admin.hget("worker:jobs", "each_minute:succeeded"))
            ran = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", COMMANDS_ONE_BY_ONE, *COMMANDS],
                env=os.environ
                | {"DATABASE_URL": fast.database.url, "REDIS_URL": url}
                | {"LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]'},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
        assert await admin.hget("worker:jobs", "walked:succeeded") == b"1"
        assert {entry["object"] for entry in await admin.acl_log()} <= {"config|get"}  # the doctor can do without
        async with Redis.from_url(url) as user:
            for refused in ("FLUSHALL", "CONFIG SET maxmemory 1", "GET session:1", "KEYS *", "SUBSCRIBE news"):
                with pytest.raises(NoPermissionError):
                    await user.execute_command(*refused.split())
    assert [line for line in complaints(caplog) if line.startswith("Redis")] == []


async def test_the_documented_users_of_clients_and_readers_do_what_they_may(
    fast: Settings, valkey: EmbeddedValkey, database: Database
) -> None:
    await fill_authors(database, 12)
    async with Redis(port=valkey.port) as admin:
        for user in ("longhaul-client", "longhaul-reader"):
            await admin.execute_command("ACL", "SETUSER", user, *documented_rules(user))
        password = documented_rules("longhaul-client")[1].removeprefix(">")
        urls = {user: f"redis://longhaul-{user}:{password}@127.0.0.1:{valkey.port}/0" for user in ("client", "reader")}
        async with (
            working(at(fast, f"redis://127.0.0.1:{valkey.port}/0"), gated, walked, limited),
            Client(at(fast, urls["client"])) as client,
            Client(at(fast, urls["reader"])) as reader,
        ):
            chain = await client.enqueue(walked.options(then=limited.call(), priority=5))
            assert await chain.result(timeout=120) == 12
            assert await chain.next_runs[0].result(timeout=120) is None
            group = await client.group([limited.call(), limited.call()], then=limited.call())
            assert group.callback is not None
            assert await group.callback.result(timeout=120) is None
            await client.enqueue_many(limited, [{}] * 3)
            run = await start(client, "to-be-cancelled")
            assert await reader.run(run.id).status() == "running"
            await admin.sadd("worker:cancelled", run.id)
            with pytest.raises(JobCancelled):
                await reader.run(run.id).result(timeout=120)
            assert [report.state async for report in run.progress()][-1] == "cancelled"
            await client.enqueue(limited.options(id="later", delay=600))
            assert "later" in {one.id for one in await reader.runs()}
            assert await reader.dead_letters() == []
            assert (await reader.status()) is not None
        refused = {
            "client": (
                "SADD worker:paused *",
                "SET arq:result:x 1",
                "SET arq:in-progress:x me",
                "HSET worker:dead x y",
            ),
            "reader": ("ZADD arq:queue 0 x", "SET arq:job:x 1", "SADD worker:cancelled x", "EVAL return 0"),
        }
        for user, commands in refused.items():
            async with Redis.from_url(urls[user]) as redis:
                for command in (*commands, "FLUSHALL", "CONFIG GET *", "GET session:1", "KEYS *"):
                    with pytest.raises(NoPermissionError):
                        await redis.execute_command(*command.split())
