"""The figures of the page on capacity are those of benchmarks/results/, and each names its command."""

from __future__ import annotations

import json

from benchmarks.capacity_page import COMMANDS, FIGURES, PAGE, render
from benchmarks.report import RESULTS
from tests.deploy.manifests import ROOT


def test_the_page_has_the_figures_of_the_results() -> None:
    assert render() in PAGE.read_text(), "run python -m benchmarks.capacity_page"


def test_each_figure_is_a_row_of_its_benchmark_and_each_command_a_target() -> None:
    targets = (ROOT / "Makefile").read_text()
    for figure in FIGURES:
        assert f"\n{COMMANDS[figure.benchmark].removeprefix('make ')}:" in targets
        file = RESULTS / f"{figure.benchmark}.json"
        if file.exists():
            rows = json.loads(file.read_text())["rows"]
            assert figure.what in {row["what"] for row in rows}, figure
        else:
            assert f'"{figure.what}"' in (ROOT / "benchmarks" / f"{figure.benchmark}.py").read_text(), figure
