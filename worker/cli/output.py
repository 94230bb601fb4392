"""Prints lines, tables and JSON, in which data never acts as markup, emoji or terminal control."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from worker.queue.key_problems import printable

#: Without a terminal, lines are 200 cells wide, for programs that read them.
out = Console(
    highlight=False, markup=False, emoji=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 200
)

#: Symbols of our own tables, for terminals that have only Latin-1 or ASCII.
_PLAIN_SYMBOLS = str.maketrans({**dict.fromkeys("▁▂▃▄▅▆▇█▉▊▋▌▍▎▏", "#"), "·": "-", "…": "~"})

#: Errors of writing to a file, a pipe or a terminal that takes no more.
_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EIO, errno.EBADF)


def prepare_streams() -> None:
    """Make standard output and standard error escape characters that their encoding lacks, instead of failing.

    A stream that the caller has closed is replaced: otherwise its number would be that of the next socket.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def output_problem(error: OSError) -> str | None:
    """Return the reason if an error is that of writing to standard output, and drop the rest of the output."""
    if error.errno not in _LOST or error.filename is not None:
        return None
    with contextlib.suppress(OSError):  # it has no number where it is captured
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # Python writes the rest at its end
        os.close(null)
    return error.strerror or str(error)


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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, e.g. `1 batch` and `2,000 batches`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"
