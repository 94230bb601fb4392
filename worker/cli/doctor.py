"""`worker doctor`: what is wrong with servers and settings, and what to do."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import typer
from rich.table import Table

from worker import doctor as clinic
from worker.cli.app import EXIT_FAILED, Json, app, out, print_json, state


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check servers, versions and settings, and say what to do; exits with 1 when something is wrong."""
    settings, _ = state.load()
    found = asyncio.run(clinic.examine(settings))
    if as_json:
        print_json({name: asdict(finding) for name, finding in found.items()})
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("", "check", "what is so", "what to do"):
            table.add_column(column, overflow="fold")
        for name, finding in found.items():
            table.add_row("" if finding.level == "fine" else finding.level, name, finding.says, finding.advice)
        out.print(table)
    if any(finding.level == "wrong" for finding in found.values()):
        raise typer.Exit(EXIT_FAILED)
