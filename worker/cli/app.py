"""The Typer application: the options before a command, and errors as one line with an exit code."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from sqlalchemy.exc import SQLAlchemyError

from worker.cli.output import output_problem, prepare_streams, print_line
from worker.db.engine import Database
from worker.errors import (
    DatabaseNotMigrated,
    InvalidArguments,
    LonghaulError,
    RegistrationError,
    ServerUnavailable,
    SettingsError,
    UnknownJob,
    format_error,
)
from worker.queue import ledger_access
from worker.queue.audit import ordering_as
from worker.queue.client import Client
from worker.queue.key_problems import printable
from worker.queue.ledger_access import explain
from worker.settings import Origins, Settings, load_with_origins

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78

_CODES: list[tuple[type[LonghaulError], int]] = [
    (SettingsError, EXIT_CONFIG),
    (DatabaseNotMigrated, EXIT_CONFIG),
    (ServerUnavailable, EXIT_UNAVAILABLE),
    (UnknownJob, EXIT_USAGE),
    (InvalidArguments, EXIT_USAGE),
    (RegistrationError, EXIT_USAGE),
]
app = typer.Typer(
    name="worker",
    help="Longhaul: a background worker for jobs that walk whole tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class State:
    """The options before the command. A command reads the settings with `load`."""

    def __init__(self) -> None:
        self.file: str | None = None
        self.sets: list[str] = []

    def load(self, more: dict[str, dict[str, Any]] | None = None) -> tuple[Settings, Origins]:
        """Return the settings in force, and their sources.

        Args:
            more: Settings that the command's own options set, by section and field; None leaves a field as it is.

        Raises:
            SettingsError: A setting is wrong.
        """
        overrides: dict[str, dict[str, Any]] = {}
        for text in self.sets:
            name, equals, value = text.partition("=")
            section, dot, field = name.partition(".")
            if not equals or not dot or not field:
                raise SettingsError(f"--set {text}: write --set section.field=value, e.g. --set worker.max_jobs=4")
            overrides.setdefault(section, {})[field] = _value(value)
        for section, fields in (more or {}).items():
            given = {field: value for field, value in fields.items() if value is not None}
            if given:
                overrides.setdefault(section, {}).update(given)
        return load_with_origins(self.file, overrides)


state = State()


def _print_version(asked: bool) -> None:
    if asked:
        try:
            print_line(f"longhaul-worker {version('longhaul-worker')}")
        except PackageNotFoundError:  # a source tree that is not installed
            print_line("longhaul-worker (not installed)")
        raise typer.Exit


@app.callback()
def options(
    settings: Annotated[str | None, typer.Option(help="Settings file instead of settings.toml.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value; overrides file and environment.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Longhaul: a background worker for jobs that walk whole tables."""
    state.file, state.sets = settings, set_ or []


def run_async(operation: Coroutine[Any, Any, T], settings: Settings) -> T:
    """Run the coroutine of a command. Explain the errors of a database that has no ledger or does not answer."""
    try:
        return asyncio.run(operation)
    except (SQLAlchemyError, OSError) as error:
        explained = explain(error, settings)
        if explained is error:
            raise
        raise explained from error


def open_database(settings: Settings) -> Database:
    """Return the database of a command, with a small pool."""
    return ledger_access.open_database(settings, "cli")


def run_with_client(operation: Callable[[Client], Awaitable[T]]) -> T:
    """Run an operation on a client with a database, whether or not the settings name one."""
    settings, _ = state.load()

    async def run() -> T:
        database = open_database(settings)
        try:
            async with Client(settings, database=database) as client:
                return await operation(client)
        finally:
            await database.close()

    return run_async(run(), settings)


def fail(message: str, code: int = EXIT_FAILED) -> typer.Exit:
    """Print one line to standard error, and return the exit to raise."""
    _print_error(message)
    return typer.Exit(code)


def main() -> int:
    """Run the command line. Return the exit code."""
    prepare_streams()
    _add_working_directory()
    try:
        code = _run()
        sys.stdout.flush()
    except OSError as error:
        if (problem := output_problem(error)) is None:
            raise
        _print_error(f"the output cannot be written: {problem}")
        return EXIT_FAILED
    return code


def _run() -> int:
    """Run the command. Return its exit code."""
    try:
        with ordering_as(f"cli:{_read_user()}@{socket.gethostname()}"):
            app(standalone_mode=True)
    except LonghaulError as error:
        _print_error(str(error))
        return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_FAILED)
    except SQLAlchemyError as error:
        _print_error(format_error(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    return 0


def _read_user() -> str:
    """Return the name of the user, for the record of orders."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for its user
        return str(os.getuid())


def _add_working_directory() -> None:
    """Put the working directory on the import path of the console script, as `python -m worker` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def _print_error(message: str) -> None:
    lines = (printable(line) for line in message.split("\n"))
    sys.stderr.write("worker: " + "\n".join(lines) + "\n")


def _value(text: str) -> Any:
    """Return a value of --set: JSON if it is a list or a mapping, else the text, which pydantic converts."""
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
