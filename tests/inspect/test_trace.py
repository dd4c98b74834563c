"""`pyproxy trace`: what it says of packets, and what the kernel tells of real ones."""

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
from tests.inspect.node import NAMESPACE, SITE, Answer, InspectedNode
from tests.inspect.test_top import WEB, endpoint_slice, service

TO = f"{WEB}:80"
TABLE = "pyproxy-trace-"


@pytest.fixture(scope="module")
def client(whole_node: InspectedNode) -> None:
    """Let the API know a2 as the pod shop/client."""
    path = collection(NAMESPACE, PODS)
    spec = {"nodeName": "node-a", "containers": [{"name": "client", "image": "client:1"}]}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": spec}
    whole_node.api.create(path, made)
    whole_node.api.patch(f"{path}/client/status", {"status": {"podIPs": [{"ip": "10.244.1.12"}]}})


@pytest.fixture
def web(node: InspectedNode, client: None) -> InspectedNode:
    """The node with one Service, programmed."""
    node.create(
        service("web", WEB, {"name": "http", "port": 80}),
        endpoint_slice("web", "http", "10.244.1.11", "10.244.2.11"),
    )
    node.until(lambda: WEB in node.nft("list map inet pyproxy services4"), "the Service is served")
    return node


@pytest.mark.kernel
def test_it_says_what_may_become_of_a_packet(web: InspectedNode) -> None:
    told = web.command("trace", "--from", "10.244.1.12", "--to", TO, "-o", "json").json
    assert (told["interface"], told["protocol"]) == ("cbr0", "tcp")
    assert {(each["endpoint"], each["share"]) for each in told["outcomes"]} == {
        ("10.244.1.11:8080", 0.5),
        ("10.244.2.11:8080", 0.5),
    }
    assert {each["source"] for each in told["outcomes"]} == {"kept"}
    routing = web.command("trace", "--from", "10.244.1.12", "--to", TO)
    assert routing.status == 0
    assert "shop/web:http" in routing.out
    assert "50.00%   delivered to 10.244.2.11:8080, source kept" in routing.out


@pytest.mark.kernel
def test_a_pod_is_a_sender_by_its_name(web: InspectedNode) -> None:
    told = web.command("trace", "--from", "shop/client", "--to", TO, "-o", "json").json
    assert (told["source"], told["interface"]) == ("10.244.1.12", "cbr0")


@pytest.mark.kernel
def test_it_reads_what_the_running_agent_writes_whatever_flags_say(web: InspectedNode) -> None:
    routing = web.command("trace", "--to", TO, "--proxy-mode", "iptables")
    assert routing.status == 0
    assert "services4 {" in routing.out


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("sender", "to", "status", "words"),
    [
        ("outside", TO, 0, "masqueraded by its mark"),
        ("node", TO, 0, "sent by this node"),
        ("10.244.1.12", f"{WEB}:81", 1, "rejected with a TCP reset"),
        ("10.244.1.12", f"{WEB}:81/udp", 1, "rejected with an ICMP error"),
        ("10.244.1.12", "10.96.0.99:80", 0, "no Service's"),
    ],
)
def test_each_end_has_its_words_and_its_status(
    web: InspectedNode, sender: str, to: str, status: int, words: str
) -> None:
    routing = web.command("trace", "--from", sender, "--to", to)
    assert routing.status == status
    assert words in routing.out


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "web"), "write ADDRESS:PORT"),
        (("--to", TO, "--from", "nobody"), "write an address"),
        (("--to", TO, "--source-port", "0"), "--source-port: '0' is not a port"),
        (("--to", TO, "--live", "--from", "outside"), "with --live give an address"),
        (("--to", TO, "--from", "pod"), "a pod's NAMESPACE/NAME"),
        (("--to", TO, "--from", "/pod"), "write a pod as NAMESPACE/NAME"),
        (("--to", TO, "--from", "shop/nobody"), "the API knows no address of such a pod"),
        (("--to", "[fd96::1]:80", "--from", "shop/client"), "the pod has no IPv6 address"),
        (("--to", TO, "--no-agent", "--proxy-mode", "ipvs"), "IPVS is tables of the kernel's own"),
        (("--to", TO, "--no-agent", "--proxy-mode", "iptables"), "have no chains of pyproxy's"),
    ],
)
def test_a_mistake_is_one_line(web: InspectedNode, arguments: tuple[str, ...], words: str) -> None:
    routing = web.command("trace", *arguments)
    assert routing.status == 2
    assert words in routing.err
    assert len(routing.err.splitlines()) == 1


