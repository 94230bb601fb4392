"""The Typer application: options of all commands, and errors as one line with an exit code."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from worker.db.engine import Database, unavailable
from worker.db.errors import is_unavailable, sqlstate
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
_UNDEFINED_TABLE = ("42P01", "3F000")
_REFUSED = ("28", "3D")  # SQLSTATE classes: invalid authorization, invalid catalog name

app = typer.Typer(
    name="worker",
    help="Longhaul: a background worker for jobs that walk whole tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
#: Without a terminal a table is as wide as it likes: grep reads it, and nobody wraps lines for it.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class State:
    """What the options before the command say; read when a command first asks."""

    def __init__(self) -> None:
        self.file: str | None = None
        self.sets: list[str] = []

    def load(self, more: dict[str, dict[str, Any]] | None = None) -> tuple[Settings, Origins]:
        """Return the settings in force, with those of the command line last.

        Raises:
            SettingsError: one is wrong.
        """
        overrides: dict[str, dict[str, Any]] = {}
        for text in self.sets:
            name, equals, value = text.partition("=")
            section, dot, field = name.partition(".")
            if not equals or not dot:
                raise SettingsError(f"--set {text}: write --set section.field=value, e.g. --set worker.max_jobs=4")
            overrides.setdefault(section, {})[field] = _value(value)
        for section, fields in (more or {}).items():
            given = {field: value for field, value in fields.items() if value is not None}
            if given:
                overrides.setdefault(section, {}).update(given)
        return load_with_origins(self.file, overrides)


state = State()


@app.callback()
def options(
    settings: Annotated[str | None, typer.Option(help="Settings file instead of settings.toml.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.field=value; wins over all else.")] = None,
) -> None:
    """Longhaul: a background worker for jobs that walk whole tables."""
    state.file, state.sets = settings, set_ or []


def run_async(operation: Coroutine[Any, Any, T], settings: Settings) -> T:
    """Run a command's coroutine; what a database without our tables, or none at all, raises becomes one line."""
    try:
        return asyncio.run(operation)
    except (SQLAlchemyError, OSError) as error:
        explained = explain(error, settings)
        if explained is error:
            raise
        raise explained from error


def explain(error: SQLAlchemyError | OSError, settings: Settings) -> Exception:
    """Return what an error of the database means to an operator; itself where that is no more than it says."""
    if sqlstate(error) in _UNDEFINED_TABLE:
        return DatabaseNotMigrated("the database has no ledger: run `worker migrate`")
    if is_unavailable(error) or isinstance(error, OSError) or (sqlstate(error) or "").startswith(_REFUSED):
        return unavailable(error, settings)
    return error


def open_database(settings: Settings) -> Database:
    """Return the database of a command: few connections, named after the command line."""
    small = settings.model_copy(
        update={"database": settings.database.model_copy(update={"pool_size": 1, "max_overflow": 2})}
    )
    return Database(small, "cli")


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")


def fail(message: str, code: int = EXIT_FAILED) -> typer.Exit:
    """Print one line to standard error, and return the exit to raise."""
    sys.stderr.write(f"worker: {message}\n")
    return typer.Exit(code)


def main() -> int:
    """Run the command line. Returns the exit code."""
    try:
        app(standalone_mode=True)
    except LonghaulError as error:
        sys.stderr.write(f"worker: {error}\n")
        return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_FAILED)
    except SQLAlchemyError as error:
        sys.stderr.write(f"worker: {format_error(error)}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    return 0


def _value(text: str) -> Any:
    """Read a value of --set: JSON where it is a list, the text otherwise (pydantic makes numbers of it)."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
