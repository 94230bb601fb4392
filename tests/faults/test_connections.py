"""A worker connects to Redis by Sentinels, with TLS, as an ACL user with few rights, and by a unix socket."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.faults.gated import begun, complaints, ends_told, gated, run_one, start, stop_renewing
from tests.faults.redis_scene import at, log_and_forget, make_folder, start_valkey  # noqa: F401  (fixtures: `fast`, `home`, `valkey`)
from tests.faults.sentinel import PASSWORD, Watched
from tests.support.proxy import proxied
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, Settings, SyncClient
from worker.embedded import process
from worker.embedded.valkey import EmbeddedValkey
from worker.errors import ServerUnavailable


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


@pytest.mark.usefixtures("database")
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
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 and later want it
    run(*new, "ca.key", "-x509", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority", *usage)
    for name, place in (("server", "IP:127.0.0.1"), ("other", "DNS:elsewhere"), ("client", "DNS:client")):
        run(*new, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text(f"subjectAltName={place}\nauthorityKeyIdentifier=keyid\n")
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
