"""Two Valkey servers with a Sentinel that watches them, all with passwords."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.support.waiting import until
from worker.embedded import process
from worker.embedded.valkey import EmbeddedValkey, program

PASSWORD, SENTINEL_PASSWORD = "p@ss/word", "s:e&n"


class Watched:
    """Start with `start`, end with `stop`.

    Args:
        home: folder for all.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self.servers = [EmbeddedValkey(home, name=name) for name in ("first", "second")]
        self._sentinel: subprocess.Popen[bytes] | None = None
        self.port = process.free_port()
        self.asking: Any = None

    @property
    def url(self) -> str:
        """The URL for a worker; the first of its Sentinels does not exist."""
        return (
            f"redis+sentinel://:p%40ss%2Fword@127.0.0.1:1,127.0.0.1:{self.port}/the-primary/0"
            f"?sentinel_password=s%3Ae%26n"
        )

    async def start(self) -> None:
        """Start them, and wait until the Sentinel knows both servers."""
        first, second = self.servers
        for server in self.servers:
            server.start()
            async with Redis(port=server.port) as plain:
                await plain.config_set("repl-diskless-sync-delay", 0)
                await plain.config_set("masterauth", PASSWORD)
                await plain.config_set("requirepass", PASSWORD)
        async with Redis(port=second.port, password=PASSWORD) as replica:
            await replica.replicaof("127.0.0.1", first.port)
        conf = self._home / "sentinel.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._home}\nrequirepass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor the-primary 127.0.0.1 {first.port} 1\nsentinel auth-pass the-primary {PASSWORD}\n"
            "sentinel down-after-milliseconds the-primary 1000\n"
        )
        command = [str(program()), str(conf), "--sentinel"]
        log = self._home / "sentinel.log"
        self._sentinel = process.start(command, log=log, user=None, death_signal=signal.SIGTERM)
        self.asking = Redis(port=self.port, password=SENTINEL_PASSWORD)

        async def knows_both() -> bool:
            try:
                [seen] = await self.asking.execute_command("SENTINEL", "REPLICAS", "the-primary")
            except (RedisConnectionError, ValueError):
                return False
            return "master-link-status" in (seen if isinstance(seen, dict) else {}) or b"ok" in seen

        await until(knows_both)

    async def fail_over(self) -> None:
        """Promote the other server, once it has all writes, and wait until it is the primary."""
        before = await self.primary()

        async def accepted() -> bool:
            try:
                return bool(await self.asking.execute_command("SENTINEL", "FAILOVER", "the-primary", "COORDINATED"))
            except ResponseError as error:
                assert "NOGOODSLAVE" in str(error)
                return False

        async def is_another() -> bool:
            return await self.primary() != before

        await until(accepted)
        await until(is_another)

    async def primary(self) -> int:
        """Return the port of the primary."""
        found = await self.asking.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "the-primary")
        return int(found[1])

    async def stop(self) -> None:
        """End the servers."""
        if self.asking is not None:
            await self.asking.aclose()
        if self._sentinel is not None:
            process.stop(self._sentinel, signal.SIGKILL)
        for server in self.servers:
            server.stop(immediate=True)
