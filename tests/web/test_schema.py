"""The API against its own description: schemathesis makes requests from the document, and checks each answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from demo.page_server import serving
from tests.support.authors import fill_authors
from tests.support.workers import with_web, working
from tests.web.jobs import JOBS, walk
from worker import Client, Settings
from worker.db.engine import Database
from worker.web import web_app
from worker.web.openapi import make_document
from worker.web.table import OPERATIONS

_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method"
)


def test_the_document_has_exactly_the_routes_of_the_table() -> None:
    document = make_document(OPERATIONS)
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(one.method, one.path) for one in OPERATIONS}
    assert len({one.name for one in OPERATIONS}) == len(OPERATIONS)
    for one in OPERATIONS:
        described_one = document["paths"][one.path][one.method.lower()]
        assert {"500", "503"} <= described_one["responses"].keys()
        has_role = one.role is not None
        assert ({"401", "403", "429"} <= described_one["responses"].keys()) == ("security" in described_one) == has_role
        assert ("422" in described_one["responses"]) != one.is_for_monitors
        assert ("requestBody" in described_one) == (one.body is not None) == (one.method == "POST")


def test_the_document_describes_the_answers_to_monitoring_systems() -> None:
    document = make_document(OPERATIONS)
    live, ready, metrics = (document["paths"][path]["get"]["responses"] for path in ("/healthz", "/readyz", "/metrics"))
    assert live["200"]["content"] == ready["200"]["content"]
    name = ready["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][name]["properties"]["status"]["enum"] == ["ok", "failing"]
    assert ready["503"]["content"].keys() == {"application/json", "application/problem+json"}
    assert metrics["200"]["content"].keys() == {"text/plain"}


@pytest.mark.long
async def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(
    settings: Settings, fast: Settings, database: Database, client: Client, redis: Redis, tmp_path: Path
) -> None:
    await fill_authors(database, 30)
    async with working(fast, *JOBS):
        await (await client.enqueue(walk.options(id="w"))).result(timeout=60)
    settings = with_web(settings, port=0)
    app = web_app(settings, jobs=JOBS)
    async with serving(settings, app) as url:
        command: list[Any] = [Path(sys.executable).parent / "schemathesis", "run", f"{url}/openapi.json"]
        command += ["--url", url, "--checks", _CHECKS, "--max-examples", "30", "--phases", "examples,coverage,fuzzing"]
        command += ["--exclude-path-regex", "events$", "--generation-database", "none", "--workers", "1"]
        ran = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-1000:]
