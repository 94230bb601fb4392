"""The types that `mypy --strict` infers in a job and in a client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from sqlalchemy import func, select
from sqlalchemy.orm import joinedload

from jobs.accounts import transfer_funds
from jobs.models import Post, User
from jobs.users import deactivate_dormant_users
from worker import Client, JobContext, Run, job
"""

ACCEPTED = """
@job
async def look(ctx: JobContext, days: int = 1) -> int:
    async for batch in ctx.chunks(select(User).options(joinedload(User.posts)), size=10):
        for user in batch:
            assert_type(user, User)
        assert_type(batch[0], User)
    async for columns in ctx.chunks(select(User.id, User.name)):
        for pair in columns:
            assert_type(pair, tuple[int, str])
    async for ids in ctx.chunks(select(User.id)):
        for one in ids:
            assert_type(one, int)
    async for partition in ctx.stream(select(Post.author_id, func.count()).group_by(Post.author_id)):
        for group in partition:
            assert_type(group, tuple[int, int])
    return ctx.rows_done


async def enqueue(client: Client) -> None:
    run = await client.enqueue(look, days=2)
    assert_type(run, Run[int])
    assert_type(await run.result(), int)
    later = await client.enqueue(transfer_funds.options(delay=3), 1, 2, Decimal(1))
    assert_type(await later.result(), Decimal)
    by_name = await client.enqueue("look", days=2)
    assert by_name.id
"""

REFUSED = [
    ('await client.enqueue(deactivate_dormant_users, days="many")', "call-overload"),
    ("await client.enqueue(deactivate_dormant_users, weeks=1)", "call-overload"),
    ("await client.enqueue(transfer_funds, 1, 2)", "call-overload"),
    ("text: str = await (await client.enqueue(deactivate_dormant_users)).result()", "assignment"),
]


def check(folder: Path, source: str) -> str:
    """Return mypy's output for a file outside the project."""
    file = folder / "example.py"
    file.write_text(PREAMBLE + source)
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", str(file)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={"MYPYPATH": ".", "PATH": ""},
    )
    return ran.stdout


def test_jobs_and_clients_are_typed(tmp_path: Path) -> None:
    assert "Success" in check(tmp_path, ACCEPTED), check(tmp_path, ACCEPTED)


def test_mypy_refuses_what_the_client_would(tmp_path: Path) -> None:
    lines = "\n".join(f"    {line}" for line, _ in REFUSED)
    told = check(tmp_path, f"\nasync def wrong(client: Client) -> None:\n{lines}\n")
    first = len(PREAMBLE.splitlines()) + 3
    for number, (line, code) in enumerate(REFUSED, start=first):
        found = [text for text in told.splitlines() if f"example.py:{number}:" in text and f"[{code}]" in text]
        assert found, f"{line}: mypy says nothing of it:\n{told}"


@pytest.mark.parametrize("name", ["worker", "jobs"])
def test_the_packages_are_marked_as_typed(name: str) -> None:
    assert (Path(__file__).parent.parent / name / "py.typed").exists()
