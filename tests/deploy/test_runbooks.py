"""A runbook for each alert, to which the alert and a panel of the dashboard lead."""

from __future__ import annotations

import json
import re

import pytest

from tests.docs.commands import shown

from .manifests import ROOT, chart
from .schemas import Rule
from .test_monitoring import DASHBOARD, groups

FOLDER = ROOT / "docs" / "runbooks"
INDEX = FOLDER / "index.md"
RUNBOOKS = {path.stem: path.read_text() for path in FOLDER.glob("Pyproxy*.md")}
ALERTS = [rule for group in groups().groups for rule in group.rules]
SITE = "https://pyproxy.example"
"""The placeholder for the address of the documentation, which nothing publishes yet."""

PROGRAMS = {"conntrack", "curl", "journalctl", "kubectl", "modprobe", "sysctl", "systemctl"}
PARTS = ("Meaning", "Impact", "Check", "Fix", "Silence")


def test_every_alert_has_a_runbook_and_the_index_lists_them_in_order() -> None:
    names = [rule.alert for rule in ALERTS]
    assert sorted(RUNBOOKS) == sorted(names)
    rows = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", INDEX.read_text(), re.MULTILINE)
    assert rows == [(rule.alert, rule.labels["severity"]) for rule in ALERTS]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.alert)
def test_a_runbook_is_complete_and_alert_and_dashboard_link_to_it(rule: Rule) -> None:
    runbook = RUNBOOKS[rule.alert]
    assert runbook.startswith(f"# {rule.alert}\n")
    assert tuple(re.findall(r"^\*\*(\w+)\.\*\*", runbook, re.MULTILINE)) == PARTS
    url = rule.annotations["runbook_url"]
    assert url == f"{SITE}/runbooks/{rule.alert}.html"
    links = {"title": f"Runbook: {rule.alert}", "url": url, "targetBlank": True}
    assert any(links in panel.get("links", []) for panel in DASHBOARD["panels"])


def test_every_link_of_the_dashboard_leads_to_a_runbook() -> None:
    there = {f"{SITE}/runbooks/{path.stem}.html" for path in FOLDER.glob("*.md")}
    for each in (DASHBOARD, *DASHBOARD["panels"]):
        assert {link["url"] for link in each.get("links", [])} <= there


def test_the_chart_replaces_the_placeholder_of_the_site() -> None:
    rendered = chart(
        apiServers=["https://a:6443"],
        docsUrl="https://docs.here/",
        prometheusRule={"enabled": True},
        dashboard={"enabled": True},
    )
    text = json.dumps(rendered)
    assert SITE not in text
    assert "https://docs.here/runbooks/PyproxyDown.html" in text


@pytest.mark.parametrize("name", sorted(RUNBOOKS))
def test_a_runbook_has_commands(name: str) -> None:
    programs = [command.split(maxsplit=1)[0] for command in shown(RUNBOOKS[name])]
    assert {"kubectl", "pyproxy"} & set(programs)
    assert set(programs) <= PROGRAMS
