"""The statements of the ledger, each as a file that can be read, and run by hand."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from sqlalchemy import TextClause, text


@cache
def query(name: str) -> TextClause:
    """Return the statement in `name`.sql, with its `:parameters`."""
    return text(source(name))


@cache
def source(name: str) -> str:
    """Return the text of `name`.sql."""
    return files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
