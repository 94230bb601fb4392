"""Spans of OpenTelemetry: from the enqueueing over attempts to batches, over borders of processes, and their links."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis

from tests.observe.traced_jobs import FILE, crawl, follow, observed, stumble, together, walk
from tests.support.authors import fill_authors
from tests.support.fork_server import ForkServer
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.embedded import Services
from worker.errors import RegistrationError
from worker.job.middleware import configured_middleware
from worker.observe.metrics import definitions
from worker.observe.tracing import has_span


class Spans:
    """The ended spans of this process."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def of(self, name: str, run_id: str | None = None) -> list[ReadableSpan]:
        """Return the spans of a name, in the order in which they began."""
        found = [one for one in self._exporter.get_finished_spans() if one.name == name]
        if run_id is not None:
            found = [one for one in found if attributes(one)["messaging.message.id"] == run_id]
        return sorted(found, key=lambda one: one.start_time or 0)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links(span: ReadableSpan, kind: str) -> list[tuple[int, int]]:
    found = [one for one in span.links if (one.attributes or {})["longhaul.link"] == kind]
    return [(one.context.trace_id, one.context.span_id) for one in found]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """The spans, by a provider for this test alone."""
    made = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.provider)
    yield made
    made.provider.shutdown()


def with_tracing(settings: Settings, **values: Any) -> Settings:
    tracing = settings.tracing.model_copy(update={"enabled": True, **values})
    return settings.model_copy(update={"tracing": tracing})


async def test_spans_lead_from_the_enqueueing_to_the_batches_and_along_a_chain_and_a_group(
    fast: Settings, database: Database, redis: Redis, spans: Spans
) -> None:
    await fill_authors(database, 30)
    settings = with_tracing(fast)
    async with Client(settings) as client, working(settings, walk, follow):
        run = await client.enqueue(walk.options(id="w1", then=follow.call()))
        assert await run.result(timeout=60) == 30
        followed = await run.next_runs[0].result(timeout=60)
        group = await client.group([follow.call(), follow.call()], then=follow.call(), id="g1")
        assert group.callback is not None
        await group.callback.result(timeout=60)

    [sent], [ran] = spans.of("enqueue walk"), spans.of("run walk")
    assert (sent.kind, ran.kind) == (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER)
    assert parent_of(ran) == ids(sent) and attributes(sent)["messaging.message.id"] == "w1"
    assert attributes(ran) == {
        "messaging.system": "longhaul",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "arq:queue",
        "messaging.message.id": "w1",
        "messaging.client.id": attributes(ran)["messaging.client.id"],
        "longhaul.job": "walk",
        "longhaul.attempt": 1,
        "longhaul.took_over": False,
        "longhaul.outcome": "succeeded",
        "longhaul.batches": 3,
        "longhaul.rows": 30,
    }
    batches = spans.of("batch walk")
    assert [(attributes(one)["longhaul.batch"], attributes(one)["longhaul.rows"]) for one in batches] == [
        (1, 10), (2, 10), (3, 10),
    ]  # fmt: skip
    assert {parent_of(one) for one in batches} == {ids(ran)}
    assert {(attributes(one)["db.system.name"], attributes(one)["longhaul.step"]) for one in batches} == {
        ("postgresql", "authors")
    }
    assert all((one.start_time or 0) < (one.end_time or 0) <= (ran.end_time or 0) for one in batches)

    [second] = spans.of("run follow", run.next_runs[0].id)
    assert parent_of(second) == ids(sent) and links(second, "followed_run") == [ids(ran)]
    [own] = [one for one in spans.of("own") if parent_of(one) == ids(second)]
    assert followed.split("-")[1] == f"{ids(own)[0]:032x}"

    members = [spans.of("run follow", f"g1:{place}")[0] for place in (1, 2)]
    [callback] = spans.of("run follow", "g1:then")
    assert sorted(links(callback, "followed_run")) == sorted(ids(one) for one in members)


