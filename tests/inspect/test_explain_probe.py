"""`pyproxy explain --probe` on a working node: it connects, and states who does not respond."""

from __future__ import annotations

from typing import Any

import pytest

from tests.agent.live import endpoint_slice, service
from tests.inspect.node import NAMESPACE, InspectedNode

pytestmark = pytest.mark.packets

A1, B1 = "10.244.1.11", "10.244.2.11"
TARGET = f"{NAMESPACE}/web"


def step(node: InspectedNode, *flags: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the step `probes` of an explanation."""
    done = node.command("explain", TARGET, "-o", "json", *flags)
    return done.status, next(each for each in done.json["steps"] if each["name"] == "probes")


def test_endpoints_and_frontends_that_respond_are_counted(node: InspectedNode) -> None:
    node.create(service("web", "10.96.0.30"), endpoint_slice("web", (A1, B1)))
    status, found = step(node, "--probe")
    assert (status, found["result"]) == (0, "ok")
    assert found["message"] == "2 endpoints and 1 frontend accept connections"


def test_without_the_flag_nothing_is_probed(node: InspectedNode) -> None:
    node.create(service("web", "10.96.0.30"), endpoint_slice("web", (A1, B1)))
    _, found = step(node)
    assert found["result"] == "skipped"
    assert found["message"] == "not checked: without --probe no connection is made"


def test_an_application_that_listens_elsewhere_is_found(node: InspectedNode) -> None:
    made = endpoint_slice("web", (A1, B1))
    made["ports"][0]["port"] = 8099
    node.create(service("web", "10.96.0.30"), made)
    status, found = step(node, "--probe")
    assert (status, found["result"]) == (1, "failed")
    assert found["message"].startswith(f"no process listens at {A1}:8099, {B1}:8099: ")


def test_a_firewall_on_the_way_is_no_missing_listener(node: InspectedNode) -> None:
    node.create(service("web", "10.96.0.30"), endpoint_slice("web", (A1, B1)))
    node.nft("add table inet foreign")
    try:
        node.nft("add chain inet foreign out { type filter hook postrouting priority 0; }")
        node.nft(f"add rule inet foreign out ip daddr {B1} drop")
        status, found = step(node, "--probe")
    finally:
        node.nft("delete table inet foreign")
    assert (status, found["result"]) == (1, "failed")
    assert found["message"].startswith(f"{B1}:8080 did not respond within 2.5 s")
