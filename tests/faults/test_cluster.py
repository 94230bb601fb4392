"""Redis Cluster: all main paths in one slot; a slot that fails over, moves or has no node is a short outage."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.faults.gated import begun, complaints, gated, start, stop_renewing
from tests.faults.redis_scene import at, log_and_forget, make_folder  # noqa: F401  (fixtures: `fast`, `home`)
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.main_paths import OTHER, take_main_paths
from tests.support.redis_cluster import ValkeyCluster
from tests.support.waiting import until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, ServerUnavailable, Settings, SyncClient, job
from worker.db.engine import Database
from worker.embedded.directories import make_home
from worker.queue.acl import acl_rules
from worker.queue.claims import Claim
from worker.queue.errors import ClusterRedirect
from worker.queue.store import QueueStore
from worker.runtime.worker import Worker


@job
async def add_one(ctx: JobContext) -> int:
    """Add one to each author, slowly enough for a fault in the middle."""
    async for batch in ctx.chunks(select(Author), size=5):
        for author in batch:
            author.seen += 1
        await asyncio.sleep(0.02)
    return ctx.rows_done


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    """Three primaries, each with a replica. Each test has a namespace of its own."""
    home = make_home()
    made = ValkeyCluster(home, replicas=1)
    try:
        asyncio.run(made.start())
        yield made
    finally:
        made.stop()
        shutil.rmtree(home, ignore_errors=True)


class Load:
    """Enqueues runs all the time, from both clients, as a service that retries what was refused."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.names: list[str] = []
        self.refused: list[str] = []

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._enqueue())
        await until_true(lambda: len(self.names) >= 10)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        enough = len(self.names) + 10
        try:
            if error[0] is None:
                await until_true(lambda: len(self.names) >= enough)
        finally:
            self._over.set()
            await self._task

    async def _enqueue(self) -> None:
        sync = SyncClient(self._settings)
        async with Client(self._settings) as client:
            while not self._over.is_set():
                name = f"n{len(self.names)}"
                stop_renewing(name)
                try:
                    if len(self.names) % 3:
                        await client.enqueue(gated.options(id=name), name=name)
                    else:
                        await asyncio.to_thread(sync.enqueue, gated.options(id=name), name=name)
                except ServerUnavailable as error:
                    self.refused.append(str(error))
                    await asyncio.sleep(0.02)
                else:
                    self.names.append(name)
        sync.close()


async def sums(database: Database) -> list[int]:
    """Return the different sums of all authors."""
    async with database.session() as session:
        return list((await session.scalars(select(Author.seen).distinct())).all())


async def test_all_main_paths_run_in_one_slot(cluster: ValkeyCluster, fast: Settings, database: Database) -> None:
    settings = with_worker(at(fast, cluster.url("shop", user="tenant:secret@")), queues={"arq:queue": 1, OTHER: 1})
    rights = [*acl_rules("worker", settings), *acl_rules("operator", settings)[2:], ">secret"]
    for port in cluster.nodes:
        await cluster.ask(port, "ACL SETUSER", "tenant", *rights)
    await take_main_paths(settings, database)
    for port in cluster.nodes:
        refused = {entry[7] for entry in await cluster.ask(port, "ACL LOG")}
        assert refused <= {b"config|get"}  # the doctor can do without
        await cluster.ask(port, "ACL DELUSER", "tenant")
        assert [name for name in await cluster.ask(port, "KEYS", "*") if not name.startswith(b"{shop}:")] == []


async def check_change(
    settings: Settings, database: Database, change: Callable[[Worker], Awaitable[Callable[[], bool]]]
) -> None:
    """Change the cluster under a worker with two runs and under two clients: nothing is lost or doubled.

    Args:
        settings: the settings of the worker and the clients.
        database: the database with the authors.
        change: takes the worker, makes the change, and returns a function that tells whether the worker has followed.
    """
    await fill_authors(database, 100)
    async with working(settings, gated, add_one) as worker, Client(settings) as client:
        running, walk = await start(client, "running"), await client.enqueue(add_one)
        async with Load(settings) as load:
            has_followed = await change(worker)
        assert load.refused == [], "the clients have followed"
        await until_true(has_followed)
        stop_renewing("running")
        assert await running.result(timeout=120) == "running"
        assert await walk.result(timeout=120) == 100
        for name in load.names:
            assert await client.run(name).result(timeout=120) == name
    assert await sums(database) == [1]
    assert begun["running"] == 1
    assert {name: count for name, count in begun.items() if count != 1} == {}


