"""The table that every benchmark prints, and its JSON file."""

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
        what: name of the measurement.
        unit: unit of `ours` and `peers`.
        ours: our figure.
        peers: figures of the peers, by name.
        ratio: the figure that the bar limits; None without a bar.
        bar: "≥ 0.90", "≤ 5 %": as the table shows it.
        held: whether the bar is held; None without a bar.
        spread: by how much the ratio may differ in another run; None if it was not measured.
        notes: how it was measured, and at which cost.
    """

    what: str
    unit: str
    ours: float
    peers: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    bar: str = ""
    held: bool | None = None
    spread: float | None = None
    notes: str = ""


def at_least(what: str, unit: str, ours: float, peer: str, theirs: float, bar: float) -> Row:
    """Return a row whose bar is a minimum ratio of our figure to the peer's; a larger figure is better."""
    ratio = ours / theirs
    return Row(what, unit, ours, {peer: theirs}, ratio, f"≥ {bar:g}", ratio >= bar)


def at_most(what: str, unit: str, ours: float, limit: float) -> Row:
    """Return a row whose bar is a maximum for our figure."""
    return Row(what, unit, ours, {}, None, f"≤ {limit:g} {unit}", ours <= limit)


class Report:
    """Prints rows as they are measured, and writes the file at the end.

    Args:
        name: name of the benchmark.
        setting: description of the measurement, in one line.
        peers: the peers with a column of their own; others share one column.
    """

    def __init__(self, name: str, setting: str, peers: Sequence[str] = ()) -> None:
        self._columns = peers
        self._name = name
        self._setting = setting
        self._rows: list[Row] = []
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else 190)

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows, and print each at once, because a run is long."""
        for row in rows:
            self._rows.append(row)
            mark = {True: "held", False: "NOT HELD", None: ""}[row.held]
            self._console.print(f"  {row.what}: {_figure(row)} {row.bar} {mark}", style="dim", soft_wrap=True)

    def say(self, line: str) -> None:
        """Print a line that is not a row."""
        self._console.print(f"  {line}", style="dim", soft_wrap=True)

    def finish(self, servers: dict[str, str], *, keep: bool = True) -> int:
        """Print the table, and write the file if `keep`. Return the exit code: 0 if all bars are held."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        others = "others" if self._columns else "peers"
        for column in ("what", "ours", *self._columns, others, "ratio", "bar", "", "notes"):
            table.add_column(column, justify="right" if column in ("ours", "ratio", *self._columns) else "left")
        for row in self._rows:
            table.add_row(
                row.what,
                f"{_number(row.ours)} {row.unit}",
                *(_number(row.peers[name]) if name in row.peers else "-" for name in self._columns),
                ", ".join(f"{name} {_number(row.peers[name])}" for name in row.peers if name not in self._columns),
                _ratio(row),
                row.bar,
                {True: "held", False: "NOT HELD", None: ""}[row.held],
                row.notes,
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


def refuse_arguments(description: str | None) -> None:
    """Print how a benchmark is used, and exit with 2, if it was called with arguments: its options are variables."""
    if sys.argv[1:]:
        sys.stdout.write(f"{description}\n")
        raise SystemExit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)


def quick() -> bool:
    """Return whether QUICK=1 is set, for smaller runs."""
    return os.environ.get("QUICK", "") not in ("", "0")


def _figure(row: Row) -> str:
    peers = "".join(f", {name} {_number(value)}" for name, value in row.peers.items())
    ratio = "" if row.ratio is None else f", ratio {_ratio(row)}"
    notes = f" ({row.notes})" if row.notes else ""
    return f"{_number(row.ours)} {row.unit}{peers}{ratio}{notes}"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f}" if row.spread is None else f"{row.ratio:.2f} ± {row.spread:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()}
