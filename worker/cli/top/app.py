"""The live page: tables that are refreshed every second, and keys that run operator commands."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import ClassVar, cast

from redis.exceptions import RedisError
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Footer, Input, Static

from worker.cli.top.actions import TABLES, Action, Actions
from worker.cli.top.dialogs import KEYS, Details, Question
from worker.cli.top.format import plain
from worker.cli.top.grid import STYLES, Grid
from worker.cli.top.layout import heights
from worker.cli.top.model import Frame
from worker.cli.top.reader import Reader
from worker.cli.top.tables import Cell, Name, header, sheets
from worker.errors import LonghaulError, format_error
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.dead_letters import DeadLetter
from worker.settings import Settings, mask_passwords

_LATE_SECONDS = 2.0
_QUESTIONS: dict[Action, str] = {
    "cancel": "Cancel the run {key}? It ends at its next batch boundary, and is not retried. Committed batches stay.",
    "drain": "Drain the worker {key}? It ends as after SIGTERM, and other workers continue its runs.",
}
_BANDS: dict[Name, str] = {
    "queues": "top",
    "jobs": "top",
    "runs": "runs",
    "workers": "middle",
    "holds": "middle",
    "failures": "bottom",
}


class Page(App[None]):
    """The page.

    Args:
        client: The connection to Redis.
        settings: The settings in force.
        every: Seconds between two frames.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #header { height: 3; padding: 0 1; }
    #message { height: 1; padding: 0 1; }
    #filter { height: 1; border: none; padding: 0 1; display: none; }
    #letter { display: none; border: round ansi_bright_black; padding: 0 1; scrollbar-size-vertical: 1; }
    #top Grid, #middle Grid, #bottom Grid, #letter { width: 1fr; height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "act('pause')", "pause"),
        Binding("r", "act('resume')", "resume"),
        Binding("c", "act('cancel')", "cancel"),
        Binding("t", "act('retry')", "retry"),
        Binding("d", "act('drain')", "drain"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "unfilter", show=False),
        Binding("tab", "app.focus_next", "next table", show=False),
        Binding("question_mark", "keys", "keys"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False),
    ]

    def __init__(self, client: Client, settings: Settings, every: float = 1.0) -> None:
        super().__init__()
        self._client = client
        self._url = mask_passwords(settings.redis.url)
        self._settings = settings
        self._every = every
        self._reader = Reader(client, settings)
        self._actions = Actions(client)
        self._refresh_now = asyncio.Event()
        self._answered = time.monotonic()
        self._error: str | None = None
        self._unavailable_since: datetime | None = None
        self._filter = ""
        self._grids = {name: Grid(sheet) for name, sheet in sheets(Frame(datetime.now(UTC), "", "")).items()}
        self._header = Static(id="header")
        self._message = Static(id="message")
        self._letter_text = Static(id="letter_text")
        self._letter_pane = VerticalScroll(self._letter_text, id="letter", can_focus=False)
        self._box = Input(id="filter", placeholder="filter", compact=True, select_on_focus=False)
        of = self._grids
        self._bands: dict[str, Widget] = {
            "top": Horizontal(of["queues"], of["jobs"], id="top"),
            "runs": of["runs"],
            "middle": Horizontal(of["workers"], of["holds"], id="middle"),
            "bottom": Horizontal(of["failures"], self._letter_pane, id="bottom"),
        }
        #: The last frame that was read.
        self.frame = Frame(datetime.now(UTC), "", self._url)

    # --- the page

    def compose(self) -> ComposeResult:
        """Build the empty page."""
        self.theme = "ansi-dark"  # the terminal's own colours, and few bytes
        yield self._header
        yield from self._bands.values()
        yield self._message
        yield self._box
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Start refreshing."""
        self._grids["runs"].focus()
        self.set_interval(1.0, self._draw_header)
        self.run_worker(self._refresh_forever(), name="refresh")

    def on_resize(self) -> None:
        """Fit the tables to the terminal."""
        self._make_room()

    async def _refresh_forever(self) -> None:
        while True:
            began = time.monotonic()
            self._refresh_now.clear()
            await self._refresh()
            try:
                async with asyncio.timeout(max(0.0, self._every - (time.monotonic() - began))):
                    await self._refresh_now.wait()
            except TimeoutError:
                pass

    async def _refresh(self) -> None:
        try:
            self.frame = await self._reader.read(self._grids["runs"].visible_keys)
        except (RedisError, OSError) as error:
            self._error = format_error(error)
            self._unavailable_since = self._unavailable_since or datetime.now(UTC)
        else:
            self._error = self._unavailable_since = None
            self._answered = time.monotonic()
        self._draw()

    @property
    def problem(self) -> str | None:
        """The reason why the page may be out of date, or None."""
        if self._unavailable_since is not None:
            since = f"{self._unavailable_since.astimezone():%H:%M:%S}"
            return f"Redis at {self._url} has not answered since {since}: {self._error}; retrying"
        silent = time.monotonic() - self._answered
        if silent > self._every + _LATE_SECONDS:
            return f"Redis at {self._url} has not answered for {silent:.0f} s"
        return None

    def _draw(self) -> None:
        if not self._header.is_attached:
            return  # the page is closing
        for name, sheet in sheets(self.frame, self._filter).items():
            self._grids[name].show(sheet)
        self._draw_header()
        self._draw_letter()
        self._make_room()

    def _draw_header(self) -> None:
        lines = header(self.frame, self.problem)
        _put(self._header, Text("\n").join(Text("", no_wrap=True).join(_texts(cells)) for cells in lines))

    def _draw_letter(self) -> None:
        letter, pane = self._letter(self._grids["failures"].selected), self._letter_pane
        if pane.display:
            size = pane.scrollable_content_region
            _put(
                self._letter_text,
                Text() if letter is None else letter_text(letter, size.width, size.height),
                layout=True,
            )

    def _make_room(self) -> None:
        focused = self._focused()
        wanted = dict.fromkeys(_BANDS.values(), 0)
        for name, band in _BANDS.items():
            wanted[band] = max(wanted[band], len(self._grids[name].rows) + 3)
        if focused == "failures":
            wanted["bottom"] = self.size.height  # for the traceback next to the table
        room = heights(self.size.height - 5, wanted, _BANDS[focused] if focused else "runs")
        for band, height in room.items():
            place = self._bands[band]
            if place.styles.height is None or place.styles.height.value != height:
                place.styles.height = height

    # --- the selection

    def _focused(self) -> Name | None:
        return next((name for name, grid in self._grids.items() if grid.has_focus), None)

    def _letter(self, run_id: str | None) -> DeadLetter | None:
        return next((one for one in self.frame.failures if one.id == run_id), None)

    def on_descendant_focus(self) -> None:
        """Offer the keys of this table, and show its details."""
        focused = self._focused()
        if focused is not None:
            self._letter_pane.display = focused == "failures"
            self._draw_letter()
            self._make_room()
        self.refresh_bindings()

    @on(Grid.Moved)
    def _moved(self) -> None:
        self._draw_letter()

    @on(Grid.Opened)
    async def _opened(self, message: Grid.Opened) -> None:
        if message.grid.id == "failures" and (letter := self._letter(message.key)) is not None:
            self.push_screen(Details(plain(letter.id), letter_text(letter)))
        elif message.grid.id == "runs":
            reading = self._client.redis.hgetall(keys.RUN + message.key)
            try:
                values = await cast(Awaitable[dict[bytes, bytes]], reading)
            except (RedisError, OSError) as error:
                self._show_message(format_error(error), "bad")
                return
            self.push_screen(Details(plain(message.key), _mirror_text(values)))

    # --- keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer an action only in the tables where it is available."""
        if action != "act":
            return True
        focused = self._focused()
        return focused is not None and focused in TABLES[cast(Action, parameters[0])]

    def action_act(self, action: Action) -> None:
        """Run an action on the selected row."""
        focused = self._focused()
        key = self._grids[focused].selected if focused else None
        if focused is None or key is None:
            return
        frame = self.frame

        async def act() -> None:
            await self._act(action, focused, key, frame)

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(act())
            else:
                self._show_message("nothing was changed")

        if action in _QUESTIONS:
            self.push_screen(Question(_QUESTIONS[action].format(key=plain(key))), answered)
        else:
            self.run_worker(act())

    async def _act(self, action: Action, table: Name, key: str, frame: Frame) -> None:
        try:
            if table == "holds":
                outcome = await self._actions.undo(key)
            else:
                outcome = await self._actions.run(action, key, frame)
        except (LonghaulError, RedisError, SQLAlchemyError) as error:
            self._show_message(format_error(error), "bad")
        else:
            self._show_message(outcome)
        self._refresh_now.set()

    def _show_message(self, text: str, tone: str = "") -> None:
        _put(self._message, Text(f"{datetime.now().astimezone():%H:%M:%S} {plain(text)}", STYLES[tone]))

    def action_filter(self) -> None:
        """Show the filter box."""
        self._box.display = True
        self._box.focus()

    def action_unfilter(self) -> None:
        """Remove the filter."""
        self._box.value = ""
        self._leave_filter()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._draw()

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self._leave_filter()

    def _leave_filter(self) -> None:
        had = self._box.has_focus
        self._box.display = bool(self._box.value)
        if had:
            self._grids["runs"].focus()

    def action_keys(self) -> None:
        """Show the keys."""
        self.push_screen(Details("keys", Text(KEYS)))


