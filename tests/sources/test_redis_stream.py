"""`RedisStream`: each entry takes effect once, and is acknowledged, over restarts, kills and other runs."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author, authors
from tests.sources.test_files import begin, read, read_over_restarts
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import CursorMismatch, InvalidRow, SourceUnavailable
from worker.sources import RedisStream
from worker.testing.runner import JobRunner

KEY = "longhaul:test:orders"


@pytest.fixture
async def stream(redis: Redis) -> Redis:
    """Redis without the stream."""
    await redis.delete(KEY)
    return redis


async def add(redis: Redis, first: int, last: int) -> None:
    for number in range(first, last + 1):
        await redis.xadd(KEY, {"number": number})


async def end_run(database: Database) -> None:
    """Let the run end for good."""
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE worker.run SET state = 'dead', finished_at = pg_catalog.now() WHERE id = 'run'")
        )


async def count_pending(redis: Redis) -> int:
    return int((await redis.xpending(KEY, "import"))["pending"])


def numbers(rows: list[Any]) -> list[int]:
    return [int(row.fields["number"]) for row in rows]


async def test_each_entry_is_written_once_over_kills(stream: Redis, database: Database, settings: Settings) -> None:
    await add(stream, 1, 100)
    last = await run_under_kills(settings, "tests.sources.killed", "redis", KEY, kills=3, seed=6)
    assert last == "done 100"
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == list(range(1, 101))
    assert await count_pending(stream) == 0


async def test_each_entry_is_read_once_over_restarts(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 47)
    rows = await read_over_restarts(context, lambda: RedisStream(KEY, "import"))
    assert numbers(rows) == list(range(1, 48))
    assert await count_pending(stream) == 0


async def test_an_entry_is_acknowledged_only_after_its_commit(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 20)
    ctx = context("run")
    pending = [await count_pending(stream) async for _ in ctx.walk(RedisStream(KEY, "import"), size=5)]
    assert pending == [5, 5, 5, 5]  # those of the open batch
    assert await count_pending(stream) == 0
    await ctx._attempt.succeed()


async def test_walk_ends_behind_the_entries_of_its_beginning(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 10)
    ctx = context("run")
    found: list[int] = []
    async for batch in ctx.walk(RedisStream(KEY, "import"), size=5):
        found += numbers(list(batch))
        await add(stream, 11 + 5 * batch.number, 15 + 5 * batch.number)
    await ctx._attempt.succeed()
    assert len(found) == 10
    assert len(await read(context("next"), RedisStream(KEY, "import"))) == 10


async def test_entries_that_were_committed_but_not_acknowledged_are_not_done_again(
    stream: Redis, context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the worker had died right after the commit, each time; and then another run comes."""

    async def nothing() -> None:
        pass

    await add(stream, 1, 20)
    with monkeypatch.context() as patch:
        patch.setattr(RedisStream, "_make_acknowledgement", lambda self, ids: nothing)
        await begin(context, lambda: RedisStream(KEY, "import"), size=5)
        assert await count_pending(stream) == 10
        assert numbers(await read(context("run"), RedisStream(KEY, "import"), size=5)) == list(range(6, 21))
        assert await count_pending(stream) == 15
    await end_run(database)
    await add(stream, 21, 22)
    assert numbers(await read(context("next"), RedisStream(KEY, "import"))) == [21, 22]
    assert await count_pending(stream) == 0


async def test_next_run_takes_what_a_dead_run_has_not_committed(
    stream: Redis, context: MakeContext, database: Database
) -> None:
    await add(stream, 1, 20)
    await begin(context, lambda: RedisStream(KEY, "import"), size=5)
    assert numbers(await read(context("while it may run"), RedisStream(KEY, "import"))) == list(range(11, 21))
    await end_run(database)
    await add(stream, 21, 22)
    assert numbers(await read(context("next"), RedisStream(KEY, "import"))) == [*range(6, 11), 21, 22]
    assert await count_pending(stream) == 0


