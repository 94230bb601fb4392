"""Updates of open pages: what many show is read and rendered once, and only the regions that changed are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from datetime import UTC, datetime
from typing import NamedTuple

from worker.cancellation import cancel_and_wait
from worker.web.backend import Backend
from worker.web.event_hub import Progress, Subscriber
from worker.web.problems import Problem

logger = logging.getLogger("longhaul.web")

#: Shortest time between two updates of a page. A person reads no faster.
_PAUSE_SECONDS = 1.0
#: A page that hears nothing for three times this says that what it shows is old.
_ALIVE_SECONDS = 4.0
_MOST_WAITING = 4
#: The words of a relative time change each second; the script of the page counts them on.
_TIMES = re.compile(r"(<time [^>]*>)[^<]*</time>")

Render = Callable[[], Awaitable[dict[str, str]]]


class Update(NamedTuple):
    """The changes of a page.

    Attributes:
        regions: the HTML of regions, by name.
        error: why the servers could not be read; None if they were.
    """

    regions: dict[str, str]
    error: str | None = None


class Channel:
    """The open pages of one address, for visitors with the same roles. One task renders for all of them.

    Args:
        backend: the servers.
        run_id: the run whose events call for an update; None for all.
        seconds: the time after which there is an update without an event.
        render: returns the regions.

    Attributes:
        pages: what waits for each page.
        task: renders.
        error: why the servers could not be read the last time; None if they were.
    """

    def __init__(self, backend: Backend, run_id: str | None, seconds: float, render: Render) -> None:
        self._backend = backend
        self._run_id = run_id
        self._seconds = seconds
        self._render = render
        self._regions: dict[str, str] = {}
        self.error: str | None = None
        self.pages: set[asyncio.Queue[Update | None]] = set()
        self.task = asyncio.create_task(self._follow(), name="web page")

    def join(self) -> asyncio.Queue[Update | None]:
        """Add a page. It gets all regions that are known: it may be older than they are."""
        queue: asyncio.Queue[Update | None] = asyncio.Queue(_MOST_WAITING)
        if self._regions or self.error is not None:
            queue.put_nowait(Update(self._regions, self.error))
        self.pages.add(queue)
        return queue

    async def _follow(self) -> None:
        try:
            # A page reads what it shows itself: of many runs it needs to know only that there is something to read.
            progress: Progress = "pulse" if self._run_id is None else "full"
            async with self._backend.events.subscribe(self._run_id, progress=progress) as subscriber:
                while not subscriber.is_dropped:
                    await self._update()
                    await asyncio.sleep(_PAUSE_SECONDS)
                    await self._wait(subscriber)
        finally:
            for queue in self.pages:
                _put(queue, None)

    async def _wait(self, subscriber: Subscriber) -> None:
        """Wait for the next event, or for the time of the view."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._seconds - _PAUSE_SECONDS)):
                await subscriber.queue.get()
        while not subscriber.queue.empty() and not subscriber.is_dropped:
            subscriber.queue.get_nowait()

    async def _update(self) -> None:
        try:
            regions, error = await self._render(), None
        except Problem as problem:
            regions, error = self._regions, problem.detail
        changed = {name: html for name, html in regions.items() if _still(html) != _still(self._regions.get(name, ""))}
        is_news = bool(changed) or error != self.error
        self._regions, self.error = regions, error
        if is_news:
            for queue in self.pages:
                _put(queue, Update(changed, error))


def _still(html: str) -> str:
    return _TIMES.sub(r"\1", html)


def _put(queue: asyncio.Queue[Update | None], update: Update | None) -> None:
    """Add an update. A page that does not read gets them all at once, when it reads again."""
    if update is not None and queue.full():
        waiting = [queue.get_nowait() for _ in range(queue.qsize())]
        merged = {name: html for one in waiting if one for name, html in one.regions.items()}
        update = Update(merged | update.regions, update.error)
    elif queue.full():
        queue.get_nowait()
    queue.put_nowait(update)


class Live:
    """The channels of all open pages.

    Args:
        backend: the servers.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._channels: dict[Hashable, Channel] = {}

    def check(self) -> None:
        """Raise `Problem` if no more pages may be open."""
        count = sum(len(channel.pages) for channel in self._channels.values())
        if self._backend.events.is_closed or count >= self._backend.settings.web.max_subscribers:
            raise Problem(503, "too-many-streams", "too many pages are open", headers={"Retry-After": "5"})

    async def stream(
        self,
        key: Hashable,
        run_id: str | None,
        seconds: float,
        render: Render,
        csrf: tuple[str, str],
        has_session: Callable[[], bool],
    ) -> AsyncIterator[bytes]:
        """Yield the messages of a page: `regions`, and `alive` if there are none for a while.

        Args:
            key: what the page shows: its address, and the roles of its visitor.
            run_id: the run whose events call for an update; None for all.
            seconds: the time after which there is an update without an event.
            render: returns the regions.
            csrf: the mark in what is rendered, and the token that takes its place.
            has_session: whether the visitor may still see the page. If not, the stream ends.
        """
        channel = self._channels.get(key)
        if channel is None or channel.task.done():
            channel = self._channels[key] = Channel(self._backend, run_id, seconds, render)
        queue = channel.join()
        try:
            yield b"retry: 2000\n\n"
            while True:
                kind, update = "regions", None
                try:
                    async with asyncio.timeout(_ALIVE_SECONDS):
                        update = await queue.get()
                except TimeoutError:
                    kind = "alive"
                    update = Update({}, channel.error)
                if update is None or not has_session():
                    return
                regions = {name: html.replace(*csrf) for name, html in update.regions.items()}
                yield _format(kind, {"regions": regions, "error": update.error})
        finally:
            channel.pages.discard(queue)
            if not channel.pages:
                channel.task.cancel()
                if self._channels.get(key) is channel:
                    del self._channels[key]

    async def close(self) -> None:
        """End all streams."""
        await cancel_and_wait(*(channel.task for channel in self._channels.values()))


def _format(kind: str, data: dict[str, object]) -> bytes:
    """Return a message of the stream. JSON has no line breaks, so hostile texts cannot make another message."""
    text = json.dumps(data | {"at": datetime.now(UTC).isoformat(timespec="seconds")})
    return f"event: {kind}\ndata: {text}\n\n".encode()
