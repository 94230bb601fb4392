"""One frame as plain text: for a pipe, a mail, or a terminal that is none."""

from __future__ import annotations

from collections.abc import Iterable

from worker.cli.top.layout import fit, line, natural, titles
from worker.cli.top.model import Frame
from worker.cli.top.tables import Cell, Name, Sheet, header, sheets

ORDER: tuple[Name, ...] = ("queues", "jobs", "runs", "holds", "workers", "failures")
_ROWS = 40


def printed(frame: Frame, width: int) -> str:
    """Return a frame as lines of at most so many cells, the first rows of each table."""
    made = sheets(frame)
    lines = [_text(cells)[:width] for cells in header(frame)]
    for name in ORDER:
        lines += ["", *_lines(made[name], width)]
    return "\n".join(lines) + "\n"


def _lines(sheet: Sheet, width: int) -> Iterable[str]:
    yield sheet.title
    if not sheet.rows:
        yield f"  {sheet.empty}"
        return
    widths = fit(sheet, natural(sheet), width - 2)
    yield "  " + _text(titles(sheet, widths))
    for row in sheet.rows[:_ROWS]:
        yield "  " + _text(line(sheet, row.cells, widths))
    if len(sheet.rows) > _ROWS:
        yield f"  … and {len(sheet.rows) - _ROWS:,} more"


def _text(cells: Iterable[Cell]) -> str:
    return "".join(cell.text for cell in cells).rstrip()
