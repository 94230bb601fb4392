"""The pages about metrics have every metric, and what they show is valid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from worker.observe.metrics import definitions as names

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "how-to" / "monitor-with-prometheus.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the blocks of the guide in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    assert found, language
    return found


def promtool(*arguments: str) -> None:
    """Run promtool; skip the test if there is none."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not in PATH: install Debian's package prometheus")
    ran = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_page_of_metrics_has_every_metric_outcome_and_reason() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert names.as_markdown() in page, "write worker.observe.metrics.definitions.as_markdown() into the page"
    words = set(re.findall(r"`(\w+)`", page))
    assert {*names.OUTCOMES, *names.REASONS.values(), names.APPLICATION, names.OTHER} <= words


@pytest.mark.parametrize("metric", names.METRICS, ids=lambda metric: metric.name)
def test_a_metric_keeps_to_the_conventions_of_prometheus(metric: names.Metric) -> None:
    assert re.fullmatch(r"longhaul_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.kind == "gauge" or metric.merge == "sum"
    assert metric.help.endswith(".")
    assert not re.search(r"_(ms|millis|minutes|hours|count)(_|$)", metric.name)


def test_the_guide_shows_a_valid_configuration_and_a_real_answer(tmp_path: Path) -> None:
    for text in blocks("json"):
        answer = json.loads(text)
        assert set(answer) == {"status", "checks"}
        assert set(answer["checks"]) == {"worker", "postgresql", "redis", "ledger"}
    file = tmp_path / "prometheus.yml"
    for text in blocks("yaml"):
        file.write_text(text)
        promtool("check", "config", "--syntax-only", str(file))


def test_the_guide_and_the_table_name_only_metrics_that_exist() -> None:
    for word in re.findall(r"longhaul_\w+", GUIDE):
        assert re.sub(r"_(bucket|sum|count)$", "", word) in names.BY_NAME, word