async def test_a_failover_loses_and_doubles_nothing(
    cluster: ValkeyCluster, fast: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_over(worker: Worker) -> Callable[[], bool]:
        owner = await cluster.owner("over")
        assert await cluster.fail_over("over") != owner
        return lambda: worker.listener.active

    await check_change(at(with_worker(fast, lease_seconds=2.0), cluster.url("over")), database, fail_over)
    assert len([line for line in complaints(caplog) if line.startswith("Redis: ")]) <= 2


async def test_a_slot_that_moves_to_another_node_loses_and_doubles_nothing(
    cluster: ValkeyCluster, fast: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    source = 0

    async def move(worker: Worker) -> Callable[[], bool]:
        nonlocal source
        owner = await cluster.owner("moving")
        target = next(port for port in cluster.living if cluster.is_primary(port) and port != owner)
        source = await cluster.begin_move("moving", target)
        await cluster.end_move("moving", source, target)
        assert await cluster.owner("moving") == target
        return lambda: worker.listener.active and worker.listener._reader.port == target

    await check_change(at(with_worker(fast, lease_seconds=5.0), cluster.url("moving")), database, move)
    assert len([line for line in complaints(caplog) if line.startswith("Redis: ")]) <= 2
    assert await cluster.ask(source, "CLUSTER COUNTKEYSINSLOT", cluster.slot("moving")) == 0


async def test_no_script_runs_over_a_part_of_the_keys_while_a_slot_moves(
    cluster: ValkeyCluster, fast: Settings
) -> None:
    async with Client(at(fast, cluster.url("partly"))) as client:
        run = await client.enqueue("unknown")
        await client.redis.set(f"arq:in-progress:{run.id}", "me")
        owner = await cluster.owner("partly")
        target = next(port for port in cluster.nodes if cluster.is_primary(port) and port != owner)
        source = await cluster.begin_move("partly", target)
        with pytest.raises(ClusterRedirect, match="TRYAGAIN"):  # all keys that it names are still there
            await QueueStore(client.redis, "me").restore(Claim(run.id, "arq:queue", 0, b"{}", 1))
        await cluster.end_move("partly", source, target)
        assert await QueueStore(client.redis, "me").restore(Claim(run.id, "arq:queue", 0, b"{}", 1))


@pytest.mark.long
async def test_many_failovers_and_moves_lose_and_double_nothing(
    cluster: ValkeyCluster, fast: Settings, database: Database
) -> None:
    await fill_authors(database, 1_000)
    settings = at(with_worker(fast, lease_seconds=5.0), cluster.url("busy"))
    async with working(settings, gated, add_one), Client(settings) as client:
        walk = await client.enqueue(add_one)
        async with Load(settings) as load:
            for turn in range(12):
                before = len(load.names)
                if turn % 3 == 2:
                    await cluster.fail_over("busy")
                else:
                    owner = await cluster.owner("busy")
                    targets = [port for port in cluster.living if cluster.is_primary(port) and port != owner]
                    source = await cluster.begin_move("busy", targets[turn % 2])
                    await asyncio.sleep(0.05 * turn)
                    await cluster.end_move("busy", source, targets[turn % 2])
                await until_true(lambda: len(load.names) > before + 3)  # noqa: B023
        assert await walk.result(timeout=120) == 1_000
        for name in load.names:
            assert await client.run(name).result(timeout=120) == name
    assert await sums(database) == [1]
    assert {name: count for name, count in begun.items() if count != 1} == {}


@pytest.mark.long
async def test_the_death_of_the_primary_loses_and_doubles_nothing(
    fast: Settings, database: Database, caplog: pytest.LogCaptureFixture, home: Path
) -> None:
    cluster = ValkeyCluster(home, replicas=1)
    try:
        await cluster.start()
        await fill_authors(database, 400)
        settings = at(with_worker(fast, lease_seconds=5.0), cluster.url("dying"))
        async with working(settings, gated, add_one), Client(settings) as client:
            running, walk = await start(client, "running"), await client.enqueue(add_one)
            async with Load(settings) as load:
                await cluster.kill_owner("dying")
            stop_renewing("running")
            assert await running.result(timeout=120) == "running"
            assert await walk.result(timeout=120) == 400
            for name in load.names:
                assert await client.run(name).result(timeout=120) == name
        assert await sums(database) == [1]
        assert {name: count for name, count in begun.items() if count != 1} == {}
        assert len([line for line in complaints(caplog) if line.startswith("Redis: ")]) <= 2
    finally:
        cluster.stop()


@pytest.mark.parametrize(
    ("scheme", "node", "said"),
    [
        ("redis", "cluster", r"CROSSSLOT.*write redis\+cluster://"),
        ("redis+cluster", "plain", r"not in cluster mode; write redis:// in place of redis\+cluster://"),
    ],
    ids=["node", "no cluster"],
)
async def test_a_url_of_the_wrong_kind_names_the_right_one(
    cluster: ValkeyCluster, fast: Settings, scheme: str, node: str, said: str
) -> None:
    port = next(iter(cluster.nodes)) if node == "cluster" else int(fast.redis.url.rpartition(":")[2].partition("/")[0])
    settings = at(fast, f"{scheme}://127.0.0.1:{port}")
    async with Client(settings) as client:
        with pytest.raises(ServerUnavailable, match=said):
            await client.enqueue(gated, name="in-vain")
    with pytest.raises(ServerUnavailable, match=said):
        async with working(settings, gated):
            pass


async def test_a_node_of_another_slot_names_the_scheme(cluster: ValkeyCluster, fast: Settings) -> None:
    owner = await cluster.owner("elsewhere")
    other = next(port for port in cluster.nodes if port != owner)
    async with Client(at(fast, f"redis://127.0.0.1:{other}/?namespace=elsewhere")) as client:
        with pytest.raises(ServerUnavailable, match=r"MOVED.*write redis\+cluster://"):
            await client.enqueue(gated, name="in-vain")


async def test_the_relay_and_waits_for_results_go_on_over_a_failover(
    cluster: ValkeyCluster, fast: Settings, database: Database
) -> None:
    settings = at(with_worker(fast, lease_seconds=5.0), cluster.url("relayed"))
    waits: list[asyncio.Future[str]] = []
    with SyncClient(settings) as sync:
        async with working(settings, gated), Client(settings) as client:
            for number in range(40):
                name = f"row{number}"
                stop_renewing(name)
                async with database.transaction() as session:
                    run = await client.enqueue_in(session, gated.options(id=name), name=name)
                waits.append(asyncio.ensure_future(run.result(timeout=25)))
                if number % 8 == 0:
                    waits.append(asyncio.ensure_future(asyncio.to_thread(sync.run(name).result, timeout=25)))
                if number % 16 == 15:
                    await cluster.fail_over("relayed")
            results = await asyncio.gather(*waits)
    assert sorted({*results}) == sorted(f"row{number}" for number in range(40))
    assert {name: count for name, count in begun.items() if count != 1} == {}
