"""The Grafana dashboard, the alert rules and the query of KEDA: valid, and about metrics and labels that exist."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.observe.test_metrics_docs import promtool
from worker.observe.metrics import definitions as names

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "longhaul.rules.yml"
SCALING = DEPLOY / "kubernetes" / "scaled-object.yaml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "longhaul.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: Labels that Prometheus adds, and that histograms have.
_ADDED = {"instance", "le"}


def expressions() -> Iterator[str]:
    """Yield every expression of the dashboard, of the rules, and of the scaling."""
    for panel in PANELS:
        yield from (target["expr"] for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert match
            yield f"sum by ({match[2]}) ({match[1]})"
    yield from re.findall(r"^ +query: (.*)$", SCALING.read_text(encoding="utf-8"), re.MULTILINE)
    text = RULES.read_text(encoding="utf-8")
    yield from re.findall(r"^ +expr: (?:\|\n)?(.*?)(?=^ +(?:for|labels):)", text, re.DOTALL | re.MULTILINE)


def find_metric(name: str) -> names.Metric | None:
    """Return the metric of a series."""
    plain = names.BY_NAME.get(name)
    histogram = names.BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return plain or (histogram if histogram is not None and histogram.kind == "histogram" else None)


def check(expression: str) -> set[str]:
    """Return the metrics of an expression, after a look at its labels."""
    allowed, found = set(_ADDED), set()
    for name, selector in re.findall(r"(longhaul_\w+)(?:\{([^}]*)\})?", expression):
        metric = find_metric(name)
        assert metric is not None, f"{name} does not exist: {expression}"
        assert metric.kind == "histogram" or not name.endswith("_bucket")
        if metric.kind == "counter" or name.endswith("_bucket"):
            assert re.search(rf"(rate|increase)\({name}", expression) or "label" in expression or "by" in expression
        selected = set(re.findall(r'(\w+) *(?:=~|!~|!=|=) *"', selector))
        assert selected <= set(metric.labels), f"{name} has no labels {selected - set(metric.labels)}"
        for label, values in re.findall(r'(outcome|reason) *(?:=~|!~|!=|=) *"([^"]*)"', selector):
            known = names.OUTCOMES if label == "outcome" else (*names.REASONS.values(), names.APPLICATION)
            assert set(values.split("|")) <= set(known), values
        allowed |= set(metric.labels)
        found.add(metric.name)
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert grouped <= allowed, f"{grouped - allowed}: {expression}"
    assert found, expression
    return found


def test_dashboard_and_rules_name_only_metrics_and_labels_that_exist() -> None:
    shown = {name for expression in expressions() for name in check(expression)}
    assert names.BY_NAME.keys() - shown == {"longhaul_draining"}, "every metric has a panel or an alert"


@pytest.mark.parametrize(
    "wrong",
    [
        "longhaul_nothing",
        'longhaul_slots{job="x"}',
        "sum by (run) (longhaul_slots)",
        'longhaul_jobs_total{outcome="x"}',
    ],
)
def test_a_wrong_expression_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong)


def test_the_dashboard_is_well_formed() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        for target in panel["targets"]:
            used = set(re.findall(r"\$(?!__)\{?(\w+)", target["expr"]))
            assert used <= variables, panel["title"]


def test_promtool_accepts_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:n{at}", "expr": re.sub(r"\$__rate_interval", "5m", target["expr"])}
        for at, target in enumerate(target for panel in PANELS for target in panel["targets"])
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", str(file))


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for file in (RULES, Path(__file__).parent / "alerts.test.yml"):
        shutil.copy(file, tmp_path)
    promtool("check", "rules", str(tmp_path / RULES.name))
    promtool("test", "rules", str(tmp_path / "alerts.test.yml"))
