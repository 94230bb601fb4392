"""The command: the live page in a terminal, and one frame as text anywhere else."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from typing import Annotated

import typer

from worker.cli.app import EXIT_USAGE, app, fail, run_async, state
from worker.cli.output import out, print_text
from worker.queue.client import Client
from worker.settings import Settings

# Textual, and what draws, are loaded when the command runs: no other command waits for them.


@app.command()
def top(
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame as text; so it is without a terminal.")] = False,
) -> None:
    """Watch and steer queues, rates, runs, workers and failures on one live page."""
    settings, _ = state.load()
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        run_async(_print(settings, every), settings)
        return
    if importlib.util.find_spec("textual") is None:
        raise fail("top needs Textual: pip install 'longhaul-worker[top]'; `worker top --once` does not", EXIT_USAGE)
    run_async(_show(settings, every), settings)


async def _print(settings: Settings, every: float) -> None:
    from worker.cli.top.reader import Reader
    from worker.cli.top.text import printed

    async with Client(settings) as client:
        reader = Reader(client, settings)
        await client.command(reader.read())
        await asyncio.sleep(every)  # rates are the difference between two looks
        frame = await client.command(reader.read())
    print_text(printed(frame, out.width))


async def _show(settings: Settings, every: float) -> None:
    from worker.cli.top.app import Page

    async with Client(settings) as client:
        page = Page(client, settings, every)
        # Without the mouse, the terminal's own selecting and copying goes on.
        await page.run_async(mouse=False)
    if page.return_code:
        raise typer.Exit(page.return_code)
