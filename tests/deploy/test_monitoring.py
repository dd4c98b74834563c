"""Alerts and dashboard use metrics that pyproxy exposes, in valid PromQL."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.test_metrics import METRICS_FILE, used
from tools import prometheusrule

from .manifests import MONITORING, chart, the, tool
from .schemas import RuleGroups

ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
WANTED = ["programming latency", "sync time", "drift", "invalid objects", "api age"]
# Prometheus itself adds these to a scrape.
PROMETHEUS_METRICS = {"up"}
PROMETHEUS_LABELS = {"job", "instance"}


def groups() -> RuleGroups:
    return msgspec.convert(yaml.safe_load(ALERTS.read_text()), RuleGroups)


def exposed() -> dict[str, set[str]]:
    """Return the labels of every series that an agent exposes in some mode, by name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(used().exposition().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # The agent's own tests compare what iptables mode adds with kube-proxy's table.
    with METRICS_FILE.open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["metric"].startswith("kubeproxy_sync_proxy_rules_iptables_"):
                found[row["metric"]] = set(row["labels"].split(","))
    return found


def expanded(expression: str) -> str:
    """Put values in place of Grafana's variables."""
    return expression.replace("$__rate_interval", "5m").replace("$instance", ".*")


def names_in(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and the labels that a PromQL expression names."""
    metrics: set[str] = set()
    labels: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name
            metrics.add(node.name)
            labels.update(matcher.name for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            labels.update(node.modifier.matching.labels if node.modifier.matching else [])

    promql_parser.walk(promql_parser.parse(expanded(expression)), visit)
    return metrics, labels


def panels() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def expressions() -> list[tuple[str, str]]:
    alerts = [(rule.alert, rule.expr) for group in groups().groups for rule in group.rules]
    return [*alerts, *panels()]


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_every_metric_and_label_used_is_exposed(name: str, expression: str) -> None:
    there = exposed()
    metrics, labels = names_in(expression)
    assert metrics
    assert metrics - PROMETHEUS_METRICS <= there.keys()
    assert labels <= PROMETHEUS_LABELS.union(*(there.get(each, ()) for each in metrics))


def test_every_alert_has_a_summary_a_description_and_a_test() -> None:
    tested = (MONITORING / "alerts_test.yaml").read_text()
    for rule in groups().groups[0].rules:
        assert {"summary", "description"} == rule.annotations.keys()
        assert rule.labels["severity"] in {"warning", "critical"}
        assert re.search(rf"\b{rule.alert}\b", tested)


def test_the_prometheusrule_is_generated_from_the_alerts() -> None:
    assert (MONITORING / "prometheusrule.yaml").read_text() == prometheusrule.generate(
        ALERTS.read_text()
    ), "run: make generate"


def test_the_chart_has_the_same_alerts() -> None:
    rendered = chart(apiServers=["https://a:6443"], prometheusRule={"enabled": True})
    assert the("PrometheusRule", rendered)["spec"] == yaml.safe_load(ALERTS.read_text())


def test_promtool_passes_the_alerts_and_their_tests() -> None:
    promtool = tool("promtool")
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], capture_output=True, text=True, check=False, cwd=MONITORING
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_passes_the_dashboards_expressions(tmp_path: Path) -> None:
    """As recording rules, because promtool reads no dashboards."""
    rules = [
        {"record": f"panel:{number}", "expr": expanded(expression)}
        for number, (_, expression) in enumerate(panels())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_panels_do_not_overlap_and_use_declared_variables() -> None:
    titles = [panel["title"].lower() for panel in DASHBOARD["panels"]]
    for wanted in WANTED:
        assert any(wanted in title for title in titles), wanted
    places: list[Any] = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(DASHBOARD["panels"])))
    assert used <= variables
