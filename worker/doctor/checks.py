"""The checks of `worker doctor`: each examines one fact, and reports its state and the next step."""

from __future__ import annotations

from collections.abc import Callable

from worker.doctor.facts import Facts, PostgresFacts, RedisFacts, gather
from worker.doctor.finding import Finding, fine, warning, wrong
from worker.settings import Settings, parse_redis_url

_OLDEST_REDIS = (6, 2)  # GETEX
_OLDEST_POSTGRES, _NEWEST_POSTGRES = 14, 18
_CLOCK_SECONDS = 2.0
_FULL = 0.9
_PING_SECONDS = 10
_MOST_KEYS = 10
#: Age of a row of the outbox from which on it seems that no relay works.
_RELAY_SECONDS = 10.0


async def examine(settings: Settings) -> dict[str, Finding]:
    """Query both servers, and return the finding of each check by its name."""
    return findings(await gather(settings))


def findings(facts: Facts) -> dict[str, Finding]:
    """Return the finding of each check. The checks of a server that does not answer are omitted."""
    found = {"jobs": jobs(facts)}
    found |= {name: check(facts.settings) for name, check in OF_SETTINGS.items()}
    redis, postgres = facts.redis, facts.postgres
    if isinstance(redis, str):
        found["redis"] = wrong(redis, "start Redis or Valkey there, or set REDIS_URL")
    else:
        found |= {f"redis {name}": check(redis, facts.settings) for name, check in OF_REDIS.items()}
    if isinstance(postgres, str):
        found["postgres"] = wrong(postgres, "correct database.url, or start PostgreSQL there")
    else:
        found |= {f"postgres {name}": check(postgres, facts.settings) for name, check in OF_POSTGRES.items()}
    if isinstance(redis, RedisFacts) and isinstance(postgres, PostgresFacts):
        found["connections of all workers"] = all_connections(redis, postgres, facts.settings)
    return found


def jobs(facts: Facts) -> Finding:
    """Check that the jobs can be loaded."""
    if isinstance(facts.jobs, str):
        return wrong(facts.jobs, "correct worker.packages, or the package")
    if not facts.jobs:
        return wrong("no @job function was found", "add their packages to worker.packages")
    return fine(f"{facts.jobs} jobs")


# --- settings


def pool(settings: Settings) -> Finding:
    """Check that jobs do not wait for each other's connections."""
    message = settings.pool_warning()
    if message is None:
        return fine(f"{settings.pool_size} connections and {settings.max_overflow} temporary ones")
    return warning(message, "raise database.pool_size, or lower worker.max_jobs")


def lock_timeout(settings: Settings) -> Finding:
    """Check that the lock timeout ends before the statement timeout."""
    lock, statement = settings.database.lock_timeout_seconds, settings.database.statement_timeout_seconds
    if lock and statement and lock >= statement:
        return wrong(
            f"database.lock_timeout_seconds = {lock:g} is never reached, because statements end after {statement:g} s",
            "lower it below database.statement_timeout_seconds",
        )
    return fine("the lock timeout is below the statement timeout" if lock else "there is no lock timeout")


def statement_timeout(settings: Settings) -> Finding:
    """Check that a statement may take as long as the target time of a batch."""
    statement, target = settings.database.statement_timeout_seconds, settings.batch.target_seconds
    if statement and statement <= 2 * target:
        return wrong(
            f"database.statement_timeout_seconds = {statement:g} ends batches, which aim at {target:g} s",
            "raise it to a multiple of batch.target_seconds",
        )
    return fine("statements may take as long as batches")


def lease(settings: Settings) -> Finding:
    """Check that a call to Redis that hangs ends before the leases expire."""
    lasts, call = settings.worker.lease_seconds, settings.redis.command_timeout_seconds
    if call > lasts:
        return wrong(
            f"redis.command_timeout_seconds = {call:g} is above worker.lease_seconds = {lasts:g}: one call that hangs "
            f"loses every job of the worker",
            "lower the former, or raise the latter",
        )
    return fine(f"a call that hangs ends before the leases of {lasts:g} s expire")


