"""Dialogs over the page: a question, the details of a row, the keys."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

KEYS = """\
tab, shift+tab   to the next table, or the one before
↑ ↓ pgup pgdn    select a row (home, end: the first, the last)
enter            details of a run or a dead letter
p                pause the selected run, job or queue
r                resume it; in "held back": undo the pause or pace
c                cancel the selected run (asks first)
t                retry the selected dead letter
d                drain the selected worker (asks first)
/                filter all tables; escape removes the filter
?                these keys
q                quit

Commands take effect at the next batch boundary. A walk that was paused,
drained or retried resumes from its last committed batch."""

_CSS = """
{name} {{
    align: center middle;
}}
{name} > Vertical, {name} > VerticalScroll {{
    border: round $accent;
    border-title-color: $accent;
    background: $background;
    padding: 1 2;
    width: auto;
    max-width: 96%;
    height: auto;
    max-height: 90%;
}}
{name} Static {{
    width: auto;
    max-width: 100%;
}}
"""


class Question(ModalScreen[bool]):
    """A question before an action that cannot be undone."""

    DEFAULT_CSS = _CSS.format(name="Question")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)"),
        Binding("n,escape,enter,q", "dismiss(False)"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Build the dialog."""
        with Vertical():
            yield Static(Text(f"{self._text}\n\n") + Text("y", "bold") + Text(" yes    ") + Text("n", "bold") + " no")


class Details(ModalScreen[None]):
    """A long text that scrolls."""

    DEFAULT_CSS = _CSS.format(name="Details")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q,question_mark", "dismiss(None)")]

    def __init__(self, title: str, text: Text) -> None:
        super().__init__()
        self._title = title
        self.text = text

    def compose(self) -> ComposeResult:
        """Build the dialog."""
        with VerticalScroll() as box:
            box.border_title = Text(self._title).markup
            yield Static(self.text)
