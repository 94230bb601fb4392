"""Jobs that do not hear their timeout, and what they record."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

seen: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    """Clear the records of the previous test."""
    seen.clear()
    seen.update(tries=[], cleaned=[], ended=[], go=asyncio.Event(), second=asyncio.Event(), begun=asyncio.Event())
    seen.update(thread=threading.Event())


async def is_true(look: Any) -> bool:
    return bool(look())
