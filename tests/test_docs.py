"""Runs every code block of the README and of docs/: Python against real servers, commands one by one."""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sentry_sdk
import typer.main
from redis.asyncio import Redis

import jobs.models
from tests.support.command_line import run_here
from tests.support.fork_server import ForkServer
from tests.support.workers import with_worker
from worker import Client, Job, Settings, discover
from worker.cli import app
from worker.launch import run_until_drained
from worker.queue import keys
from worker.runtime.worker import Worker
from worker.settings import describe_all
from worker.testing import JobRunner, Recorder
from worker.types import Database, Registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Pages without blocks, whose links are checked all the same.
ROOT_PAGES = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
#: The kinds of documentation whose every page shows something that can be run.
RUNNABLE_KINDS = {"how-to", "maintenance"}
#: Pages whose commands have a test of their own, which looks at each answer: tests/test_redis_cli.py.
TESTED_APART = {ROOT / "docs" / "redis-cli.md"}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: Languages with a test of their own (tests/queue/test_typescript.py), and pseudocode.
_OTHER_LANGUAGES = {"typescript", "go"}
_NOT_CODE = {
    "text",
    "toml",
    "ini",
    "yaml",
    "json",
    *_OTHER_LANGUAGES,
}  # pictures, output, and settings, which have a test of their own below


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return str(page.relative_to(ROOT))


@dataclass
class Block:
    """A code block and its place."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text[: match.start()].count("\n") + 2, match[1], match[2]) for match in _FENCE.finditer(text)]


class Reader:
    """Runs the blocks of one page in order, as a reader would."""

    def __init__(self, names: dict[str, Any], registry: Registry, redis: Redis) -> None:
        self._names = names
        self._registry = registry
        self._redis = redis

    async def follow(self, block: Block) -> None:
        """Run a block."""
        if block.language == "python":
            await self._python(block)
        elif block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                command = shlex.split(line, comments=True)
                if command:
                    await self._command(command, f"{name_of(block.page)}:{block.line}: {line}")
        elif block.language not in _NOT_CODE:
            pytest.fail(f"{name_of(block.page)}:{block.line}: blocks of {block.language} cannot be run")

    async def _python(self, block: Block) -> None:
        place = f"{name_of(block.page)}:{block.line}"
        linecache.cache[place] = (len(block.text), None, block.text.splitlines(keepends=True), place)
        code = compile(block.text, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, self._names)
        if inspect.isawaitable(result):
            await result
        for value in list(self._names.values()):  # the worker learns the jobs that the page defines
            if isinstance(value, Job):
                self._registry._jobs[value.name] = value

    async def _command(self, command: list[str], place: str) -> None:
        if command[0] == "redis-cli":
            await self._redis.execute_command(*command[1:])
        elif command[0] == ".":
            assert (ROOT / command[1]).exists() or os.environ.get("VIRTUAL_ENV") is None, place
        elif command[0] == "make":
            ran = subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True, text=True)
            assert ran.returncode == 0, f"{place}: {ran.stderr}"
        elif command[0] in ("worker", "python"):
            ran = await asyncio.to_thread(_run, command)  # the worker lives in this loop
            assert ran.returncode == 0, f"{place}: {ran.stderr}"
        else:
            pytest.fail(f"{place}: {command[0]} cannot be run")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    if command[0] == "worker" and command[1] != "run":
        return run_here(command[1:], "", dict(os.environ))
    module, *arguments = command[2:] if command[:2] == ["python", "-m"] else command
    return ForkServer.get().run(module, *arguments, env=dict(os.environ))


@pytest_asyncio.fixture
async def reader(
    database: Database,
    fast: Settings,
    redis: Redis,
    client: Client,
    enqueued: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Reader]:
    """A reader with a running worker, and with the tables of the jobs."""
    metadata = jobs.models.Base.metadata
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    monkeypatch.setenv("DATABASE_URL", fast.database.url)
    monkeypatch.setenv("REDIS_URL", fast.redis.url)
    registry = Registry(one for one in discover(["jobs"]).values() if not one.schedule)
    # Not `running`: the registry gets the jobs that the page defines later.
    started: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    # Runs of `run_job` have no lease that this worker could see: it must not take a slow one for lost.
    settings = with_worker(fast, name="docs", lease_seconds=60.0)
    run = run_until_drained(settings, registry, on_worker=started.set_result)
    task = asyncio.create_task(run)
    worker = await started
    run_job = JobRunner(database, fast)
    ctx = run_job.context("docs")
    names = {"__name__": "docs", "ctx": ctx, "client": client, "run_job": run_job, "enqueued": enqueued}
    yield Reader(names, registry, redis)
    worker.drain()
    await task
    await ctx._attempt.close()
    for value in names.values():
        if isinstance(value, Database):
            await value.close()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in TESTED_APART and blocks(page)], ids=lambda page: name_of(page)
)
async def test_every_block_of_a_page_runs(reader: Reader, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sentry's integrations would change the classes of other libraries for all tests that follow.
    alone = partial(sentry_sdk.init, default_integrations=False, auto_enabling_integrations=False)
    monkeypatch.setattr(sentry_sdk, "init", alone)
    for block in blocks(page):
        await reader.follow(block)


def test_every_how_to_guide_shows_a_block() -> None:
    empty = [name_of(page) for page in PAGES if page.parent.name in RUNNABLE_KINDS and not blocks(page)]
    assert not empty, f"guides that show nothing: {', '.join(empty)}"


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: name_of(page))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_the_page_of_keys_has_every_key_in_redis() -> None:
    page = (ROOT / "docs" / "reference" / "keys.md").read_text(encoding="utf-8")
    assert keys.as_markdown() in page, "write worker.queue.keys.as_markdown() into docs/reference/keys.md"


def test_the_page_of_settings_has_every_setting() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert describe_all() in page, "write worker.settings.describe_all() to the end of docs/reference/settings.md"


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    table = set(re.findall(r"`worker ([a-z]+)`", page.split("## Exit codes")[0].split("## Commands")[1]))
    assert table == set(typer.main.get_command(app).commands), "docs/reference/cli.md lists other commands"


def build_site(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site, as `make docs` does."""
    # Not -q: mkdocs counts the warnings that --strict fails on where it logs them.
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    ran = build_site(ROOT / "mkdocs.yml", tmp_path / "site")
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "site" / "reference" / "api.html").read_text(encoding="utf-8")
    assert 'id="worker.JobContext.chunks"' in page
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert not [url for url in loaded if "canonical" not in url], loaded


@pytest.mark.parametrize(
    "text",
    [
        "[a page](no-page.md) [a heading](index.md#no-heading) [a name][worker.no_name]",
        pytest.param("::: worker.no_object", marks=pytest.mark.long),  # ends the build at once
    ],
    ids=["links", "object"],
)
def test_the_site_does_not_build_with_a_dead_link(tmp_path: Path, text: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# One page\n\n{text}\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md]\n")
    ran = build_site(config, tmp_path / "site")
    assert ran.returncode != 0
    for dead in re.findall(r"no[-_]\w+", text):
        assert dead in ran.stderr
