"""Alerts and dashboard use metrics that pyproxy exposes, in valid PromQL."""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.test_metrics import METRICS_FILE
from tests.used_metrics import read, used
from tools import prometheusrule

from .manifests import MONITORING, ROOT, chart, the, tool
from .schemas import RuleGroups

ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
GRID_COLUMNS = 24
_SYNC = "kubeproxy_sync_proxy_rules"
_PROCESS = ("process_cpu_seconds_total", "process_resident_memory_bytes")
_PROGRAMMING = "kubeproxy_network_programming_duration_seconds"
# Series, each with the labels that are selected or grouped by, of content for kube-proxy.
ASKED_FOR: dict[str, dict[str, tuple[str, ...]]] = {
    "dashboard and alerts of kubernetes-mixin": {
        "up": ("job", "instance"),
        f"{_SYNC}_duration_seconds_count": (),
        f"{_SYNC}_duration_seconds_bucket": ("le",),
        f"{_PROGRAMMING}_count": (),
        f"{_PROGRAMMING}_bucket": ("le",),
        "rest_client_requests_total": ("code",),
        "rest_client_request_duration_seconds_bucket": ("verb", "le"),
        **dict.fromkeys((*_PROCESS, "go_goroutines"), ()),
    },
    "Datadog's check kube_proxy": {
        f"{_PROGRAMMING}_count": ("ip_family",),
        f"{_SYNC}_duration_seconds_count": ("ip_family",),
        f"{_SYNC}_latency_microseconds_count": (),
        f"{_SYNC}_endpoint_changes_pending": (),
        f"{_SYNC}_endpoint_changes_total": (),
        f"{_SYNC}_service_changes_pending": (),
        f"{_SYNC}_service_changes_total": (),
        f"{_SYNC}_iptables_restore_failures_total": (),
        f"{_SYNC}_iptables_total": ("table",),
        f"{_SYNC}_last_queued_timestamp_seconds": (),
        f"{_SYNC}_last_timestamp_seconds": (),
        "rest_client_exec_plugin_certificate_rotation_age_count": (),
        "rest_client_exec_plugin_ttl_seconds": (),
        "rest_client_request_duration_seconds_count": ("verb",),
        "rest_client_requests_total": ("code", "host", "method"),
        **dict.fromkeys((*_PROCESS, "process_virtual_memory_bytes"), ()),
    },
    "Elastic's metricset kubernetes.proxy": {
        f"{_SYNC}_duration_seconds_bucket": ("le",),
        f"{_PROGRAMMING}_bucket": ("le",),
        "rest_client_requests_total": ("code", "host", "method"),
        "rest_client_request_duration_seconds_bucket": ("host", "verb", "le"),
        "rest_client_request_size_bytes_bucket": ("host", "verb", "le"),
        "rest_client_response_size_bytes_bucket": ("host", "verb", "le"),
        **dict.fromkeys(_PROCESS, ()),
        "process_virtual_memory_bytes": (),
        "process_open_fds": (),
        "process_max_fds": (),
        "process_start_time_seconds": (),
    },
}
NOT_EXPOSED = {
    "go_goroutines",
    f"{_SYNC}_latency_microseconds_count",
    "rest_client_exec_plugin_certificate_rotation_age_count",
    "rest_client_exec_plugin_ttl_seconds",
}
"""The series that docs/reference/metrics.md names as missing."""
# Prometheus itself adds these to a scrape, and to the alerts that it evaluates.
PROMETHEUS_METRICS = {"up", "ALERTS"}
PROMETHEUS_LABELS = {"job", "instance", "alertname", "alertstate"}


def groups() -> RuleGroups:
    return msgspec.convert(yaml.safe_load(ALERTS.read_text()), RuleGroups)


def exposed() -> dict[str, set[str]]:
    """Return the labels of every series that an agent exposes in some mode, by name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(used().exposition().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # The agent's own tests compare what iptables mode adds with kube-proxy's table.
    for row in kube_proxy_rows():
        if row["modes"] == "iptables":
            found[row["metric"]] = set(row["labels"].split(","))
    return found


def kube_proxy_rows() -> list[dict[str, str]]:
    with METRICS_FILE.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


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
        for target in panel.get("targets", []):
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


@pytest.mark.parametrize("content", ASKED_FOR)
def test_content_for_kube_proxy_finds_its_metrics(content: str) -> None:
    there = exposed() | dict.fromkeys(PROMETHEUS_METRICS, PROMETHEUS_LABELS)
    for name, labels in ASKED_FOR[content].items():
        if name not in NOT_EXPOSED:
            assert set(labels) <= there[name], name


def test_the_reference_has_all_metrics_and_names_what_is_missing() -> None:
    present, _, missing = (
        (ROOT / "docs" / "reference" / "metrics.md").read_text().partition("## Missing")
    )
    named = re.compile(r"`([a-z]+_[a-z_]+)`")
    rows = (line.split("|")[1] for line in present.splitlines() if line.startswith("| `"))
    in_some_mode = {row["metric"] for row in kube_proxy_rows() if row["modes"] == "iptables"}
    in_some_mode.add("pyproxy_iptables_lock_waits_total")
    for family in read(used()):
        in_some_mode.add(family.name + ("_total" if family.type == "counter" else ""))
    assert {name for row in rows for name in named.findall(row)} == in_some_mode
    assert not NOT_EXPOSED & exposed().keys()
    lacking = {name.removesuffix("_count") for name in NOT_EXPOSED}
    assert lacking <= set(named.findall(missing))


def test_every_alert_has_a_summary_a_description_and_a_test() -> None:
    tested = (MONITORING / "alerts_test.yaml").read_text()
    for rule in groups().groups[0].rules:
        assert {"summary", "description", "runbook_url"} == rule.annotations.keys()
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


def test_panels_do_not_overlap_and_use_declared_variables() -> None:
    cells: list[tuple[int, int]] = []
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        columns = range(grid["x"], grid["x"] + grid["w"])
        assert columns.stop <= GRID_COLUMNS
        cells += itertools.product(columns, range(grid["y"], grid["y"] + grid["h"]))
    assert len(set(cells)) == len(cells)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(DASHBOARD["panels"])))
    assert used <= variables
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_panel_says_what_it_shows_and_how_bad_values_look() -> None:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
        # A stat has no axis, so only its colour shows whether the value is bad.
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:], panel["title"]
