"""`pyproxy status` of a running agent."""

import pytest

from tests.inspect.node import NODE, InspectedNode

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