def _put(place: Static, text: Text, *, layout: bool = False) -> None:
    """Show a text, unless it is shown already: over a slow line, each written cell costs time."""
    if place.content != text:
        place.update(text, layout=layout)


def letter_text(letter: DeadLetter, width: int | None = None, height: int | None = None) -> Text:
    """Return a dead letter with its arguments and its traceback.

    Args:
        letter: The dead letter.
        width: Width in cells at which lines of the traceback are cut.
        height: Lines to fit into: the end of the traceback is kept.
    """
    arguments = json.dumps(letter.arguments, ensure_ascii=False, default=str)
    head = f"{letter.id}: {letter.job or 'unknown job'}, queue {letter.queue}, attempt {letter.attempts}"
    trace = letter.traceback.splitlines()
    if height is not None and len(trace) > (room := max(3, height - 5)):
        trace = ["…", *trace[-room:]]
    return Text("\n").join(
        [
            Text(plain(head) + (" (in the ledger)" if letter.in_ledger else ""), "bold"),
            Text(f"failed at {letter.at.astimezone():%Y-%m-%d %H:%M:%S}"),
            Text(f"arguments: {plain(arguments)}"),
            Text(plain(letter.error), STYLES["bad"]),
            *(Text(plain(one)[:width]) for one in trace),
        ]
    )


def _mirror_text(values: dict[bytes, bytes]) -> Text:
    if not values:
        return Text("its mirror has expired")
    fields = {name.decode(errors="replace"): raw.decode(errors="replace") for name, raw in values.items()}
    width = max(map(len, fields))
    lines = [Text(f"{plain(name):{width}}  {plain(value)}") for name, value in sorted(fields.items()) if value]
    return Text("\n").join(lines)


def _texts(cells: list[Cell]) -> list[Text]:
    return [Text(cell.text, STYLES[cell.tone]) for cell in cells]