@pytest.mark.parametrize("way", ["end", "break", "fail"])
async def test_the_body_of_a_batch_runs_in_the_span_of_the_batch(
    fast: Settings, database: Database, redis: Redis, spans: Spans, way: str
) -> None:
    await fill_authors(database, 30)
    settings = with_tracing(fast)
    async with Client(settings) as client, working(settings, observed):
        await (await client.enqueue(observed, way)).result(timeout=60)
    batches, runs = spans.of("batch observed"), spans.of("run observed")
    numbers = [attributes(one).get("longhaul.batch") for one in batches]
    assert numbers == {"end": [1, 2, 3], "break": [1, 2], "fail": [1, None, 2, 3, 4]}[way]  # the failed one is halved
    assert {parent_of(one) for one in batches} == {ids(one) for one in runs}
    failed = [one for one in batches if one.status.status_code is trace.StatusCode.ERROR]
    assert failed == ([batches[1]] if way == "fail" else [])
    assert {parent_of(one) for n in range(1, 5) for one in spans.of(f"in {n}")} == {ids(one) for one in batches}
    [after] = spans.of("after")
    # After `break`, the batch is open until it is committed at the end of the function.
    assert parent_of(after) == ids(batches[-1] if way == "break" else runs[-1])


async def test_attempts_are_linked_record_their_errors_and_end_with_their_outcome(
    fast: Settings, database: Database, redis: Redis, spans: Spans
) -> None:
    settings = with_tracing(fast)
    async with Client(settings) as client, working(settings, stumble):
        await (await client.enqueue(stumble.options(id="s1"), 1)).result(timeout=60)
        with pytest.raises(JobFailed):
            await (await client.enqueue(stumble.options(id="s2"), 9)).result(timeout=60)
    attempts = spans.of("run stumble", "s1")
    assert [attributes(one)["longhaul.outcome"] for one in attempts] == ["retry", "retry", "succeeded"]
    assert [links(one, "former_attempt") for one in attempts] == [[], [ids(attempts[0])], [ids(attempts[1])]]
    assert len({parent_of(one) for one in attempts}) == 1
    failed, _, succeeded = attempts
    [event] = failed.events
    assert (event.attributes or {})["exception.message"] == "stumbled 1"
    assert (failed.status.status_code, attributes(failed)["error.type"]) == (trace.StatusCode.ERROR, "ValueError")
    assert "stumbled 1" in (failed.status.description or "")
    assert succeeded.status.status_code is trace.StatusCode.UNSET
    *_, dead = spans.of("run stumble", "s2")
    assert (attributes(dead)["longhaul.outcome"], dead.status.status_code) == ("dead", trace.StatusCode.ERROR)


