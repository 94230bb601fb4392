"""Scrapes of metrics, parsed."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import until
from worker import Settings

_PORT = re.compile(r"serving metrics host=\S+ port=(\d+)")


def with_metrics(settings: Settings, **values: object) -> Settings:
    """Return settings with metrics on a free port of this machine."""
    given = {"port": 0, "refresh_seconds": 0.05, **values}
    return settings.model_copy(update={"metrics": settings.metrics.model_copy(update=given)})


async def served_at(read_log: object) -> str:
    """Return the URL that a log names, when it does; `read_log` returns the text so far."""

    async def found() -> str:
        match = _PORT.search(read_log())  # type: ignore[operator]
        return "" if match is None else f"http://127.0.0.1:{match[1]}"

    return await until(found)


async def scrape(url: str) -> str:
    """Return the text of a scrape."""
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(f"{url}/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


async def probe(url: str, path: str) -> tuple[int, dict[str, str]]:
    """Return the status and the checks of a probe."""
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(f"{url}/{path}")
    return answer.status_code, answer.json()["checks"]


def parse(text: str) -> dict[tuple[str, ...], float]:
    """Return the values of a scrape, by name and the values of the labels in the order of their names."""
    values: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in values, key
            values[key] = sample.value
    return values


async def check_by_promtool(text: str) -> None:
    """Check a scrape by promtool; skip the test if there is none."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not in PATH: install Debian's package prometheus")
    command = [tool, "check", "metrics"]
    ran = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, ""), ran.stdout + ran.stderr
