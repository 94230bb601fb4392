"""The table that every benchmark prints, and the JSON file beside it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("arq", "asyncpg", "redis", "sqlalchemy", "uvloop")


@dataclass
class Row:
    """One comparison.

    Attributes:
        what: what was done.
        unit: of `ours` and `peers`.
        ours: our figure.
        peers: theirs, by name.
        ratio: the figure that the bar is about; None where there is none.
        bar: "≥ 0.90", "≤ 5 %": as the table shows it.
        held: whether it holds; None without a bar.
    """

    what: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    bar: str = ""
    held: bool | None = None


def at_least(what: str, unit: str, ours: float, peer: str, theirs: float, bar: float) -> Row:
    """Return a row whose bar is a least ratio of ours to theirs, where more is better."""
    ratio = ours / theirs
    return Row(what, unit, ours, {peer: theirs}, ratio, f"≥ {bar:g}", ratio >= bar)


def at_most(what: str, unit: str, ours: float, limit: float) -> Row:
    """Return a row whose bar is a largest figure of ours."""
    return Row(what, unit, ours, {}, None, f"≤ {limit:g} {unit}", ours <= limit)


class Report:
    """Rows as they come, the file at the end.

    Args:
        name: of the benchmark.
        setting: what was measured, in a line.
        peers: those that have a column each; others stand together in one.
    """

    def __init__(self, name: str, setting: str, peers: Sequence[str] = ()) -> None:
        self._columns = peers
        self._name = name
        self._setting = setting
        self._rows: list[Row] = []
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else 190 if peers else 150)

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows; each is printed at once, as a long run is to be watched."""
        for row in rows:
            self._rows.append(row)
            mark = {True: "held", False: "NOT HELD", None: ""}[row.held]
            self._console.print(f"  {row.what}: {_figure(row)} {row.bar} {mark}", style="dim", soft_wrap=True)

    def say(self, line: str) -> None:
        """Print what is no row."""
        self._console.print(f"  {line}", style="dim", soft_wrap=True)

    def finish(self, servers: dict[str, str], *, keep: bool = True) -> int:
        """Print the table, write the file (unless not to `keep`). Returns the exit code: 0 when all bars are held."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("what", "ours", *self._columns, "others" if self._columns else "peers", "ratio", "bar", ""):
            table.add_column(column, justify="right" if column in ("ours", "ratio", *self._columns) else "left")
        for row in self._rows:
            table.add_row(
                row.what,
                f"{_number(row.ours)} {row.unit}",
                *(_number(row.peers[name]) if name in row.peers else "-" for name in self._columns),
                ", ".join(f"{name} {_number(row.peers[name])}" for name in row.peers if name not in self._columns),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                row.bar,
                {True: "held", False: "NOT HELD", None: ""}[row.held],
            )
        self._console.print(self._setting)
        self._console.print(table)
        barred = [row for row in self._rows if row.held is not None]
        held = sum(bool(row.held) for row in barred)
        RESULTS.mkdir(exist_ok=True)
        found: dict[str, Any] = {
            "name": self._name,
            "setting": self._setting,
            "machine": _machine(),
            "versions": {package: version(package) for package in _PACKAGES} | servers,
            "rows": [asdict(row) for row in self._rows],
            "held": held,
            "bars": len(barred),
        }
        file = RESULTS / f"{self._name}.json"
        if keep:
            file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._console.print(f"{held} of {len(barred)} bars held")
        return 0 if held == len(barred) else 1


def quick() -> bool:
    """Whether QUICK=1 asks for smaller runs."""
    return os.environ.get("QUICK", "") not in ("", "0")


def _figure(row: Row) -> str:
    peers = "".join(f", {name} {_number(value)}" for name, value in row.peers.items())
    ratio = "" if row.ratio is None else f", ratio {row.ratio:.2f}"
    return f"{_number(row.ours)} {row.unit}{peers}{ratio}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()}