async def test_metrics_have_the_names_labels_and_values_of_those_for_prometheus(
    fast: Settings, database: Database, redis: Redis, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_authors(database, 30)
    reader = InMemoryMetricReader()
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", MeterProvider([reader]))
    async with Client(with_tracing(fast)) as client, working(with_tracing(fast), walk, stumble):
        await (await client.enqueue(walk)).result(timeout=60)
        with pytest.raises(JobFailed):
            await (await client.enqueue(stumble, 9)).result(timeout=60)
    found: dict[str, dict[tuple[Any, ...], Any]] = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert set(definitions.BY_NAME) >= {metric.name}
        for point in metric.data.data_points:
            labels = tuple((point.attributes or {})[label] for label in definitions.BY_NAME[metric.name].labels)
            value = point.count if isinstance(point, HistogramDataPoint) else point.value
            found.setdefault(metric.name, {})[labels] = value
    assert found[definitions.JOBS.name][("walk", "succeeded")] == 1
    assert found[definitions.JOBS.name][("stumble", "dead")] == 1
    assert found[definitions.ATTEMPTS.name] == {("walk",): 1, ("stumble",): 3}
    assert found[definitions.ROWS.name] == {("walk", "authors"): 30}
    assert found[definitions.BATCH_SECONDS.name] == {("walk",): 3}
    assert found[definitions.RUN_SECONDS.name] == {("walk",): 1, ("stumble",): 3}
    assert found[definitions.LATENCY_SECONDS.name][("walk", "arq:queue")] == 1


async def test_the_hands_of_a_walk_are_children_of_its_run(
    fast: Settings, database: Database, redis: Redis, spans: Spans
) -> None:
    await fill_authors(database, 400)
    settings = with_tracing(fast)
    async with Client(settings) as client, working(settings, together):
        await (await client.enqueue(together.options(id="p1"))).result(timeout=60)
    [ran] = spans.of("run together", "p1")
    hands = [one for one in spans.of("run together") if "longhaul.helps" in attributes(one)]
    assert hands and {(parent_of(one), attributes(one)["longhaul.helps"]) for one in hands} == {(ids(ran), "p1")}


def read_spans(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def test_a_takeover_in_another_process_is_linked_to_the_attempt_that_was_killed(
    fast: Settings, database: Database, redis: Redis, servers: Services, spans: Spans, tmp_path: Path
) -> None:
    await fill_authors(database, 30)
    file = tmp_path / "spans"
    tracing = {"LONGHAUL_TRACING__ENABLED": "true", "LONGHAUL_TRACING__SETUP": "tests.observe.traced_jobs:set_up"}
    worker = {"LONGHAUL_WORKER__LEASE_SECONDS": "1", "LONGHAUL_WORKER__PACKAGES": '["tests.observe.traced_jobs"]'}
    environment = servers.environment() | tracing | worker | {FILE: str(file)}

    async def killed_span() -> str | None:
        done, span = await redis.hmget("worker:run:c1", "rows", "span")
        return span.decode() if done == b"10" and span else None

    with (tmp_path / "log").open("wb") as log:

        def start(**more: str) -> Any:
            out = log.fileno()
            return ForkServer.get().spawn("worker", "run", env=environment | more, stdout=out, stderr=out)

        first = start(CRAWL_WAITS="yes")
        async with Client(with_tracing(fast)) as client:
            run = await client.enqueue(crawl.options(id="c1"))
            before = await until(killed_span)
            first.kill()
            first.wait()
            second = start()
            assert await run.result(timeout=120) == 30
        second.terminate()
        second.wait()

    [sent] = spans.of("enqueue crawl")
    [ran] = [one for one in read_spans(file) if one["name"] == "run crawl"]
    assert ran["context"]["trace_id"] == f"0x{ids(sent)[0]:032x}" and ran["parent_id"] == f"0x{ids(sent)[1]:016x}"
    assert [one["context"]["span_id"] for one in ran["links"]] == [f"0x{before.split('-')[2]}"]
    assert ran["attributes"]["longhaul.took_over"] is True
    batches = [one for one in read_spans(file) if one["name"] == "batch crawl"]
    assert [one["attributes"]["longhaul.batch"] for one in batches] == [1, 2, 3]  # the first is of the killed worker
    assert {one["parent_id"] for one in batches[1:]} == {ran["context"]["span_id"]}


def test_the_spans_of_batches_are_bounded() -> None:
    assert [number for number in range(1, 41) if has_span(number, 4)] == [
        1, 2, 3, 4, 6, 8, 12, 16, 24, 32,
    ]  # fmt: skip
    assert sum(has_span(number, 100) for number in range(1, 1_000_001)) < 1_000
    assert not any(has_span(number, 0) for number in range(1, 100))


def test_tracing_that_is_off_loads_nothing_and_without_its_package_says_what_to_install(settings: Settings) -> None:
    code = (
        "import sys\nfrom worker import Client, load_settings\nimport worker.launch\n"
        "assert 'opentelemetry' not in sys.modules\nsys.modules['opentelemetry'] = None\n"
        "Client(load_settings(environment={}, overrides={'tracing': {'enabled': True}}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "pip install 'longhaul-worker[opentelemetry]'" in ran.stderr, ran.stderr
    with pytest.raises(RegistrationError, match=r"tracing.setup: tests.observe.traced_jobs:nothing: .* write module"):
        configured_middleware(with_tracing(settings, setup="tests.observe.traced_jobs:nothing"))


class NamelessError(NonRetryableError):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError


@job
async def fail_namelessly(ctx: JobContext) -> None:
    """Fail permanently."""
    raise NamelessError


async def test_an_error_without_a_text_stays_the_error_of_its_run(
    fast: Settings, database: Database, redis: Redis, spans: Spans
) -> None:
    settings = with_tracing(fast)
    async with Client(settings) as client, working(settings, fail_namelessly):
        with pytest.raises(JobFailed):
            await (await client.enqueue(fail_namelessly.options(id="n"))).result(timeout=60)
        await until(lambda: _has_ended(spans))
    [ran] = spans.of("run fail_namelessly", "n")
    assert attributes(ran)["error.type"] == "NamelessError"


async def _has_ended(spans: Spans) -> bool:
    return bool(spans.of("run fail_namelessly"))


class Broken(SpanProcessor):
    """A processor of the application that raises."""

    def __init__(self, place: str) -> None:
        self._place = place

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._fail("start")

    def on_end(self, span: Any) -> None:
        self._fail("end")

    def _fail(self, place: str) -> None:
        if place == self._place:
            raise RuntimeError(place)


@pytest.mark.parametrize("place", ["start", "end"])
async def test_a_broken_processor_of_spans_loses_no_run(
    fast: Settings, database: Database, redis: Redis, spans: Spans, place: str
) -> None:
    spans.provider.add_span_processor(Broken(place))
    settings = with_tracing(fast)
    async with Client(settings) as client, working(settings, walk):
        assert await (await client.enqueue(walk)).result(timeout=60) == 0
