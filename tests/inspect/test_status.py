"""`pyproxy status`, of an agent that runs."""

import pytest

from tests.inspect.node import NODE, InspectedNode

pytestmark = pytest.mark.kernel


def test_a_healthy_agent_says_so(node: InspectedNode) -> None:
    routing = node.command("status", "-o", "json")
    assert routing.status == 0
    status = routing.json
    assert status["healthy"] is True
    assert (status["mode"], status["node"]) == ("nftables", NODE)
    assert status["syncs"] >= 1
    assert status["lastSync"]["took"] > 0
    assert {"name": "pods4", "held": 1, "limit": 0} in status["fill"]


def test_it_is_a_table_for_people(node: InspectedNode) -> None:
    out = node.command("status").out
    assert "\x1b" not in out
    assert {line.split("  ")[0] for line in out.splitlines()} >= {"node", "mode", "health"}
    assert "healthy" in out
