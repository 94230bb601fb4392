"""The figures of the pages on capacity and speed are those of benchmarks/results/, and each names its command."""

from __future__ import annotations

import json

import pytest

from benchmarks.pages import CAPACITY, COMMANDS, COMPARISONS, FIGURES, SPEED, capacity_table, comparison_table
from benchmarks.report import RESULTS
from tests.deploy.manifests import ROOT


def test_the_page_on_capacity_has_the_figures_of_the_results() -> None:
    assert capacity_table() in CAPACITY.read_text(), "run python -m benchmarks.pages"


@pytest.mark.parametrize("benchmark", COMPARISONS)
def test_the_page_on_speed_has_the_figures_of_the_results(benchmark: str) -> None:
    assert comparison_table(benchmark) in SPEED.read_text(), "run python -m benchmarks.pages"


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
