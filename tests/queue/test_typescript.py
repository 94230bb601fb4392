"""The TypeScript of docs/how-to/enqueue-from-another-service.md: type-checked, and run against a worker."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.workers import working
from worker import JobContext, Settings, job
from worker.queue.scripts import script

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "enqueue-from-another-service.md"
PACKAGES = ("ioredis@5", "typescript@5", "@types/node@20")
seen: list[object] = []


@job
async def retire_hamlets(ctx: JobContext, below: int) -> int:
    """Note the call, in place of the job of the page."""
    seen.append((below, ctx.headers.get("tenant")))
    return below + 1


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of node with the code of the page."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", *PACKAGES]
    installed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if installed.returncode:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {installed.stderr[-300:]}")
    blocks = re.findall(r"^```typescript\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    (tmp_path / "example.mts").write_text("\n".join(blocks), encoding="utf-8")
    (tmp_path / "enqueue.lua").write_text(script("enqueue"), encoding="utf-8")
    return tmp_path


@pytest.mark.long
@pytest.mark.usefixtures("database")
async def test_the_client_in_typescript_enqueues_waits_and_cancels(project: Path, fast: Settings, redis: Redis) -> None:
    seen.clear()
    options = ("--strict", "--module", "nodenext", "--target", "es2022", "--types", "node")
    compiled = await asyncio.to_thread(
        subprocess.run,
        [project / "node_modules" / ".bin" / "tsc", *options, "example.mts"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert compiled.returncode == 0, compiled.stdout
    async with working(fast, retire_hamlets):
        ran = await asyncio.to_thread(
            subprocess.run,
            ["node", "example.mjs"],
            cwd=project,
            env={**os.environ, "REDIS_URL": fast.redis.url},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["501", "true false hamlets-tonight true"]
    assert seen[0] == (500, "north")
