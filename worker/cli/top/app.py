"""The live page: a refresh each second, tables, and keys for operator commands."""

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

from worker.cli.app import explain
from worker.cli.top.actions import TABLES, Order, Steering
from worker.cli.top.dialogs import KEYS, Details, Question
from worker.cli.top.format import plain
from worker.cli.top.grid import STYLES, Grid
from worker.cli.top.model import Frame
from worker.cli.top.reader import Reader
from worker.cli.top.room import heights
from worker.cli.top.tables import Cell, Name, header, sheets
from worker.errors import LonghaulError, format_error
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.dead_letters import DeadLetter
from worker.settings import Settings, mask_passwords

_LATE_SECONDS = 2.0
_QUESTIONS: dict[Order, str] = {
    "cancel": "Cancel the run {key}? It ends for good at its next batch boundary; what it has committed stays.",
    "drain": "Drain the worker {key}? It ends as at SIGTERM; its runs go on elsewhere.",
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
        client: for Redis.
        settings: for everything else.
        every: seconds between two looks.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #header { height: 3; padding: 0 1; }
    #told { height: 1; padding: 0 1; }
    #filter { height: 1; border: none; padding: 0 1; display: none; }
    #letter { display: none; border: round ansi_bright_black; padding: 0 1; scrollbar-size-vertical: 1; }
    #top Grid, #middle Grid, #bottom Grid, #letter { width: 1fr; height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "order('pause')", "pause"),
        Binding("r", "order('resume')", "resume"),
        Binding("c", "order('cancel')", "cancel"),
        Binding("t", "order('retry')", "retry"),
        Binding("d", "order('drain')", "drain"),
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
        self._steering = Steering(client, settings)
        self._at_once = asyncio.Event()
        self._answered = time.monotonic()
        self._error: str | None = None
        self._away_since: datetime | None = None
        self._filter = ""
        self._grids = {name: Grid(sheet) for name, sheet in sheets(Frame(datetime.now(UTC), "", "")).items()}
        self._header = Static(id="header")
        self._told = Static(id="told")
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
        """Make the page, empty."""
        self.theme = "ansi-dark"  # the terminal's own colours, in few bytes
        yield self._header
        yield from self._bands.values()
        yield self._told
        yield self._box
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Start to refresh."""
        self._grids["runs"].focus()
        self.set_interval(1.0, self._draw_header)
        self.run_worker(self._look_again_and_again(), name="look")

    async def on_unmount(self) -> None:
        """Close the connections of the actions."""
        await self._steering.close()

    def on_resize(self) -> None:
        """Set the height of each table."""
        self._make_room()

    async def _look_again_and_again(self) -> None:
        while True:
            began = time.monotonic()
            self._at_once.clear()
            await self._look()
            try:
                async with asyncio.timeout(max(0.0, self._every - (time.monotonic() - began))):
                    await self._at_once.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        try:
            self.frame = await self._reader.read(self._grids["runs"].visible_keys)
        except (RedisError, OSError) as error:
            self._error = format_error(error)
            self._away_since = self._away_since or datetime.now(UTC)
        else:
            self._error = self._away_since = None
            self._answered = time.monotonic()
        self._draw()

    @property
    def problem(self) -> str | None:
        """Return why the data may be old."""
        if self._away_since is not None:
            since = f"{self._away_since.astimezone():%H:%M:%S}"
            return f"Redis at {self._url} does not answer since {since}: {self._error}; asking again"
        silent = time.monotonic() - self._answered
        if silent > self._every + _LATE_SECONDS:
            return f"Redis at {self._url} has not answered for {silent:.0f} s"
        return None

    def _draw(self) -> None:
        if not self._header.is_attached:
            return  # the page is about to close
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
            wanted["bottom"] = self.size.height  # for the traceback beside
        room = heights(self.size.height - 5, wanted, _BANDS[focused] if focused else "runs")
        for band, height in room.items():
            place = self._bands[band]
            if place.styles.height is None or place.styles.height.value != height:
                place.styles.height = height

    # --- selection

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
                self._tell(format_error(error), "bad")
                return
            self.push_screen(Details(plain(message.key), _mirror_text(values)))

    # --- keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer a command only for rows that it applies to."""
        if action != "order":
            return True
        focused = self._focused()
        return focused is not None and focused in TABLES[cast(Order, parameters[0])]

    def action_order(self, order: Order) -> None:
        """Send an operator command for the selected row."""
        focused = self._focused()
        key = self._grids[focused].selected if focused else None
        if focused is None or key is None:
            return
        frame = self.frame

        async def give() -> None:
            await self._give(order, focused, key, frame)

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(give())
            else:
                self._tell("nothing was changed")

        if order in _QUESTIONS:
            self.push_screen(Question(_QUESTIONS[order].format(key=plain(key))), answered)
        else:
            self.run_worker(give())

    async def _give(self, order: Order, table: Name, key: str, frame: Frame) -> None:
        try:
            if table == "holds":
                told = await self._steering.take_back(key)
            else:
                told = await self._steering.give(order, key, frame)
        except (SQLAlchemyError, OSError) as error:
            self._tell(format_error(explain(error, self._settings)), "bad")
        except (LonghaulError, RedisError) as error:
            self._tell(format_error(error), "bad")
        else:
            self._tell(told)
        self._at_once.set()

    def _tell(self, text: str, tone: str = "") -> None:
        _put(self._told, Text(f"{datetime.now().astimezone():%H:%M:%S} {plain(text)}", STYLES[tone]))

    def action_filter(self) -> None:
        """Open the filter."""
        self._box.display = True
        self._box.focus()

    def action_unfilter(self) -> None:
        """Clear the filter."""
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
    """Show a text if it has changed, so that unchanged lines are not written again."""
    if place.content != text:
        place.update(text, layout=layout)


def letter_text(letter: DeadLetter, width: int | None = None, height: int | None = None) -> Text:
    """Return a dead letter with its arguments and its traceback.

    Args:
        letter: the letter.
        width: cells after which lines of the traceback are cut.
        height: lines into which it should fit, so that the end of the traceback is seen.
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
        return Text("nothing is known of it any more")
    told = {name.decode(errors="replace"): raw.decode(errors="replace") for name, raw in values.items()}
    width = max(map(len, told))
    lines = [Text(f"{plain(name):{width}}  {plain(value)}") for name, value in sorted(told.items()) if value]
    return Text("\n").join(lines)


def _texts(cells: list[Cell]) -> list[Text]:
    return [Text(cell.text, STYLES[cell.tone]) for cell in cells]
