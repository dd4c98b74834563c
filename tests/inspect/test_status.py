"""`pyproxy status` of a running agent."""

import pytest

from pyproxy.errors import NO_RESPONSE
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import NAMESPACE, NODE, InspectedNode

pytestmark = pytest.mark.kernel


def test_a_healthy_agent(node: InspectedNode) -> None:
    result = node.command("status", "-o", "json")
    assert result.status == 0
    status = result.json
    assert status["healthy"] is True
    assert (status["mode"], status["node"]) == ("nftables", NODE)
    assert status["syncs"] >= 1
    assert status["lastSync"]["duration"] > 0
    assert {"name": "pods4", "used": 1, "limit": 0} in status["tables"]


def test_the_default_output_is_plain_text(node: InspectedNode) -> None:
    out = node.command("status").out
    assert "\x1b" not in out
    assert {line.split("  ")[0] for line in out.splitlines()} >= {"node", "mode", "health"}
    assert "healthy" in out


def test_slow_changes(node: InspectedNode) -> None:
    node.create(service("slow", "10.96.201.1"), endpoint_slice("slow", ["10.244.1.5"]))
    found = node.command("status", "--slow", "-o", "json").json
    assert found["changes"]
    for each in found["changes"]:
        assert sum(each["phases"].values()) == pytest.approx(each["seconds"])
        assert each["seconds"] > 0
    assert {each["namespace"] for each in found["changes"]} == {NAMESPACE}
    lines = node.command("status", "--slow").out.splitlines()
    assert {"OBJECT", "DECODE", "KERNEL", "MEANWHILE"} <= set(lines[1].split())
    assert len(lines) >= 2 + len(found["changes"])


def test_slow_changes_need_an_agent(node: InspectedNode) -> None:
    result = node.run("status", "--slow", "--inspect-socket", "/none/socket")
    assert (result.status, result.out) == (NO_RESPONSE, "")
    assert "no agent listens on /none/socket" in result.err