def blocked_loop(settings: Settings) -> Finding:
    """Check that a blocked event loop keeps its leases for longer than one lease."""
    blocked, lasts = settings.worker.loop_block_tolerance_seconds, settings.worker.lease_seconds
    if blocked < lasts:
        return warning(
            f"worker.loop_block_tolerance_seconds = {blocked:g} is below worker.lease_seconds = {lasts:g}: no effect",
            "raise it, or lower the lease",
        )
    return fine(f"a blocked event loop keeps its leases for {blocked:g} s")


def results(settings: Settings) -> Finding:
    """Check that results are stored for long enough to be read."""
    keep = settings.worker.result_ttl_seconds
    if keep < 1:
        return warning(
            f"worker.result_ttl_seconds = {keep:g}: `run.result()` may miss the end of a run", "set it to 60"
        )
    return fine(f"results are stored for {keep:g} s")


def pickles(settings: Settings) -> Finding:
    """Check that data in Redis cannot run code."""
    if settings.worker.accept_pickle:
        return warning(
            "worker.accept_pickle is on: pickles of stock arq clients are read, of plain types alone",
            "let clients send JSON, and turn it off",
        )
    return fine("payloads are JSON")


# --- Redis


def redis_version(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that Redis has the commands that Longhaul uses."""
    version = str(redis.info.get("redis_version", "0"))
    name = f"Valkey {redis.info['valkey_version']}" if "valkey_version" in redis.info else f"Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        return wrong(f"{name} has no GETEX", "upgrade to Redis 6.2 or newer, or to Valkey")
    return fine(name)


def eviction(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that Redis evicts no keys."""
    policy = str(redis.info.get("maxmemory_policy", redis.config.get("maxmemory-policy", "noeviction")))
    if policy == "noeviction":
        return fine("noeviction")
    message, advice = f"maxmemory-policy is {policy}: Redis may evict jobs", "CONFIG SET maxmemory-policy noeviction"
    return wrong(message, advice) if redis.info.get("maxmemory") else warning(f"{message} if a limit is set", advice)


def memory(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that Redis has free memory for jobs."""
    limit, used = int(redis.info.get("maxmemory", 0)), int(redis.info.get("used_memory", 0))
    if limit and used > _FULL * limit:
        return wrong(
            f"{used:,} of {limit:,} bytes are used: when memory is full, nothing can be enqueued",
            "raise maxmemory, or find the largest keys: redis-cli --bigkeys",
        )
    return fine(f"{used:,} bytes are used" + (f" of {limit:,}" if limit else ", no limit"))


def persistence(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that jobs survive a restart of Redis."""
    broken = [
        name
        for name in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
        if redis.info.get(name, "ok") != "ok"
    ]
    if broken:
        return wrong(f"Redis cannot persist its data ({', '.join(broken)})", "check its log and its disk")
    if not redis.info.get("aof_enabled") and redis.config.get("save") == "":
        return warning(
            "Redis stores nothing on disk: a restart loses waiting jobs, except walks in the ledger",
            "CONFIG SET appendonly yes, if waiting jobs matter",
        )
    return fine("an append-only file" if redis.info.get("aof_enabled") else "snapshots")


def redis_role(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that Redis accepts writes, and scripts over several keys."""
    if redis.info.get("role") != "master":
        return wrong("this Redis is a replica and accepts no writes", "set redis.url to the primary")
    if not redis.info.get("cluster_enabled"):
        return fine("a primary")
    if not parse_redis_url(settings.redis.url).cluster:
        return wrong("this Redis is a node of a cluster", "write redis+cluster:// in place of redis:// in redis.url")
    if not redis.info.get("connected_slaves"):
        return warning("the slot of the namespace has no replica", "add one: if this node dies, the queue is away")
    return fine(f"the primary of the namespace {settings.redis.prefix}*, with a replica")


def tracking(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that Redis announces changed keys."""
    if redis.no_tracking:
        return warning(
            f"Redis does not announce changes (CLIENT TRACKING: {redis.no_tracking}): workers poll every "
            f"{settings.worker.poll_interval_seconds:g} s",
            "grant CLIENT TRACKING to this user, and connect without a proxy",
        )
    return fine("Redis announces changes; keyspace events are not needed")


def idle_clients(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that Redis does not close the connection that listens for changes, which sends only every ten seconds."""
    limit = int(redis.config.get("timeout", "0"))
    if 0 < limit <= _PING_SECONDS:
        return wrong(f"timeout = {limit}: Redis closes connections after {limit} idle seconds", "CONFIG SET timeout 0")
    return fine("idle connections stay open")


def redis_clock(redis: RedisFacts, settings: Settings) -> Finding:
    """Check the clock of Redis: clients compute due times by their clocks, and Redis compares them with its own."""
    return _clock("Redis", redis.clock_ahead)


# --- PostgreSQL


def postgres_version(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that this version of PostgreSQL is tested."""
    major, name = postgres.version // 10_000, f"PostgreSQL {postgres.version_name}"
    if major < _OLDEST_POSTGRES:
        return wrong(f"{name} is too old", f"upgrade to {_OLDEST_POSTGRES} or newer")
    if major > _NEWEST_POSTGRES:
        return warning(f"{name} is newer than the versions that this release was tested with", "upgrade Longhaul")
    return fine(name + (", behind PgBouncer" if postgres.pooled else ""))


def ledger(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that the ledger's tables are up to date."""
    return wrong(postgres.not_migrated, "worker migrate") if postgres.not_migrated else fine("the ledger is up to date")


def postgres_role(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that PostgreSQL accepts writes."""
    if postgres.in_recovery:
        return wrong("this PostgreSQL is a replica and accepts no writes", "set database.url to the primary")
    return fine("a primary")


def connections(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that the server has enough connections for the pool of one worker."""
    most, there = _connections_of_one(settings), postgres.max_connections - postgres.reserved_connections
    if most > there and not postgres.pooled:
        return wrong(
            f"one worker may open {most} connections, the server has {there}",
            "lower worker.max_jobs or database.pool_size, or raise max_connections",
        )
    return fine(f"one worker opens {most} of {there} connections at most")


def frozen_workers(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that the locks of a frozen worker are released."""
    if settings.database.idle_in_transaction_timeout_seconds:
        return fine("an idle transaction is ended by the server")
    message, advice = "database.idle_in_transaction_timeout_seconds = 0", "set it to 60"
    if postgres.pooled:
        return wrong(f"{message}: behind PgBouncer, a frozen worker keeps its locks forever", advice)
    return warning(f"{message}: a frozen worker keeps its locks until its run is taken over", advice)


def throttles(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that the throttles have the rights that they need, and let a walk continue at some time."""
    rules = settings.throttle
    if rules.min_free_connections is not None and rules.min_free_connections >= postgres.max_connections:
        return wrong(
            f"throttle.min_free_connections = {rules.min_free_connections}: the server has "
            f"{postgres.max_connections}, so every walk waits forever",
            "lower it",
        )
    looks = (rules.max_active_sessions, rules.max_lock_waiters, rules.max_replication_lag_seconds)
    if any(rule is not None for rule in looks) and not postgres.may_see_sessions:
        return warning("throttles count sessions, but this role sees only its own", "GRANT pg_monitor to it")
    return fine("throttles have the rights that they need")


def upkeep(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that dead rows are removed, and commits are durable."""
    if not postgres.fsync:
        return warning(
            "fsync is off: a crash of the server can lose committed data",
            "turn it on, unless this is a test server",
        )
    if not postgres.autovacuum:
        return warning("autovacuum is off: dead rows of walks are not removed", "turn it on")
    return fine("fsync and autovacuum are on")


def outbox(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that runs which were enqueued in transactions reach the queue."""
    state = postgres.outbox
    if state is None:
        return warning("the ledger has no outbox yet", "worker migrate")
    waiting = f"{state.waiting:,} run{' waits' if state.waiting == 1 else 's wait'} in the outbox"
    if state.waiting:
        waiting += f", the oldest for {state.oldest_seconds:,.0f} s"
    if state.refused:
        return wrong(
            f"{state.refused:,} rows of worker.outbox cannot be relayed: {state.problem}; {waiting}",
            "SELECT id, run_id, job, problem FROM worker.outbox WHERE problem IS NOT NULL; delete a row, or remove "
            "the cause and set its problem to NULL",
        )
    if state.oldest_seconds > _RELAY_SECONDS:
        return warning(waiting, "start a worker with worker.relay, and check that it reaches Redis; see its log")
    return fine(waiting)


def walks(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that the walks of the last days have the indexes that they need."""
    missing = postgres.missing_indexes
    if not missing:
        return fine("the walks of the last 7 days have their indexes")
    shown = "; ".join(one.problem for one in missing[:_MOST_KEYS])
    more = f"; and {len(missing) - _MOST_KEYS} more" if len(missing) > _MOST_KEYS else ""
    return warning(shown + more, "; ".join(one.cure for one in missing[:_MOST_KEYS]))


def collations(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that indexes on texts have the order of the collations that are in use."""
    if not postgres.changed_collations:
        return fine("collations have their recorded versions")
    return wrong(
        "; ".join(postgres.changed_collations[:_MOST_KEYS]) + "; walks by such a text are refused",
        "REINDEX DATABASE CONCURRENTLY, and then the ALTER statements",
    )


def postgres_clock(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check the clock of PostgreSQL."""
    return _clock("PostgreSQL", postgres.clock_ahead)


def all_connections(redis: RedisFacts, postgres: PostgresFacts, settings: Settings) -> Finding:
    """Check that the server has enough connections for the pools of all running workers."""
    most = redis.workers * _connections_of_one(settings)
    there = postgres.max_connections - postgres.reserved_connections
    if most > there and not postgres.pooled:
        return warning(
            f"{redis.workers} workers may open {most} connections, the server has {there}",
            "lower worker.max_jobs or database.pool_size, put PgBouncer in front, or raise max_connections",
        )
    return fine(f"{redis.workers} workers open {most} of {there} connections at most")


def redis_keys(redis: RedisFacts, settings: Settings) -> Finding:
    """Check that the keys have the types and the values that the schema gives them."""
    if not redis.key_problems:
        return fine("keys have the types and values of the schema")
    shown = [f"{one.key} {one.problem}" for one in redis.key_problems[:_MOST_KEYS]]
    more = len(redis.key_problems) - len(shown)
    cures = [f"redis-cli {one.cure}" for one in redis.key_problems[:_MOST_KEYS]]
    return wrong("; ".join(shown) + (f"; and {more} more" if more else ""), "; ".join(cures))


def _connections_of_one(settings: Settings) -> int:
    """Return the most connections of one worker: those of its pool, of its relay, and of its metrics."""
    return settings.pool_size + settings.max_overflow + settings.worker.relay + 2 * (settings.metrics.port is not None)


def _clock(whose: str, ahead: float) -> Finding:
    if abs(ahead) > _CLOCK_SECONDS:
        return wrong(
            f"the clock of {whose} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this one",
            "synchronize both hosts by NTP",
        )
    return fine(f"both clocks agree within {_CLOCK_SECONDS:g} s")


OF_SETTINGS: dict[str, Callable[[Settings], Finding]] = {
    "pool": pool,
    "lock timeout": lock_timeout,
    "statement timeout": statement_timeout,
    "lease": lease,
    "blocked loop": blocked_loop,
    "results": results,
    "pickles": pickles,
}
OF_REDIS: dict[str, Callable[[RedisFacts, Settings], Finding]] = {
    "version": redis_version,
    "role": redis_role,
    "eviction": eviction,
    "memory": memory,
    "persistence": persistence,
    "tracking": tracking,
    "idle clients": idle_clients,
    "clock": redis_clock,
    "keys": redis_keys,
}
OF_POSTGRES: dict[str, Callable[[PostgresFacts, Settings], Finding]] = {
    "version": postgres_version,
    "role": postgres_role,
    "ledger": ledger,
    "connections": connections,
    "frozen workers": frozen_workers,
    "throttles": throttles,
    "upkeep": upkeep,
    "outbox": outbox,
    "walks": walks,
    "collations": collations,
    "clock": postgres_clock,
}
