"""`worker jobs`, `settings`, `keys`, `doctor`: show the jobs, settings and keys, and check the installation."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from worker import doctor as checks
from worker.cli.app import EXIT_FAILED, EXIT_USAGE, Json, app, fail, state
from worker.cli.output import print_json, print_line, print_table, print_text
from worker.job.registry import discover
from worker.queue import keys
from worker.queue.namespace import script_in
from worker.queue.scripts import PUBLIC as PUBLIC_SCRIPTS
from worker.queue.scripts import script as lua_script
from worker.settings import DEFAULT_FILE, describe_type, field_names, mask_passwords


@app.command()
def jobs(as_json: Json = False) -> None:
    """List the jobs that this worker can run."""
    settings, _ = state.load()
    known = sorted(discover(settings.worker.packages).values(), key=lambda one: one.name)
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "arguments": str(one.signature),
                    "cron": [str(line) for line in one.schedule],
                    "summary": one.summary,
                }
                for one in known
            ]
        )
        return
    print_table(
        ("job", "arguments", "cron", "summary"),
        [(one.name, str(one.signature), "\n".join(map(str, one.schedule)), one.summary) for one in known],
    )


@app.command()
def settings(as_json: Json = False) -> None:
    """Print the settings in force and the source of each value. Passwords are masked."""
    values, origins = state.load()
    rows = []
    for name in field_names():
        section, field = name.split(".")
        value = getattr(getattr(values, section), field)
        shown = mask_passwords(value) if value and field.endswith("url") else value
        rows.append((name, shown, origins[name], describe_type(section, field)))
    if as_json:
        print_json({name: {"value": value, "from": origin} for name, value, origin, _ in rows})
        return
    if not any(origin.endswith(".toml") for origin in origins.values()):
        print_line(f"no {DEFAULT_FILE} in {Path.cwd()}")
    print_table(
        ("setting", "value", "from", "type"),
        [(name, "" if value is None else str(value), origin, kind) for name, value, origin, kind in rows],
    )


@app.command(name="keys")
def keys_(
    script: Annotated[
        str | None, typer.Option(help=f"Print this Lua script, for other clients: {', '.join(PUBLIC_SCRIPTS)}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print every key in Redis: its type, its contents, and its lifetime."""
    prefix = state.load()[0].redis.prefix
    if script is not None:
        if script not in PUBLIC_SCRIPTS:
            raise fail(f"--script {script}: choose one of {', '.join(PUBLIC_SCRIPTS)}", EXIT_USAGE)
        print_text(script_in(prefix, script) if prefix else lua_script(script))
        return
    schema = [one._replace(name=f"{prefix}{one.name}") for one in keys.SCHEMA]
    if as_json:
        print_json([one._asdict() for one in schema])
        return
    print_table(
        ("key", "type", "written by", "holds", "lives"),
        [(one.name, one.type, one.written_by, one.holds, one.lives) for one in schema],
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check servers, versions and settings, and print the next steps. Exits with 1 if something is wrong."""
    settings, _ = state.load()
    found = asyncio.run(checks.examine(settings))
    if as_json:
        print_json({name: asdict(finding) for name, finding in found.items()})
    else:
        print_table(
            ("", "check", "finding", "what to do"),
            [
                ("" if finding.level == "fine" else finding.level, name, finding.message, finding.advice)
                for name, finding in found.items()
            ],
        )
    if any(finding.level == "wrong" for finding in found.values()):
        raise typer.Exit(EXIT_FAILED)
