"""Alerts and dashboard ask for metrics that there are, in expressions that Prometheus can read."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pyproxy.metrics import Metrics

from . import promql
from .manifests import MONITORING, tool
from .schemas import RuleGroups

ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
WANTED = ["programming latency", "sync time", "drift", "set-aside", "api age"]
# What Prometheus itself adds to a scrape.
ITS_OWN = {"up"}
ITS_LABELS = {"job", "instance", "le"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def groups() -> RuleGroups:
    return msgspec.convert(yaml.safe_load(ALERTS.read_text()), RuleGroups)


def exposed() -> dict[str, frozenset[str]]:
    """Every series' name, with its labels: also of metrics that have no series yet."""
    metrics = Metrics()
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for suffix in SUFFIXES[family.type]:
            known = {label for sample in family.samples for label in sample.labels}
            found[family.name + suffix] = frozenset(known)
    declared = (each for each in vars(metrics).values())
    for each in declared:
        for metric in each.values() if isinstance(each, dict) else [each]:
            for suffix in SUFFIXES.get(getattr(metric, "_type", ""), ()):
                found[metric._name + suffix] = frozenset(metric._labelnames)
    return found


def panels() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def expressions() -> list[tuple[str, str]]:
    alerts = [(rule.alert, rule.expr) for group in groups().groups for rule in group.rules]
    return [*alerts, *panels()]


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_they_ask_for_what_there_is(name: str, expression: str) -> None:
    there = exposed()
    asked = promql.metrics(expression)
    assert asked, f"{name} asks for nothing"
    assert asked - ITS_OWN <= there.keys(), name
    known = ITS_LABELS.union(*(there[each] for each in asked - ITS_OWN))
    assert set(promql.labels(expression)) <= known, name


def test_what_is_exposed_is_found() -> None:
    there = exposed()
    assert there["pyproxy_invalid_objects"] == {"kind"}
    assert there["kubeproxy_sync_proxy_rules_duration_seconds_bucket"] == {"ip_family"}
    assert "process_cpu_seconds_total" in there


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up", {"up"}),
        ('a_total{b="c", d=~"e"} > 1e3', {"a_total"}),
        ("sum by (le, x) (rate(a_bucket[5m])) / on (y) group_left (z) b", {"a_bucket", "b"}),
        ("sum(a) by (b)", {"a"}),
        ("a unless a offset 15m and time() - b > bool 60", {"a", "b"}),
        ('label_replace(a, "x", "$1", "y", "(.*)")', {"a"}),
    ],
)
def test_names_in_expressions(expression: str, names: set[str]) -> None:
    assert promql.metrics(expression) == names


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    tested = (MONITORING / "alerts_test.yaml").read_text()
    for rule in groups().groups[0].rules:
        assert {"summary", "description"} == rule.annotations.keys()
        assert rule.labels["severity"] in {"warning", "critical"}
        assert re.search(rf"\b{rule.alert}\b", tested)


def test_the_operator_gets_the_same_rules() -> None:
    resource = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert resource["spec"] == yaml.safe_load(ALERTS.read_text())


def test_prometheus_reads_the_alerts_and_they_fire_when_they_should() -> None:
    promtool = tool("promtool")
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], capture_output=True, text=True, check=False, cwd=MONITORING
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_the_dashboard(tmp_path: Path) -> None:
    """As recording rules, for promtool reads no dashboards."""

    def expanded(expression: str) -> str:
        return expression.replace("$__rate_interval", "5m").replace("$instance", ".*")

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


def test_the_dashboard_has_the_panels_and_places_for_them() -> None:
    titles = [panel["title"].lower() for panel in DASHBOARD["panels"]]
    for wanted in WANTED:
        assert any(wanted in title for title in titles), wanted
    places: list[Any] = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(DASHBOARD["panels"])))
    assert used <= variables
