"""Server-sent events: events of all runs, or of one, and progress."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from typing import Any, cast

from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from worker.web.backend import Backend
from worker.web.bodies import EventsQuery
from worker.web.event_hub import Message, Progress, Subscriber, is_event_id
from worker.web.operations import Call
from worker.web.problems import Problem
from worker.web.run_reads import describe_event, describe_mirror, read_run
from worker.web.views import EventView, RunView

logger = logging.getLogger("longhaul.web")

ENDED = ("succeeded", "incomplete", "dead", "cancelled")
_ALIVE_SECONDS = 15.0
#: Longest wait until a client takes bytes: twice the time after which each stream has something to send.
_UNREAD_SECONDS = 2 * _ALIVE_SECONDS
_RETRY_MS = 2_000
_HEADERS = {"X-Accel-Buffering": "no"}


async def stream_events(call: Call) -> Response:
    """Stream the events of all runs and workers, and with `progress=true` the progress of those that run."""
    query: EventsQuery = call.query
    last_id = _read_last_id(call)
    return EventStream(_stream(call.backend, None, last_id, "full" if query.progress == "true" else "none"))


async def stream_run(call: Call) -> Response:
    """Stream the events and the progress of one run until it has ended; then a message `end`.

    204 tells a client that comes back after the end not to come again.
    """
    run_id, last_id = call.path["run_id"], _read_last_id(call)
    run = await read_run(call.backend, run_id)
    if run.state in ENDED and last_id is not None:
        return Response(status_code=204)
    return EventStream(_stream(call.backend, run_id, last_id, "full"))


def _read_last_id(call: Call) -> str | None:
    hub, settings = call.backend.events, call.backend.settings.web
    if hub.is_closed or hub.count >= settings.max_subscribers:
        raise Problem(503, "too-many-streams", "too many streams are open", headers={"Retry-After": "5"})
    last_id = call.request.headers.get("last-event-id") or None
    if last_id is not None and not is_event_id(last_id):
        raise Problem(422, "invalid-event-id", "Last-Event-ID is not the id of an event, e.g. 1700000000000-0")
    return last_id


class EventStream(StreamingResponse):
    """A stream of events, which ends if its client reads nothing: it would keep its place among the streams for ever.

    Args:
        stream: the messages.
    """

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        super().__init__(stream, media_type="text/event-stream", headers=_HEADERS)

    async def stream_response(self, send: Send) -> None:
        """Send the messages."""

        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(_UNREAD_SECONDS):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            logger.info("stream ended seconds=%g: its client reads nothing", _UNREAD_SECONDS)
        finally:
            await cast("AsyncGenerator[bytes, None]", self.body_iterator).aclose()


async def _stream(
    backend: Backend, run_id: str | None, last_id: str | None, progress: Progress
) -> AsyncIterator[bytes]:
    hub = backend.events
    async with hub.subscribe(run_id, progress=progress) as subscriber:
        yield f"retry: {_RETRY_MS}\n\n".encode()
        if last_id is not None:
            async for message in hub.replay(last_id, run_id):
                last_id = message.id or last_id
                yield _encode(message)
        if run_id is not None:
            # Read after the subscription: an end between the two is not missed.
            run = await read_run(backend, run_id)
            yield _format("progress", RunView(**run.model_dump(include=set(RunView.model_fields))))
            if run.state in ENDED:
                yield _format("end", {"state": run.state})
                return
        async for sent in _messages(subscriber):
            if sent is None:
                yield b": alive\n\n"
                continue
            if sent.kind == "event" and last_id is not None and _is_known(sent.id, last_id):
                continue
            yield _encode(sent)
            state = sent.fields.get("event") or sent.fields.get("state")
            if run_id is not None and state in ENDED:
                yield _format("end", {"state": state})
                return


async def _messages(subscriber: Subscriber) -> AsyncIterator[Message | None]:
    """Yield the messages of a subscriber until it is dropped, and None if there was none for a while."""
    while True:
        try:
            async with asyncio.timeout(_ALIVE_SECONDS):
                message = await subscriber.queue.get()
        except TimeoutError:
            yield None
            continue
        if message is None:
            return
        yield message


def _is_known(event_id: str, last_id: str) -> bool:
    (first, _, number), (last_first, _, last_number) = event_id.partition("-"), last_id.partition("-")
    return (int(first), int(number)) <= (int(last_first), int(last_number))


def _encode(message: Message) -> bytes:
    if message.kind == "progress":
        fields = message.fields
        state = fields.get("state", "unknown")
        values = describe_mirror(fields) | {"id": message.run_id, "job": fields.get("job", "?"), "in_ledger": True}
        known = state in ("running", "paused", "waiting", "deferred", *ENDED)
        return _format("progress", RunView(**(values | {"state": state if known else "unknown"})))
    if message.kind == "gap":
        return _format("gap", message.fields)
    return _format("event", describe_event(message), event_id=message.id)


def _format(kind: str, data: EventView | RunView | Mapping[str, Any], *, event_id: str = "") -> bytes:
    """Return a message of the stream. JSON has no line breaks, so hostile texts cannot make another message."""
    text = data.model_dump_json() if isinstance(data, EventView | RunView) else json.dumps(dict(data))
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {kind}\ndata: {text}\n\n".encode()
