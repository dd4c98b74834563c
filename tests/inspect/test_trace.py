"""`pyproxy trace`: outcomes of a packet from the kernel state, and live traces of real packets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
from pyproxy_lab.client import PODS, collection
from pyproxy_lab.probe import probe

from pyproxy.model.destination import parse_destination
from tests.agent.live import endpoint_slice, service
from tests.inspect.node import NAMESPACE, SITE, CommandResult, InspectedNode
from tests.waiting import PATIENCE, RESPONSE_TIMEOUT

WEB = "10.96.0.10"
TO = f"{WEB}:80"
TABLE = "pyproxy-trace-"


@pytest.fixture(scope="module")
def client(whole_node: InspectedNode) -> None:
    """Create the pod shop/client with the address of a2."""
    path = collection(NAMESPACE, PODS)
    spec = {"nodeName": "node-a", "containers": [{"name": "client", "image": "client:1"}]}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": spec}
    whole_node.api.create(path, made)
    whole_node.api.patch(f"{path}/client/status", {"status": {"podIPs": [{"ip": "10.244.1.12"}]}})


@pytest.fixture
def web(node: InspectedNode, client: None) -> InspectedNode:
    """The node with one programmed Service."""
    node.create(service("web", WEB), endpoint_slice("web", ["10.244.1.11", "10.244.2.11"]))
    node.until(
        lambda: WEB in node.nft("list map inet pyproxy services4"), "the Service is programmed"
    )
    return node


@pytest.mark.kernel
def test_it_prints_the_outcomes_of_a_packet(web: InspectedNode) -> None:
    trace = web.command("trace", "--from", "10.244.1.12", "--to", TO, "-o", "json").json
    assert (trace["interface"], trace["protocol"]) == ("cbr0", "tcp")
    assert {(each["endpoint"], each["probability"]) for each in trace["outcomes"]} == {
        ("10.244.1.11:8080", 0.5),
        ("10.244.2.11:8080", 0.5),
    }
    assert {each["source"] for each in trace["outcomes"]} == {"kept"}
    result = web.command("trace", "--from", "10.244.1.12", "--to", TO)
    assert result.status == 0
    assert "shop/web:http" in result.out
    assert "50.00%        delivered to 10.244.2.11:8080, source kept" in result.out


@pytest.mark.kernel
def test_the_sender_may_be_a_pod(web: InspectedNode) -> None:
    trace = web.command("trace", "--from", "shop/client", "--to", TO, "-o", "json").json
    assert (trace["source"], trace["interface"]) == ("10.244.1.12", "cbr0")


@pytest.mark.kernel
def test_the_mode_is_that_of_the_running_agent_and_not_of_the_flags(web: InspectedNode) -> None:
    result = web.command("trace", "--to", TO, "--proxy-mode", "iptables")
    assert result.status == 0
    assert "services4 {" in result.out


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("sender", "to", "status", "message"),
    [
        ("outside", TO, 0, "masqueraded by its mark"),
        ("node", TO, 0, "sent by this node"),
        ("10.244.1.12", f"{WEB}:81", 1, "rejected with a TCP reset"),
        ("10.244.1.12", f"{WEB}:81/udp", 1, "rejected with an ICMP error"),
        ("10.244.1.12", "10.96.0.99:80", 0, "not a Service address"),
    ],
)
def test_each_outcome_has_its_message_and_exit_status(
    web: InspectedNode, sender: str, to: str, status: int, message: str
) -> None:
    result = web.command("trace", "--from", sender, "--to", to)
    assert result.status == status
    assert message in result.out


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "web"), "write ADDRESS:PORT"),
        (("--to", TO, "--from", "nobody"), "write an address"),
        (("--to", TO, "--source-port", "0"), "--source-port: '0' is not a port"),
        (("--to", TO, "--live", "--from", "outside"), "--live needs an address"),
        (("--to", TO, "--from", "pod"), "a pod's NAMESPACE/NAME"),
        (("--to", TO, "--from", "/pod"), "write a pod as NAMESPACE/NAME"),
        (("--to", TO, "--from", "shop/nobody"), "the API server has no address of this pod"),
        (("--to", "[fd96::1]:80", "--from", "shop/client"), "the pod has no IPv6 address"),
        (
            ("--to", TO, "--no-agent", "--proxy-mode", "ipvs"),
            "the kernel holds no table inet pyproxy-ipvs",
        ),
        (("--to", TO, "--no-agent", "--proxy-mode", "iptables"), "have no chains of pyproxy's"),
    ],
)
def test_a_usage_error_is_one_line(
    web: InspectedNode, arguments: tuple[str, ...], message: str
) -> None:
    result = web.command("trace", *arguments)
    assert result.status == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.packets
def test_an_established_flow_keeps_its_endpoint(web: InspectedNode) -> None:
    connect = partial(probe, parse_destination(TO), timeout=RESPONSE_TIMEOUT, source_port=40123)
    (name,) = web.cluster.network.namespace("a2").call(connect).reached
    words = ("trace", "--from", "10.244.1.12", "--source-port", "40123", "--to", TO, "-o", "json")
    (outcome,) = web.command(*words).json["outcomes"]
    assert outcome["endpoint"] == {"a1": "10.244.1.11:8080", "b1": "10.244.2.11:8080"}[name]
    assert outcome["probability"] == 1.0


def live_trace(node: InspectedNode, *flags: str) -> list[CommandResult]:
    """Run `trace --live` while a client connects, until it stops."""
    results: list[CommandResult] = []

    def run() -> None:
        results.append(node.run("trace", "--live", "--to", TO, "--timeout", "30", *flags))

    thread = threading.Thread(target=run)
    thread.start()
    node.until(lambda: TABLE in node.nft("list tables"), "the trace table exists")
    client = node.cluster.network.namespace("a2")
    while thread.is_alive():
        client.call(partial(probe, parse_destination(TO), timeout=0.5))
        thread.join(0.2)
    return results


@pytest.mark.packets
def test_a_live_trace_lists_the_rules_that_a_packet_matches(web: InspectedNode) -> None:
    drift = web.command("status", "-o", "json").json["repairs"]
    (result,) = live_trace(web, "--count", "2", "--from", "10.244.1.12", "-o", "json")
    assert result.status == 0
    packet_traces = result.out.replace("}\n{", "}\0{").split("\0")
    assert len(packet_traces) == 2
    (result,) = live_trace(web, "--count", "1")
    lines = result.out.splitlines()
    assert lines[0].startswith("10.244.1.12:")
    assert lines[0].endswith(f" -> {TO}, came in by cbr0")
    rules = [line.strip() for line in lines]
    assert any("services: ip daddr . meta l4proto . th dport vmap @services4" in r for r in rules)
    assert "goto cluster4-2" in rules
    assert {"translated to 10.244.1.11:8080", "translated to 10.244.2.11:8080"} & set(rules)
    assert rules[-1].startswith("sent to 10.244.")
    assert TABLE not in web.nft("list tables")
    assert web.command("status", "-o", "json").json["repairs"] == drift


@pytest.mark.kernel
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_trace_table_is_removed_after_any_signal(
    web: InspectedNode, signal_number: signal.Signals
) -> None:
    namespace = web.cluster.network.namespace(SITE)
    command = [sys.executable, "-m", "pyproxy", "trace", "--live", "--to", TO]
    process = namespace.start(command, output=subprocess.PIPE)
    try:
        web.until(lambda: TABLE in web.nft("list tables"), "the trace table exists")
        os.kill(process.pid, signal_number)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == (-9 if signal_number is signal.SIGKILL else 130)
    web.until(lambda: TABLE not in web.nft("list tables"), "the table is gone")


@pytest.mark.kernel
def test_a_leftover_trace_table_is_removed_at_the_next_start(web: InspectedNode) -> None:
    web.nft(f"add table inet {TABLE}1")
    result = web.run("trace", "--live", "--to", TO, "--timeout", "0.1")
    assert result.status == 1
    # A node of the lab has a network namespace of its own, and many kernels have no drop monitor.
    (why,) = [line for line in result.err.splitlines() if "drop reasons are not shown" in line]
    assert "drop monitor" in why
    assert TABLE not in web.nft("list tables")
