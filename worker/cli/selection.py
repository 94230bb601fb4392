"""`--subset` and `--from`: the part of each walk that an operator selects."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from worker.batch.selection import Selection, check_expression

Subset = Annotated[
    str | None, typer.Option(help="SQL expression that the rows fulfil, in every loop, such as 'id < 1000'.")
]
From = Annotated[str | None, typer.Option("--from", help="Key to begin at, in every loop: a value, or a JSON list.")]


def read_selection(subset: str | None, first: str | None) -> Selection | None:
    """Return the part of a walk that --subset and --from select; None for all of it.

    Raises:
        InvalidArguments: The subset is not one expression.
    """
    if subset is None and first is None:
        return None
    return Selection(None if subset is None else check_expression(subset), None if first is None else read_key(first))


def read_key(text: str) -> list[Any]:
    """Return a key of the command line: a JSON list, or one value as JSON, or else as text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, list) else [value]
