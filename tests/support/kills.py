"""Kills a process from outside at each of several moments, and starts it again."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from worker import Settings

ROOT = Path(__file__).parents[2]


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
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        if attempt < kills:
            for _ in range(chance.randint(1, 3)):
                if not await process.stdout.readline():
                    break
            await asyncio.sleep(chance.uniform(0, 0.01))  # before, in, or after the commit
            if process.returncode is None:
                process.kill()
        out, _ = await process.communicate()
        last = out.decode().strip().rpartition("\n")[2] or last
        if attempt == kills:
            assert process.returncode == 0, out.decode()
    return last
