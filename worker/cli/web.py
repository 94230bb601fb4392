"""`worker web` serves the HTTP API; `worker web token` creates and revokes its tokens."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any

import typer

from worker.cli.app import EXIT_USAGE, app, fail, state
from worker.cli.output import print_line
from worker.errors import SettingsError
from worker.observe.logs import configure

_MISSING = "web needs Starlette, uvicorn and prometheus-client: pip install 'longhaul-worker[web]'"

web = typer.Typer(help="Serve the HTTP API, or manage its tokens.", invoke_without_command=True)
app.add_typer(web, name="web")


@web.callback()
def serve_(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: web.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0: any free one.")] = None,
) -> None:
    """Serve the HTTP API until SIGTERM; a second one forces the end. Without web.tokens_file, only for this machine."""
    if context.invoked_subcommand is not None:
        return
    _check_installed()
    settings, _ = state.load({"web": {"host": host, "port": port}})
    configure(settings.log)

    from worker.web.server import serve

    raise typer.Exit(serve(settings))


@web.command()
def token(
    name: Annotated[str, typer.Argument(help="Name of the token: letters, digits, - and _.")],
    role: Annotated[list[str] | None, typer.Option(help="read, enqueue or operate; give it once for each.")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=36_500, help="Days until it expires.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Remove the token.")] = False,
) -> None:
    """Create a token and print it, or revoke one. web.tokens_file has only its hash."""
    _check_installed()
    settings, _ = state.load()
    if settings.web.tokens_file is None:
        raise SettingsError("web.tokens_file is not set: name a file that the server can read, e.g. tokens.toml")

    from worker.web.tokens import ROLES, TokenFile

    file = TokenFile(settings.web.tokens_file)
    if revoke:
        if not file.revoke(name):
            raise fail(f"{settings.web.tokens_file}: there is no token {name!r}")
        print_line(f"revoked: {name}")
        return
    chosen: list[Any] = list(dict.fromkeys(role or ()))
    if not chosen or not set(chosen) <= set(ROLES):
        raise fail(f"web token: give --role once or several times: {', '.join(ROLES)}", EXIT_USAGE)
    print_line(file.create(name, chosen, days=days))


def _check_installed() -> None:
    """Raise an exit if the packages of the extra `web` are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "prometheus_client")):
        raise fail(_MISSING, EXIT_USAGE)
