"""A runbook for each alert, whose commands exist, and a panel of the dashboard that leads to it."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from pyproxy.commands import registry
from pyproxy.config.command_line import Parser, go_style
from pyproxy.errors import UsageError
from pyproxy.kubectl import command as kubectl

from .manifests import ROOT, chart
from .schemas import Rule
from .test_monitoring import DASHBOARD, groups

FOLDER = ROOT / "docs" / "runbooks"
INDEX = FOLDER / "index.md"
RUNBOOKS = {path.stem: path.read_text() for path in FOLDER.glob("Pyproxy*.md")}
ALERTS = [rule for group in groups().groups for rule in group.rules]
SITE = "https://pyproxy.example"
"""The placeholder for the address of the documentation, which nothing publishes yet."""

OTHER_PROGRAMS = {"conntrack", "curl", "journalctl", "kubectl", "sysctl", "systemctl"}
PARTS = ("Meaning", "Impact", "Check", "Fix", "Silence")
_INSPECTED = re.compile(r"^(?:kubectl (?:-n \S+ )?exec \S+ -- )?pyproxy (.*)")


def commands() -> list[tuple[str, str]]:
    """Return the commands of all runbooks, each with the name of its runbook."""
    return [
        (name, line.removeprefix("    $ ").partition(" | ")[0])
        for name, text in sorted(RUNBOOKS.items())
        for line in text.splitlines()
        if line.startswith("    $ ")
    ]


def parse(command: str) -> bool:
    """Parse the arguments of pyproxy and of its plugin; raise UsageError where they are wrong."""
    if command.startswith("kubectl pyproxy "):
        name, *words = shlex.split(command)[2:]
        parser = Parser(f"kubectl pyproxy {name}", allow_abbrev=False)
        kubectl.COMMANDS[name].load().add_arguments(parser)
    elif inspected := _INSPECTED.match(command):
        name, *words = shlex.split(inspected[1])
        parser = Parser(f"pyproxy {name}", allow_abbrev=False)
        registry.COMMANDS[name].load().declare(parser, "")
    else:
        return False
    parser.parse_all(list(go_style(words)))
    return True


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


@pytest.mark.parametrize(("name", "command"), commands())
def test_the_runbooks_commands_are_right(name: str, command: str) -> None:
    assert parse(command) or command.split(maxsplit=1)[0] in OTHER_PROGRAMS, name


def test_a_wrong_command_is_found() -> None:
    for command in ("kubectl pyproxy status --nods 1", "pyproxy status --slowest"):
        with pytest.raises(UsageError):
            parse(command)
