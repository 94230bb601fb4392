"""The checks: each looks at one thing, and says what is so and what to do."""

from __future__ import annotations

from collections.abc import Callable

from worker.doctor.facts import Facts, PostgresFacts, RedisFacts, gather
from worker.doctor.finding import Finding, fine, warning, wrong
from worker.settings import Settings

_OLDEST_REDIS = (6, 2)  # GETEX
_OLDEST_POSTGRES, _NEWEST_POSTGRES = 14, 18
_CLOCK_SECONDS = 2.0
_FULL = 0.9
_PING_SECONDS = 10


async def examine(settings: Settings) -> dict[str, Finding]:
    """Ask both servers, and return what each check has found, by its name."""
    return findings(await gather(settings))


def findings(facts: Facts) -> dict[str, Finding]:
    """Return what each check has found; those of a server that does not answer are left out."""
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
    """The jobs can be loaded."""
    if isinstance(facts.jobs, str):
        return wrong(facts.jobs, "correct worker.packages, or the package")
    if not facts.jobs:
        return wrong("no @job function was found", "name their packages in worker.packages")
    return fine(f"{facts.jobs} jobs")


# --- settings


def pool(settings: Settings) -> Finding:
    """Jobs do not wait for each other's connections."""
    said = settings.pool_warning()
    if said is None:
        return fine(f"{settings.pool_size} connections and {settings.max_overflow} more for a moment")
    return warning(said, "raise database.pool_size, or lower worker.max_jobs")


def lock_timeout(settings: Settings) -> Finding:
    """A wait for a lock ends as such, before its statement does."""
    lock, statement = settings.database.lock_timeout_seconds, settings.database.statement_timeout_seconds
    if lock and statement and lock >= statement:
        return wrong(
            f"database.lock_timeout_seconds = {lock:g} is never reached: statements end after {statement:g} s",
            "lower it below database.statement_timeout_seconds",
        )
    return fine("a wait for a lock ends before its statement" if lock else "waits for locks have no limit of their own")


def statement_timeout(settings: Settings) -> Finding:
    """A statement may take as long as a batch aims at."""
    statement, target = settings.database.statement_timeout_seconds, settings.batch.target_seconds
    if statement and statement <= 2 * target:
        return wrong(
            f"database.statement_timeout_seconds = {statement:g} ends batches that aim at {target:g} s",
            "raise it to many times batch.target_seconds",
        )
    return fine("statements may take as long as batches do")


def lease(settings: Settings) -> Finding:
    """A call of Redis that hangs ends before the leases of this worker do."""
    lasts, call = settings.worker.lease_seconds, settings.redis.command_timeout_seconds
    if call > lasts:
        return wrong(
            f"redis.command_timeout_seconds = {call:g} outlasts worker.lease_seconds = {lasts:g}: one call that hangs "
            f"loses every job of the worker",
            "lower the former, or raise the latter",
        )
    return fine(f"leases of {lasts:g} s outlast a call that hangs")


def blocked_loop(settings: Settings) -> Finding:
    """A blocked loop keeps its leases for longer than they last by themselves."""
    blocked, lasts = settings.worker.loop_block_tolerance_seconds, settings.worker.lease_seconds
    if blocked < lasts:
        return warning(
            f"worker.loop_block_tolerance_seconds = {blocked:g} is below worker.lease_seconds = {lasts:g}: no effect",
            "raise it, or lower the lease",
        )
    return fine(f"a blocked loop keeps its leases for {blocked:g} s")


def results(settings: Settings) -> Finding:
    """Who waits for a result finds it."""
    keep = settings.worker.result_ttl_seconds
    if keep < 1:
        return warning(
            f"worker.result_ttl_seconds = {keep:g}: `run.result()` may never see an end", "keep them for a minute"
        )
    return fine(f"results are kept for {keep:g} s")


def pickles(settings: Settings) -> Finding:
    """Nothing in Redis can run code."""
    if settings.worker.accept_pickle:
        return warning(
            "worker.accept_pickle: whoever can write to Redis can run any code here",
            "let clients send JSON, turn it off",
        )
    return fine("payloads are JSON")


# --- Redis


