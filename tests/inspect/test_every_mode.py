"""Every inspection command gives the same kinds of results in every proxy mode.

In ipvs mode the tests run in the virtual machine: `test_every_mode_vm` has them too.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from pyproxy_lab.modes import LabMode
from pyproxy_lab.probe import probe

from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import SITE, CommandResult, InspectedNode, inspected_node

pytestmark = [pytest.mark.kernel, pytest.mark.packets]

TARGET = "shop/web"
ADDRESS = "10.96.0.60"
ENDPOINTS = ("10.244.1.11:8080", "10.244.2.11:8080")
CLIENT = "10.244.1.12"

COUNTER_FLAGS = {"nftables": ("--endpoint-counters",)}


def flags(mode: LabMode) -> tuple[str, ...]:
    return (*mode.flags, *COUNTER_FLAGS.get(mode.name, ()))


@pytest.fixture(scope="module")
def programmed(mode: LabMode) -> Iterator[InspectedNode]:
    with inspected_node(*flags(mode)) as made:
        made.create(
            service("web", ADDRESS),
            endpoint_slice("web", [each.partition(":")[0] for each in ENDPOINTS]),
        )
        yield made


def on_node(node: InspectedNode, command: str) -> str:
    return node.cluster.network.namespace(SITE).run(shlex.split(command)).stdout


def remove_endpoint_rule(node: InspectedNode, program: str) -> str:
    """Delete the rule that leads to the first endpoint, and return it."""
    rule = next(
        line.removeprefix("-A ")
        for line in on_node(node, f"{program} -t nat -S").splitlines()
        if line.startswith("-A KUBE-SVC-")
        if f"--to-destination {ENDPOINTS[0]}" in line or "KUBE-SEP-" in line
    )
    on_node(node, f"{program} --wait -t nat -D {rule}")
    return rule


def remove_endpoint_element(node: InspectedNode) -> str:
    element = f"{ADDRESS} . tcp . 80 . 0"
    on_node(node, f"nft delete element inet pyproxy endpoints4 {{ {element} }}")
    return f"endpoints4 {{ {element} : "


def remove_real_server(node: InspectedNode) -> str:
    on_node(node, f"ipvsadm -d -t {ADDRESS}:80 -r {ENDPOINTS[0]}")
    return f"real server {ENDPOINTS[0]} of tcp {ADDRESS}:80 weight 1"


REMOVE_ENDPOINT: Mapping[str, Callable[[InspectedNode], str]] = {
    "nftables": remove_endpoint_element,
    "iptables-legacy": partial(remove_endpoint_rule, program="iptables-legacy"),
    "iptables-nft": partial(remove_endpoint_rule, program="iptables-nft"),
    "ipvs": remove_real_server,
}
"""Remove one endpoint with the node's own tools; return how explain names it."""

REMOVE_BASE_RULES = {
    "nftables": "nft flush chain inet pyproxy services",
    "iptables-legacy": "iptables-legacy --wait -t nat -F PREROUTING",
    "iptables-nft": "iptables-nft --wait -t nat -F PREROUTING",
    "ipvs": "nft flush chain inet pyproxy-ipvs services",
}


def failed_steps(result: CommandResult) -> dict[str, Any]:
    return {step["name"]: step for step in result.json["steps"] if step["result"] == "failed"}


def test_status_names_the_mode_and_its_tables(programmed: InspectedNode, mode: LabMode) -> None:
    result = programmed.command("status", "-o", "json")
    status = result.json
    assert (result.status, status["healthy"]) == (0, True)
    assert status["mode"] == mode.proxy_mode.value
    assert any(table["used"] > 0 for table in status["tables"])


def test_services_lists_frontends_and_endpoints(programmed: InspectedNode) -> None:
    result = programmed.command("services", TARGET, "-o", "json")
    assert result.status == 0
    (found,) = result.json["services"]
    (port,) = found["ports"]
    (frontend,) = port["frontends"]
    assert (frontend["address"], frontend["port"], frontend["use"]) == (ADDRESS, 80, "cluster")
    assert [each["address"] for each in port["endpoints"]] == list(ENDPOINTS)
    assert {each["usedBy"] for each in port["endpoints"]} == {"all"}


