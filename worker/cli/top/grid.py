"""A table on the page. It keeps the selection by key, and redraws only lines that have changed.

Over a slow line, each written cell costs time. Widths only grow, so that columns do not move and a refresh with few
changes writes few cells.
"""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from worker.cli.top.layout import fit, line, natural, titles
from worker.cli.top.tables import Cell, Row, Sheet

STYLES = {
    "": Style(),
    "good": Style(color="green"),
    "warn": Style(color="yellow"),
    "bad": Style(color="red"),
    "dim": Style(dim=True),
}
_SELECTED = Style(reverse=True)


class Grid(ScrollView, can_focus=True):
    """A table with a cursor."""

    DEFAULT_CSS = """
    Grid {
        border: round ansi_bright_black;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        scrollbar-color: ansi_bright_black;
        scrollbar-background: ansi_default;
        padding: 0 1;
    }
    Grid:focus {
        border: round $accent;
        border-title-color: $accent;
        border-title-style: bold;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "jump(0)", show=False),
        Binding("end,G", "jump(-1)", show=False),
        Binding("enter", "open", "details"),
    ]

    class Moved(Message):
        """Another row is selected."""

    class Opened(Message):
        """The user has opened a row."""

        def __init__(self, grid: Grid, key: str) -> None:
            super().__init__()
            self.grid = grid
            self.key = key

    def __init__(self, sheet: Sheet) -> None:
        super().__init__(id=sheet.name)
        self._sheet = sheet
        self._wanted = natural(sheet)
        self._widths = list(self._wanted)
        self._cursor = 0
        self.border_title = sheet.title

    @property
    def rows(self) -> list[Row]:
        """All rows, including those outside the visible part."""
        return self._sheet.rows

    @property
    def selected(self) -> str | None:
        """The key of the row under the cursor."""
        return self.rows[self._cursor].key if self.rows else None

    @property
    def visible_keys(self) -> list[str]:
        """The keys of the visible rows."""
        top = self.scroll_offset.y
        return [row.key for row in self.rows[top : top + max(1, self.size.height)]]

    def show(self, sheet: Sheet) -> None:
        """Replace the shown table. The cursor stays on its row, if the new table has it."""
        before, was, at = self._sheet.rows, self.selected, self._cursor
        self._sheet = sheet
        if self.border_title != sheet.title:
            self.border_title = sheet.title
        self._cursor = max(0, min(at, len(sheet.rows) - 1))
        if self.has_focus or at > 0:  # an untouched table keeps showing its first rows
            self._cursor = next((place for place, row in enumerate(sheet.rows) if row.key == was), self._cursor)
        wanted = [max(pair) for pair in zip(self._wanted, natural(sheet), strict=True)]
        self._measure()
        if wanted != self._wanted:
            self._wanted = wanted
            self._fit()
        else:
            self._refresh_changed(before, at)
        if self._cursor != at:
            self.scroll_to(y=self.scroll_offset.y + self._cursor - at, animate=False, force=True)
        if self.selected != was:
            self.post_message(self.Moved())

    def _refresh_changed(self, before: list[Row], cursor: int) -> None:
        rows, top = self._sheet.rows, self.scroll_offset.y
        for place in range(top, top + self.size.height):
            old = before[place] if place < len(before) else None
            new = rows[place] if place < len(rows) else None
            if old != new or (cursor != self._cursor and place in (cursor, self._cursor)):
                self.refresh_line(place + 1)
        if not before or not rows:
            self.refresh_line(1)

    def on_resize(self, event: Resize) -> None:
        """Fit the columns into the new width."""
        self._wanted = natural(self._sheet)
        self._measure()
        self._fit()
        self._keep_in_sight()

    def _measure(self) -> None:
        """Set the height. It is the same for all tables that fit, because a change lays the whole page out again."""
        self.virtual_size = Size(self.size.width, max(len(self.rows) + 1, self.size.height))

    def _fit(self) -> None:
        self._widths = fit(self._sheet, self._wanted, self.size.width)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw a line: the fixed titles, or a row below them."""
        place = y - 1 + self.scroll_offset.y
        selected = False
        if y == 0:
            cells = titles(self._sheet, self._widths)
        elif not self.rows and y == 1:
            cells = [Cell(self._sheet.empty, "dim")]
        elif place < len(self.rows):
            cells = line(self._sheet, self.rows[place].cells, self._widths)
            selected = self.has_focus and place == self._cursor
        else:
            cells = []
        base = self.rich_style
        style = base + _SELECTED if selected else base
        tones = {} if selected else STYLES
        strip = Strip([Segment(cell.text, style + tones.get(cell.tone, style)) for cell in cells])
        return strip.adjust_cell_length(self.size.width, style).simplify()

    def watch_has_focus(self, focused: bool) -> None:
        """Show the cursor, or hide it."""
        super().watch_has_focus(focused)
        self.refresh_line(self._cursor + 1)

    def action_move(self, by: int) -> None:
        """Move the cursor by rows."""
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by screens."""
        self._go(self._cursor + by * max(1, self.size.height - 2))

    def action_jump(self, place: int) -> None:
        """Move the cursor to the first row, or the last one."""
        self._go(place if place >= 0 else len(self.rows) - 1)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer "open" only in tables whose rows have details."""
        return action != "open" or self.id in ("runs", "failures")

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.selected is not None:
            self.post_message(self.Opened(self, self.selected))

    def _go(self, place: int) -> None:
        place = max(0, min(place, len(self.rows) - 1))
        if place == self._cursor:
            return
        self.refresh_line(self._cursor + 1)
        self._cursor = place
        self.refresh_line(self._cursor + 1)
        self._keep_in_sight()
        self.post_message(self.Moved())

    def _keep_in_sight(self) -> None:
        top, room = self.scroll_offset.y, max(1, self.size.height - 1)
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, force=True)
        elif self._cursor >= top + room:
            self.scroll_to(y=self._cursor - room + 1, animate=False, force=True)