async def test_consumers_of_other_programs_are_let_alone(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 10)
    await stream.xgroup_create(KEY, "import", id="0")
    await stream.xreadgroup("import", "another program", {KEY: ">"}, count=4)
    assert numbers(await read(context(), RedisStream(KEY, "import"))) == list(range(5, 11))
    assert await count_pending(stream) == 4


async def test_entries_that_were_deleted_meanwhile_are_passed(
    stream: Redis, context: MakeContext, caplog: pytest.LogCaptureFixture
) -> None:
    await add(stream, 1, 20)
    await begin(context, lambda: RedisStream(KEY, "import"), size=5)
    await stream.xtrim(KEY, maxlen=12, approximate=False)  # 6 to 8 are pending, and gone
    assert numbers(await read(context("run"), RedisStream(KEY, "import"))) == list(range(9, 21))
    assert "entries were deleted from the stream" in caplog.text
    assert await count_pending(stream) == 0


async def test_an_entry_that_is_no_text_is_quarantined(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 2)
    await stream.xadd(KEY, {"number": b"\xff\xfe"})
    await add(stream, 3, 4)
    with pytest.raises(InvalidRow, match=rf"the stream {KEY}, entry [\d-]+: a field is not UTF-8"):
        await read(context("run"), RedisStream(KEY, "import"))
    assert await count_pending(stream) == 5
    source = RedisStream(KEY, "import")
    options = {"name": "rows", "on_error": "quarantine", "quarantine_limit": 1}
    rows = [row async for batch in context("run").walk(source, **options) for row in batch]  # type: ignore[arg-type]
    assert numbers(rows) == [1, 2, 3, 4]
    assert await count_pending(stream) == 0


async def test_key_of_another_type_and_a_server_that_is_away_are_named(stream: Redis, context: MakeContext) -> None:
    await stream.set(KEY, "text")
    with pytest.raises(SourceUnavailable, match=rf"the stream {KEY} cannot be read: WRONGTYPE.* next attempt"):
        await read(context(), RedisStream(KEY, "import"))
    away = Redis(host="127.0.0.1", port=1)
    with pytest.raises(SourceUnavailable, match="cannot be read"):
        await read(context(), RedisStream(KEY, "import", redis=away))
    await away.aclose()


async def test_entries_whose_delivery_was_lost_come_next(stream: Redis, context: MakeContext) -> None:
    """As if Redis had delivered entries, the answer was lost, and the client had sent the command again."""
    await add(stream, 1, 20)
    ctx, found = context("run"), []
    async for batch in ctx.walk(RedisStream(KEY, "import"), size=5, name="rows"):
        found += numbers(list(batch))
        if batch.number in (1, 3):
            await stream.xreadgroup("import", "longhaul:run:rows", {KEY: ">"}, count=3)
    await ctx._attempt.succeed()
    assert found == list(range(1, 21))
    assert await count_pending(stream) == 0


async def test_group_that_was_removed_is_named_and_no_entry_is_done_twice(
    stream: Redis, context: MakeContext, database: Database
) -> None:
    await add(stream, 1, 20)
    await begin(context, lambda: RedisStream(KEY, "import"), size=5)
    await stream.xgroup_destroy(KEY, "import")
    with pytest.raises(CursorMismatch, match=r"the group import of .* was removed .* XGROUP CREATE .* MKSTREAM, and"):
        await read(context("run"), RedisStream(KEY, "import"))
    async with database.session() as session:
        cursor = await session.scalar(text("SELECT cursor #>> '{}' FROM worker.step WHERE run_id = 'run'"))
    await stream.xgroup_create(KEY, "import", id=cursor)
    assert numbers(await read(context("run"), RedisStream(KEY, "import"))) == list(range(6, 21))


async def test_group_that_is_removed_under_way_ends_the_attempt(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 20)
    ctx = context("run")
    with pytest.raises(SourceUnavailable, match="cannot be read: NOGROUP"):
        async for batch in ctx.walk(RedisStream(KEY, "import"), size=5):
            if batch.number == 2:
                await stream.xgroup_destroy(KEY, "import")


