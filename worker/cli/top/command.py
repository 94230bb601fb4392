"""`worker top`: the live page in a terminal, and one frame as text anywhere else."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from worker.cli.app import EXIT_USAGE, app, fail, open_database, run_async, state
from worker.cli.output import out, print_text
from worker.cli.top.layout import fit, line, natural, titles
from worker.cli.top.model import Frame
from worker.cli.top.reader import Reader
from worker.cli.top.tables import Cell, Name, Sheet, header, sheets
from worker.queue.client import Client
from worker.settings import Settings

ORDER: tuple[Name, ...] = ("queues", "jobs", "runs", "holds", "workers", "failures")
_ROWS = 40


@app.command()
def top(
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame as text, as without a terminal.")] = False,
) -> None:
    """Watch and control queues, rates, runs, workers and failures on one live page."""
    settings, _ = state.load()
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        run_async(_print(settings, every), settings)
        return
    if importlib.util.find_spec("textual") is None:
        raise fail("top needs Textual: pip install 'longhaul-worker[top]', or use `worker top --once`", EXIT_USAGE)
    run_async(_show(settings, every), settings)


def format_frame(frame: Frame, width: int) -> str:
    """Return a frame as lines of at most `width` cells, with the first rows of each table."""
    tables = sheets(frame)
    lines = [_text(cells)[:width] for cells in header(frame)]
    for name in ORDER:
        lines += ["", *_lines(tables[name], width)]
    return "\n".join(lines) + "\n"


async def _print(settings: Settings, every: float) -> None:
    async with Client(settings) as client:
        reader = Reader(client, settings)
        await client.command(reader.read())
        await asyncio.sleep(every)  # rates are the difference between two frames
        frame = await client.command(reader.read())
    print_text(format_frame(frame, out.width))


async def _show(settings: Settings, every: float) -> None:
    from worker.cli.top.app import Page

    database = open_database(settings)
    try:
        async with Client(settings, database=database) as client:
            page = Page(client, settings, every)
            # Without mouse support, the terminal's own selecting and copying works.
            await page.run_async(mouse=False)
    finally:
        await database.close()
    if page.return_code:
        raise typer.Exit(page.return_code)


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