def test_nothing_differs_and_reading_writes_nothing(programmed: InspectedNode) -> None:
    explained = programmed.command("explain", TARGET, "-o", "json")
    assert (explained.status, failed_steps(explained)) == (0, {})
    (kernel,) = (step for step in explained.json["steps"] if step["name"] == "kernel")
    assert kernel["result"] == "ok"
    difference = programmed.command("diff", "-o", "json").json
    assert (difference["same"], difference["lines"], difference["rules"]) == (True, [], [])
    assert programmed.messages_written_by_reading() == 0


def test_explain_and_diff_find_an_endpoint_that_was_removed_by_hand(
    programmed: InspectedNode, mode: LabMode
) -> None:
    with programmed.paused():
        removed = REMOVE_ENDPOINT[mode.name](programmed)
        explained = programmed.without_agent("explain", TARGET, "-o", "json", *flags(mode))
        difference = programmed.without_agent("diff", "-o", "json", *flags(mode))
    failed = failed_steps(explained)
    assert (explained.status, list(failed)) == (1, ["kernel"])
    assert any(removed in line for line in failed["kernel"]["details"]), failed
    assert difference.status == 1
    assert any(removed in line for line in difference.json["lines"]), difference.json
    assert difference.json["rules"] == []
    programmed.wait_repaired()


def test_explain_and_diff_find_base_rules_that_were_removed_by_hand(
    programmed: InspectedNode, mode: LabMode
) -> None:
    with programmed.paused():
        on_node(programmed, REMOVE_BASE_RULES[mode.name])
        explained = programmed.without_agent("explain", TARGET, "-o", "json", *flags(mode))
        difference = programmed.without_agent("diff", "-o", "json", *flags(mode))
    assert failed_steps(explained).keys() == {"kernel"}
    assert difference.status == 1
    assert difference.json["rules"]
    programmed.wait_repaired()


def test_trace_gives_both_endpoints_half_of_the_connections(programmed: InspectedNode) -> None:
    result = programmed.command("trace", "--from", CLIENT, "--to", f"{ADDRESS}:80", "-o", "json")
    assert result.status == 0
    outcomes = {each["endpoint"]: each for each in result.json["outcomes"]}
    assert outcomes.keys() == set(ENDPOINTS)
    for outcome in outcomes.values():
        assert outcome["probability"] == pytest.approx(0.5)
        assert outcome["source"] == "kept"
    assert TARGET in result.out or "virtual service" in result.out


def test_trace_rejects_another_port_of_a_cluster_ip(programmed: InspectedNode) -> None:
    result = programmed.command("trace", "--from", CLIENT, "--to", f"{ADDRESS}:81", "-o", "json")
    (outcome,) = result.json["outcomes"]
    assert (result.status, outcome["verdict"]) == (1, "rejected")


def test_top_counts_connections(programmed: InspectedNode) -> None:
    words = ("top", TARGET, "--once", "--interval", "0.1", "-o", "json")
    first = programmed.command(*words)
    (before,) = first.json["rows"]
    assert before["service"] == f"{TARGET}:http"
    client = programmed.cluster.network.namespace("a2")
    seen = client.call(partial(probe, parse_destination(f"{ADDRESS}:80"), tries=4, timeout=2.0))
    connections = sum(seen.reached.values())
    assert connections >= 2

    def counted() -> bool:
        (service_row,) = programmed.command(*words).json["rows"]
        rows = programmed.command(*words, "--endpoints").json["rows"]
        totals = {row["endpoint"]: row["total"] for row in rows}
        assert totals.keys() == set(ENDPOINTS)
        total: int = service_row["total"]
        return bool(total == before["total"] + connections == sum(totals.values()))

    # IPVS adds its processors' counters up every two seconds.
    programmed.until(counted, "all connections are counted")
