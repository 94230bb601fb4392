"""Computes widths of columns and heights of bands: a terminal over ssh may have 80 cells and 24 lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from worker.cli.top.tables import Cell, Sheet

_GAP = 2
_TITLE = 4  # least cells of a title
_NAME = 8  # least cells of a name
_LAST = 12  # least cells of the last column
_BAND = 4  # lines of a band: borders, titles and a row
_SHARE = 0.22  # a band's share of the page
_FOCUSED_SHARE = 0.55


def natural(sheet: Sheet) -> list[int]:
    """Return the width of the longest text of each column, without its title."""
    widths = [0] * len(sheet.columns)
    for row in sheet.rows:
        for place, cell in enumerate(row.cells):
            widths[place] = max(widths[place], cell_len(cell.text))
    last = len(widths) - 1
    return [width if place == last else min(width, sheet.columns[place].most) for place, width in enumerate(widths)]


def fit(sheet: Sheet, wanted: Sequence[int], room: int) -> list[int]:
    """Return the width of each column; 0 hides a column. The last one takes the rest.

    Args:
        sheet: The table.
        wanted: The result of `natural`.
        room: The cells of a line.
    """
    firm = [max(width, _shortest(one.title)) for width, one in zip(wanted, sheet.columns, strict=True)]
    widths = [max(width, len(one.title)) for width, one in zip(wanted, sheet.columns, strict=True)]
    last = len(widths) - 1
    least = min(widths[last], _LAST)

    def lacking() -> int:
        return sum(width + _GAP for width in widths[:last] if width) + least - room

    for place in range(last):  # first, cut titles that are longer than the texts below them
        widths[place] -= max(0, min(lacking(), widths[place] - firm[place]))
    for rank in sorted({column.rank for column in sheet.columns if column.rank}, reverse=True):
        for place, column in enumerate(sheet.columns):
            if column.rank == rank and lacking() > 0:
                widths[place] = 0
    soft = [place for place in range(last) if sheet.columns[place].soft and widths[place]]
    while soft and lacking() > 0:  # second, cut the widest names
        place = max(soft, key=lambda one: widths[one])
        if widths[place] <= _NAME:
            break
        widths[place] -= 1
    widths[last] = max(0, least - lacking())
    return widths


def _shortest(title: str) -> int:
    """Return the least width of a title: `done/s` must not be cut to `done`."""
    return len(title) if "/" in title else min(_TITLE, len(title))


def line(sheet: Sheet, cells: Sequence[Cell], widths: Sequence[int]) -> list[Cell]:
    """Return a row as cells that are padded or cut to the widths of their columns."""
    pieces = []
    for column, cell, width in zip(sheet.columns, cells, widths, strict=True):
        if not width:
            continue
        length = cell_len(cell.text)
        if length > width and cell.text == column.title:
            text = set_cell_size(cell.text, width)
        elif length > width:
            text = set_cell_size(cell.text, width - 1) + "…"
        elif column.right:
            text = " " * (width - length) + cell.text
        else:
            text = cell.text + " " * (width - length)
        pieces.append(Cell(text + " " * _GAP, cell.tone))
    return pieces


def titles(sheet: Sheet, widths: Sequence[int]) -> list[Cell]:
    """Return the line above the columns."""
    return line(sheet, [Cell(column.title, "dim") for column in sheet.columns], widths)


def heights(room: int, wanted: Mapping[str, int], focused: str, rest: str = "runs") -> dict[str, int]:
    """Return the height of each band: at most the requested lines, with preference for the focused band.

    Args:
        room: The lines of the page.
        wanted: The lines that each band could fill.
        focused: The band with the cursor.
        rest: The band that takes the rest.
    """
    found = {}
    for band, lines in wanted.items():
        if band != rest:
            share = _FOCUSED_SHARE if band == focused else _SHARE
            found[band] = max(_BAND, min(lines, int(room * share)))
    found[rest] = room - sum(found.values())
    while found[rest] < _BAND and (high := max(found, key=lambda one: found[one])) != rest and found[high] > 3:
        found[high] -= 1
        found[rest] += 1
    return {band: found[band] for band in wanted}