@pytest.mark.packets
def test_a_flow_that_is_known_goes_its_way(web: InspectedNode) -> None:
    ask = partial(probe, parse_destination(TO), timeout=2.0, source_port=40123)
    (name,) = web.cluster.network.namespace("a2").call(ask).reached
    asked = ("trace", "--from", "10.244.1.12", "--source-port", "40123", "--to", TO, "-o", "json")
    (outcome,) = web.command(*asked).json["outcomes"]
    assert outcome["endpoint"] == {"a1": "10.244.1.11:8080", "b1": "10.244.2.11:8080"}[name]
    assert outcome["share"] == 1.0


def watched(node: InspectedNode, *flags: str) -> list[Answer]:
    """What `--live` says while a client connects until it has said enough."""
    routings: list[Answer] = []

    def watch() -> None:
        routings.append(node.run("trace", "--live", "--to", TO, "--timeout", "30", *flags))

    thread = threading.Thread(target=watch)
    thread.start()
    node.until(lambda: TABLE in node.nft("list tables"), "the kernel is to trace")
    client = node.cluster.network.namespace("a2")
    while thread.is_alive():
        client.call(partial(probe, parse_destination(TO), timeout=0.5))
        thread.join(0.2)
    return routings


@pytest.mark.packets
def test_the_kernel_tells_what_packets_meet(web: InspectedNode) -> None:
    drift = web.command("status", "-o", "json").json["repairs"]
    (routing,) = watched(web, "--count", "2", "--from", "10.244.1.12", "-o", "json")
    assert routing.status == 0
    packet_traces = routing.out.replace("}\n{", "}\0{").split("\0")
    assert len(packet_traces) == 2
    (routing,) = watched(web, "--count", "1")
    lines = routing.out.splitlines()
    assert lines[0].startswith("10.244.1.12:")
    assert lines[0].endswith(f" -> {TO}, came in by cbr0")
    rules = [line.strip() for line in lines]
    assert any("services: ip daddr . meta l4proto . th dport vmap @services4" in r for r in rules)
    assert "goto cluster4-2" in rules
    assert {"now to 10.244.1.11:8080", "now to 10.244.2.11:8080"} & set(rules)
    assert rules[-1].startswith("on its way to 10.244.")
    assert TABLE not in web.nft("list tables")
    assert web.command("status", "-o", "json").json["repairs"] == drift


@pytest.mark.kernel
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_it_ends(web: InspectedNode, ending: signal.Signals) -> None:
    namespace = web.cluster.network.namespace(SITE)
    command = [sys.executable, "-m", "pyproxy", "trace", "--live", "--to", TO]
    process = namespace.start(command, output=subprocess.PIPE)
    try:
        web.until(lambda: TABLE in web.nft("list tables"), "the kernel is to trace")
        os.kill(process.pid, ending)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == (-9 if ending is signal.SIGKILL else 130)
    web.until(lambda: TABLE not in web.nft("list tables"), "the table is gone")


@pytest.mark.kernel
def test_what_an_older_kernel_left_behind_goes_at_the_next_start(web: InspectedNode) -> None:
    web.nft(f"add table inet {TABLE}1")
    routing = web.run("trace", "--live", "--to", TO, "--timeout", "0.1")
    assert routing.status == 1
    assert TABLE not in web.nft("list tables")
