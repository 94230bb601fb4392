"""Kills a process from outside at each of several moments, and starts it again."""

from __future__ import annotations

import asyncio
import random

from tests.support.fork_server import spawn_with_pipe
from worker import Settings


async def run_under_kills(
    settings: Settings, module: str, *arguments: str, kills: int, seed: int, **environment: str
) -> str:
    """Run a module that prints a line for each batch, and kill it by SIGKILL some lines and milliseconds later.

    Args:
        settings: The servers.
        module: The module.
        arguments: Its arguments.
        kills: The number of kills. The process then runs to its end.
        seed: Of the moments.
        environment: More environment variables.

    Returns:
        The last line that it printed.
    """
    chance = random.Random(seed)
    environment |= {"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url, "PATH": ""}
    last = ""
    for attempt in range(kills + 1):
        process, output = await spawn_with_pipe(module, *arguments, env=environment)
        if attempt < kills:
            for _ in range(chance.randint(1, 3)):
                if not await output.readline():
                    break
            await asyncio.sleep(chance.uniform(0, 0.01))  # before, in, or after the commit
            process.kill()
        out = await output.read()
        code = await asyncio.to_thread(process.wait)
        last = out.decode().strip().rpartition("\n")[2] or last
        if attempt == kills:
            assert code == 0, out.decode()
    return last