def redis_version(redis: RedisFacts, settings: Settings) -> Finding:
    """It has the commands that we use."""
    version = str(redis.info.get("redis_version", "0"))
    name = f"Valkey {redis.info['valkey_version']}" if "valkey_version" in redis.info else f"Redis {version}"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
        return wrong(f"{name} has no GETEX", "upgrade to Redis 6.2 or newer, or to Valkey")
    return fine(name)


def eviction(redis: RedisFacts, settings: Settings) -> Finding:
    """No key is thrown away."""
    policy = str(redis.info.get("maxmemory_policy", redis.config.get("maxmemory-policy", "noeviction")))
    if policy == "noeviction":
        return fine("noeviction")
    says, advice = f"maxmemory-policy is {policy}: Redis may throw jobs away", "CONFIG SET maxmemory-policy noeviction"
    return wrong(says, advice) if redis.info.get("maxmemory") else warning(f"{says}, were there a limit", advice)


def memory(redis: RedisFacts, settings: Settings) -> Finding:
    """There is room for jobs."""
    limit, used = int(redis.info.get("maxmemory", 0)), int(redis.info.get("used_memory", 0))
    if limit and used > _FULL * limit:
        return wrong(
            f"{used:,} of {limit:,} bytes are taken: when they are full, nothing can be enqueued",
            "raise maxmemory, or look for what takes it: redis-cli --bigkeys",
        )
    return fine(f"{used:,} bytes are taken" + (f" of {limit:,}" if limit else ", no limit"))


def persistence(redis: RedisFacts, settings: Settings) -> Finding:
    """Jobs outlive a restart."""
    broken = [
        name
        for name in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")
        if redis.info.get(name, "ok") != "ok"
    ]
    if broken:
        return wrong(f"Redis cannot write its file ({', '.join(broken)})", "look at its log and at its disk")
    if not redis.info.get("aof_enabled") and redis.config.get("save") == "":
        return warning(
            "Redis keeps nothing on disk: after a restart, jobs that no worker has begun are gone; walks come back",
            "CONFIG SET appendonly yes, where that matters",
        )
    return fine("an append-only file" if redis.info.get("aof_enabled") else "snapshots")


def redis_role(redis: RedisFacts, settings: Settings) -> Finding:
    """It takes writes, and scripts over several keys."""
    if redis.info.get("role") != "master":
        return wrong("this Redis is a replica, and takes no writes", "give the URL of the primary in redis.url")
    if redis.info.get("redis_mode") == "cluster":
        return wrong("this Redis is a cluster: the queue's scripts need all keys on one server", "use a single server")
    return fine("a primary")


def tracking(redis: RedisFacts, settings: Settings) -> Finding:
    """It tells of changes."""
    if redis.no_tracking:
        return warning(
            f"no word of changes (CLIENT TRACKING: {redis.no_tracking}): workers ask each "
            f"{settings.worker.poll_interval_seconds:g} s",
            "let this user have CLIENT TRACKING, without a proxy between",
        )
    return fine("it tells of changes; keyspace events are not needed")


def idle_clients(redis: RedisFacts, settings: Settings) -> Finding:
    """It does not close the watch, which says something each ten seconds only."""
    limit = int(redis.config.get("timeout", "0"))
    if 0 < limit <= _PING_SECONDS:
        return wrong(f"timeout {limit}: Redis closes connections that are idle so long", "CONFIG SET timeout 0")
    return fine("idle connections stay open")


def redis_clock(redis: RedisFacts, settings: Settings) -> Finding:
    """Both clocks agree: due times are of the client's, and what is due is of Redis's."""
    return _clock("Redis", redis.clock_ahead)


# --- PostgreSQL


def postgres_version(postgres: PostgresFacts, settings: Settings) -> Finding:
    """It is one that we are tested with."""
    major, name = postgres.version // 10_000, f"PostgreSQL {postgres.version_name}"
    if major < _OLDEST_POSTGRES:
        return wrong(f"{name} is too old", f"upgrade to {_OLDEST_POSTGRES} or newer")
    if major > _NEWEST_POSTGRES:
        return warning(f"{name} is newer than this version was tested with", "look for a newer version")
    return fine(name + (", PgBouncer before it" if postgres.pooled else ""))


