"""Prints lines, tables and JSON, in which data never acts as markup, emoji or terminal control."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

#: Without a terminal, lines are 200 cells wide, for programs that read them.
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)

#: Symbols of our own tables, for terminals that have only Latin-1 or ASCII.
_PLAIN_SYMBOLS = str.maketrans({**dict.fromkeys("▁▂▃▄▅▆▇█▉▊▋▌▍▎▏", "#"), "·": "-", "…": "~"})


def prepare_streams() -> None:
    """Make standard output and standard error escape characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Return a text in one line, with control characters and line breaks escaped (`\\x1b`, `\\n`)."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def print_line(*texts: object) -> None:
    """Print one line, however long."""
    out.print(_encodable(printable(" ".join(map(str, texts)))), soft_wrap=True)


def print_block(text: str) -> None:
    """Print a text of several lines, e.g. a traceback."""
    for line in text.split("\n"):
        print_line(line.replace("\t", "    "))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Cells that are too long wrap."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_encodable("\n".join(map(printable, cell.split("\n")))) for cell in row))
    out.print(table)


def print_text(text: str) -> None:
    """Print a text that is already laid out, such as a page of `worker top --once`."""
    sys.stdout.write(_encodable(text))


def print_json(value: Any) -> None:
    """Print a value as indented JSON. Characters that the output's encoding lacks are escaped."""
    text = json.dumps(value, indent=2, default=str, ensure_ascii=not _is_unicode())
    sys.stdout.write(text + "\n")


def _encodable(text: str) -> str:
    return text if _is_unicode() else text.translate(_PLAIN_SYMBOLS)


def _is_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