async def test_pages_whose_entries_were_all_deleted_are_passed(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 20)
    await begin(context, lambda: RedisStream(KEY, "import"), size=5)
    await stream.xtrim(KEY, maxlen=3, approximate=False)  # 6 to 10 are pending, and gone; 11 to 17 were not taken
    assert numbers(await read(context("run"), RedisStream(KEY, "import"))) == [18, 19, 20]
    assert await count_pending(stream) == 0


async def test_a_key_that_changes_its_type_under_way_is_named(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 20)
    ctx = context("run")
    with pytest.raises(SourceUnavailable, match=r"cannot be read: (WRONGTYPE|NOGROUP|UNBLOCKED)"):
        async for batch in ctx.walk(RedisStream(KEY, "import"), size=5):
            if batch.number == 2:
                await stream.delete(KEY)
                await stream.set(KEY, "text")


async def test_a_batch_that_fails_again_is_read_again_by_one_source_object(
    stream: Redis, database: Database, settings: Settings
) -> None:
    """The source is made outside of the job, so that the same object is opened again after a deadlock."""
    await add(stream, 1, 20)
    FAILING[:] = [2, 3]
    assert await JobRunner(database, settings)(copy_numbers) == 20
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == list(range(1, 21))


FAILING: list[int] = []
SOURCE = RedisStream(KEY, "import")


@job
async def copy_numbers(ctx: JobContext) -> int:
    """Write the entries; a batch fails with a transient error."""
    async for batch in ctx.walk(SOURCE, size=5):
        for row in batch:
            batch.session.add(Author(**authors(int(row.fields["number"]))[-1]))
        if batch.number in FAILING:
            FAILING.remove(batch.number)
            await batch.session.execute(text("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$"))
    return ctx.rows_done


async def test_the_group_does_not_grow_with_each_run(stream: Redis, context: MakeContext, database: Database) -> None:
    await add(stream, 1, 20)
    await begin(context, lambda: RedisStream(KEY, "import"), size=5)
    await end_run(database)
    for run in ("next", "last"):
        await read(context(run), RedisStream(KEY, "import"))
        assert await stream.xinfo_consumers(KEY, "import") == []
        await add(stream, 21, 30)


async def test_a_user_without_the_right_to_delete_a_consumer_keeps_it(stream: Redis, context: MakeContext) -> None:
    await add(stream, 1, 20)
    rights = "+xreadgroup +xack +xclaim +xgroup|create +xinfo|consumers +xinfo|stream +xpending"
    await stream.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", *rights.split())
    place = stream.connection_pool.connection_kwargs
    own = Redis(host=place["host"], port=place["port"], username="reader", password="word")
    try:
        assert len(await read(context(), RedisStream(KEY, "import", redis=own))) == 20
    finally:
        await own.aclose()
        await stream.acl_deluser("reader")
    assert len(await stream.xinfo_consumers(KEY, "import")) == 1


@pytest.mark.parametrize("when", ["under way", "between two attempts"])
async def test_group_that_was_made_again_delivers_no_entry_twice_and_none_is_left_out(
    stream: Redis, context: MakeContext, when: str
) -> None:
    await add(stream, 1, 33)
    ctx, found = context("run"), []
    async for batch in ctx.walk(RedisStream(KEY, "import"), size=5, name="rows"):
        found += numbers(list(batch))
        if batch.number == 3:
            await stream.xgroup_destroy(KEY, "import")
            await stream.xgroup_create(KEY, "import", id="0")
            if when == "between two attempts":
                break
    if when == "between two attempts":
        await ctx._attempt.fail()
        await ctx._attempt.close()
        del found[10:]
        found += numbers(await read(context("run"), RedisStream(KEY, "import"), size=5))
    else:
        await ctx._attempt.succeed()
    assert found == list(range(1, 34))
    assert await count_pending(stream) == 0