def ledger(postgres: PostgresFacts, settings: Settings) -> Finding:
    """The ledger's tables are there."""
    return wrong(postgres.not_migrated, "worker migrate") if postgres.not_migrated else fine("the ledger is up to date")


def postgres_role(postgres: PostgresFacts, settings: Settings) -> Finding:
    """It takes writes."""
    if postgres.in_recovery:
        return wrong("this PostgreSQL is a replica, and takes no writes", "give the primary in database.url")
    return fine("a primary")


def connections(postgres: PostgresFacts, settings: Settings) -> Finding:
    """One worker's pool is not more than the server has."""
    most, there = settings.pool_size + settings.max_overflow, postgres.max_connections - postgres.reserved_connections
    if most > there and not postgres.pooled:
        return wrong(
            f"one worker may open {most} connections, the server has {there}",
            "lower worker.max_jobs or database.pool_size, or raise max_connections",
        )
    return fine(f"one worker opens {most} of {there} connections at most")


def frozen_workers(postgres: PostgresFacts, settings: Settings) -> Finding:
    """What a frozen worker has locked becomes free."""
    if settings.database.idle_in_transaction_timeout_seconds:
        return fine("a transaction that nobody goes on with ends by itself")
    says, advice = "database.idle_in_transaction_timeout_seconds = 0", "set it to 60"
    if postgres.pooled:
        return wrong(f"{says}: behind PgBouncer, a frozen worker keeps its locks for ever", advice)
    return warning(f"{says}: locks of a frozen worker end with its takeover only", advice)


def throttles(postgres: PostgresFacts, settings: Settings) -> Finding:
    """The throttles can see what they look at, and let a walk go on at some time."""
    rules = settings.throttle
    if rules.min_free_connections is not None and rules.min_free_connections >= postgres.max_connections:
        return wrong(
            f"throttle.min_free_connections = {rules.min_free_connections}: the server has "
            f"{postgres.max_connections}, and no walk ever goes on",
            "lower it",
        )
    looks = (rules.max_active_sessions, rules.max_lock_waiters, rules.max_replication_lag_seconds)
    if any(rule is not None for rule in looks) and not postgres.may_see_sessions:
        return warning("throttles count sessions, and this role sees its own only", "GRANT pg_monitor to it")
    return fine("throttles see what they look at")


def upkeep(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Dead rows go, and what is committed stays."""
    if not postgres.fsync:
        return warning(
            "fsync is off: a crash of the server can lose what was committed, and more",
            "turn it on, unless this is a server for tests",
        )
    if not postgres.autovacuum:
        return warning("autovacuum is off: walks leave dead rows that nobody takes away", "turn it on")
    return fine("fsync and autovacuum are on")


def postgres_clock(postgres: PostgresFacts, settings: Settings) -> Finding:
    """Both clocks agree: cron's due times are of this one."""
    return _clock("PostgreSQL", postgres.clock_ahead)


def all_connections(redis: RedisFacts, postgres: PostgresFacts, settings: Settings) -> Finding:
    """The pools of all workers that live are not more than the server has."""
    most = redis.workers * (settings.pool_size + settings.max_overflow)
    there = postgres.max_connections - postgres.reserved_connections
    if most > there and not postgres.pooled:
        return warning(
            f"{redis.workers} workers may open {most} connections, the server has {there}",
            "lower worker.max_jobs or database.pool_size, put PgBouncer between, or raise max_connections",
        )
    return fine(f"{redis.workers} workers open {most} of {there} connections at most")


def _clock(whose: str, ahead: float) -> Finding:
    if abs(ahead) > _CLOCK_SECONDS:
        return wrong(
            f"the clock of {whose} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this one",
            "let both hosts keep their time by NTP",
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
}
OF_POSTGRES: dict[str, Callable[[PostgresFacts, Settings], Finding]] = {
    "version": postgres_version,
    "role": postgres_role,
    "ledger": ledger,
    "connections": connections,
    "frozen workers": frozen_workers,
    "throttles": throttles,
    "upkeep": upkeep,
    "clock": postgres_clock,
}
