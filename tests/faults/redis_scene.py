"""A worker on a Redis of its own, by a URL."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import gated as jobs
from worker import Settings
from worker.db.engine import Database
from worker.embedded.directories import make_home
from worker.embedded.valkey import EmbeddedValkey
from worker.settings import parse_redis_url


@pytest.fixture(name="home")
def make_folder() -> Iterator[Path]:
    """A folder for servers of one test."""
    made = make_home()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(name="fast")
def log_and_forget(fast: Settings, database: Database, caplog: pytest.LogCaptureFixture) -> Settings:
    """Short times, a database, and a log."""
    jobs.forget()
    caplog.set_level(logging.INFO, "longhaul")
    return fast


def at(settings: Settings, url: str) -> Settings:
    """Return settings with another Redis."""
    parse_redis_url(url)
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"url": url})})


@pytest.fixture(name="valkey")
def start_valkey(home: Path) -> Iterator[EmbeddedValkey]:
    """A server of this test, with a unix socket. It has no TLS, so that a proxy stands before it where that matters."""
    server = EmbeddedValkey(home, settings={"unixsocket": str(home / "valkey.sock")})
    server.start()
    yield server
    server.stop(immediate=True)
