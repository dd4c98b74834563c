"""The fast path with packets: which connections are on it, and when they leave it.

Flowtables need another kernel than most machines for tests have.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from pyproxy_lab.modes import NFTABLES, NFTABLES_OFFLOAD
from pyproxy_lab.network import Network
from pyproxy_lab.topology import Pod, numbered_pod, numbered_site

from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.netlink.nftables import get_generation, read_generation
from tests.chaos.load import load
from tests.dataplane.nftables.offload_node import (
    PORT,
    OffloadNode,
    exchange,
    transfer,
)
from tests.semantics.proxied import Object, Proxied, endpoint, endpoint_slice, proxied, service
from tests.waiting import until

pytestmark = [pytest.mark.packets, pytest.mark.vm]
with_flowtables = pytest.mark.kernels(since=(5, 14))

CLUSTER_CIDR = "--cluster-cidr=10.244.0.0/16,fd10::/16"
MEGABYTE = 1_000_000
RESET = struct.pack("ii", 1, 0)
PODS = ("a1", "a2", "b1", "b2")

WEB, WEB6 = "10.96.0.1:80", "[fd00:10:96::1]:80"
WEB_NODE, WEB_NODE6 = "172.30.0.11:30080", "[fd30::11]:30080"
NEAR = "10.96.0.2:80"
STICKY, ENDING, ITSELF = "10.96.0.3:80", "10.96.0.4:80", "10.96.0.5:80"
DNS, DNS6 = "10.96.0.6:53/udp", "[fd00:10:96::6]:53/udp"
UDP = [{"port": PORT, "protocol": "UDP"}]
TCP = [{"port": PORT}]


def slices(name: str, *pods: str | Object, udp: bool = False) -> tuple[Object, Object]:
    ports = UDP if udp else TCP
    return (
        endpoint_slice(name, *pods, ports=ports),
        endpoint_slice(
            name, *(pod for pod in pods if isinstance(pod, str)), ports=ports, family="IPv6"
        ),
    )


DNS_SERVICE = service("dns", "10.96.0.6", "fd00:10:96::6", ports=[{"port": 53, "protocol": "UDP"}])
WEB_SERVICE = service(
    "web", "10.96.0.1", "fd00:10:96::1", ports=[{"port": 80, "nodePort": 30080}], type="NodePort"
)
ROLLED = service(
    "rolled", "10.96.0.7", ports=[{"name": "short", "port": 80}, {"name": "long", "port": 81}]
)
ROLLED_PORTS = [{"name": "short", "port": 8080}, {"name": "long", "port": PORT}]
LONG_LIVED, NEW_PER_SECOND = 50, 200
OBJECTS = (
    WEB_SERVICE,
    *slices("web", "b1"),
    service("near", "10.96.0.2"),
    *slices("near", "a1"),
    service("sticky", "10.96.0.3", sessionAffinity="ClientIP"),
    *slices("sticky", "b1"),
    service("ending", "10.96.0.4"),
    *slices("ending", endpoint("b2", ready=False, serving=True, terminating=True)),
    service("itself", "10.96.0.5"),
    *slices("itself", "a2"),
    DNS_SERVICE,
    *slices("dns", "b1", udp=True),
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture(scope="module")
def serving(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("offload") / "x"
    with proxied(NFTABLES_OFFLOAD, network, folder, CLUSTER_CIDR, objects=OBJECTS) as made:
        yield made


@pytest.fixture
def node(serving: Proxied) -> Iterator[OffloadNode]:
    with OffloadNode(serving, PODS) as made:
        yield made
    serving.apply(*OBJECTS)


@pytest.mark.kernels(before=(5, 14))
def test_a_kernel_without_a_usable_flowtable_is_named_once_and_serves(serving: Proxied) -> None:
    serving.reaches("a2", "10.96.255.1:80", "b1")
    serving.apply(*OBJECTS, *slices("web", "b2"))
    lines = [line for line in serving.agent.log.read_text().splitlines() if "flow offload" in line]
    assert len(lines) == 1
    assert lines[0].endswith(
        "flow offload is not active: this kernel lacks flowtables that keep conntrack's timeouts "
        "(Linux 5.14): connections take the slow path"
    )
    assert "fast-path" not in serving.listing()


@with_flowtables
@pytest.mark.parametrize(
    ("who", "to"),
    [("a2", WEB), ("a2", WEB6), ("ext", WEB_NODE), ("ext", WEB_NODE6), ("a2", NEAR), ("na", WEB)],
)
def test_a_long_connection_transfers_10_megabytes_each_way(
    node: OffloadNode, who: str, to: str
) -> None:
    connection = node.connect(who, to)
    transfer(connection.client, connection.server, 10 * MEGABYTE)
    # The node's own packets pass no hook forward, and are not offloaded.
    is_forwarded = who != "na"
    assert node.is_offloaded(connection) == is_forwarded
    node.forwarded()
    transfer(connection.server, connection.client, 10 * MEGABYTE)
    transfer(connection.client, connection.server, MEGABYTE)
    assert node.is_offloaded(connection) == is_forwarded
    assert node.forwarded() == 0


@with_flowtables
@pytest.mark.parametrize(
    "to",
    [STICKY, ENDING, ITSELF],
    ids=["session affinity", "endpoint that terminates", "pod to itself"],
)
def test_a_connection_that_stays_on_the_slow_path(node: OffloadNode, to: str) -> None:
    connection = node.connect("a2", to)
    for _ in range(50):
        exchange(connection)
    assert not node.is_offloaded(connection)


@with_flowtables
@pytest.mark.parametrize("to", [WEB, WEB6], ids=["IPv4", "IPv6"])
def test_a_handshake_offloads_a_connection(node: OffloadNode, to: str) -> None:
    connection = node.connect("a2", to)
    assert node.is_offloaded(connection)
    node.forwarded()
    exchange(connection)
    assert node.forwarded() == 0


@with_flowtables
@pytest.mark.parametrize("to", [DNS, DNS6], ids=["IPv4", "IPv6"])
def test_a_udp_flow_is_offloaded_once_it_is_more_than_an_exchange_or_two(
    node: OffloadNode, to: str
) -> None:
    short, long = node.udp_flow("a2", to), node.udp_flow("a2", to)
    for _ in range(2):
        node.responds(short)
    assert not node.is_offloaded(short)
    node.udp_becomes_offloaded(long)
    node.forwarded()
    assert [node.ask(long) for _ in range(20)] == ["b1"] * 20
    assert node.forwarded() == 0


@with_flowtables
@pytest.mark.parametrize("closes", ["client", "pod"])
def test_the_other_side_sends_on_after_one_has_shut_down(node: OffloadNode, closes: str) -> None:
    connection = node.connect("a2", WEB)
    node.becomes_offloaded(connection)
    first, second = connection.client, connection.server
    if closes == "pod":
        first, second = second, first
    first.shutdown(socket.SHUT_WR)
    assert second.recv(1) == b""
    transfer(second, first, MEGABYTE)
    second.shutdown(socket.SHUT_WR)
    assert first.recv(1) == b""


@with_flowtables
@pytest.mark.parametrize("resets", ["client", "pod"])
def test_a_reset_reaches_the_other_side(node: OffloadNode, resets: str) -> None:
    connection = node.connect("a2", WEB)
    node.becomes_offloaded(connection)
    first, second = connection.client, connection.server
    if resets == "pod":
        first, second = second, first
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    first.close()
    with pytest.raises(ConnectionResetError):
        second.recv(1)


@with_flowtables
def test_an_idle_connection_leaves_and_comes_back(node: OffloadNode) -> None:
    timeouts = ("nf_flowtable_tcp_timeout", "nf_flowtable_udp_timeout")
    before = {name: node.sysctl(name, 2) for name in timeouts}
    try:
        connection, flow = node.connect("a2", WEB), node.udp_flow("a2", DNS)
        node.becomes_offloaded(connection)
        node.udp_becomes_offloaded(flow)
        node.leaves_fast_path(connection)
        node.leaves_fast_path(flow)
        node.becomes_offloaded(connection)
        node.udp_becomes_offloaded(flow)
        transfer(connection.server, connection.client, MEGABYTE)
    finally:
        for name, value in before.items():
            node.sysctl(name, value)


@with_flowtables
@pytest.mark.parametrize("to", [DNS, DNS6], ids=["IPv4", "IPv6"])
def test_fragments_of_an_offloaded_flow_arrive(node: OffloadNode, to: str) -> None:
    flow = node.udp_flow("a2", to)
    node.udp_becomes_offloaded(flow)
    for number in range(10):
        datagram = bytes([number]) * 4000
        node.responds(flow, datagram)
    assert [node.ask(flow) for _ in range(10)] == ["b1"] * 10


@with_flowtables
def test_a_smaller_mtu_towards_the_pod(node: OffloadNode) -> None:
    na = node.network.namespace("na")
    routes = ("10.244.2.0/24 via 172.30.0.12", "fd10:2::/64 via fd30::12")
    na.ip(f"route change {route} mtu 1300" for route in routes)
    try:
        for to in (WEB, WEB6):
            connection = node.connect("a2", to)
            node.becomes_offloaded(connection)
            transfer(connection.client, connection.server, MEGABYTE)
            transfer(connection.server, connection.client, MEGABYTE)
            node.becomes_offloaded(connection)
        for to in (DNS, DNS6):
            flow = node.udp_flow("a2", to)
            node.udp_becomes_offloaded(flow)
            for _ in range(5):
                node.responds(flow, bytes(1400))
    finally:
        na.ip(f"route change {route}" for route in routes)


@with_flowtables
def test_a_udp_flow_follows_its_service(node: OffloadNode) -> None:
    flows = [node.udp_flow("a2", to) for to in (DNS, DNS6)]
    for flow in flows:
        node.udp_becomes_offloaded(flow)
    node.proxied.apply(*slices("dns", "a1", udp=True))
    for flow in flows:
        node.responds(flow, pod="a1")
        assert [node.ask(flow) for _ in range(40)] == ["a1"] * 40
        node.udp_becomes_offloaded(flow)
    node.proxied.delete("Service", "dns")
    for flow in flows:
        node.falls_silent(flow)
        assert [node.ask(flow) for _ in range(5)] == [""] * 5


@with_flowtables
def test_a_tcp_connection_outlives_its_endpoint_and_its_service(node: OffloadNode) -> None:
    connections = [node.connect("a2", to) for to in (WEB, WEB6)]
    for connection in connections:
        node.becomes_offloaded(connection)
    node.proxied.apply(*slices("web", "b2"))
    for connection in connections:
        exchange(connection)
    node.proxied.delete("Service", "web")
    for connection in connections:
        exchange(connection)
        transfer(connection.client, connection.server, MEGABYTE)


@with_flowtables
def test_a_rollout_whose_new_pods_get_the_addresses_of_old_ones(node: OffloadNode) -> None:
    network, proxied = node.network, node.proxied
    old = {name: numbered_pod(name, site, 31) for name, site in (("r1", 1), ("r2", 2))}
    spare = numbered_pod("n1", 1, 32)
    for pod in (*old.values(), spare):
        network.add_pod(pod)
        node.listen(pod.name)

    def serve(*pods: Pod, ending: Pod | None = None) -> None:
        ends = [at(pod) for pod in pods]
        ends += [at(ending, ready=False, terminating=True)] if ending else []
        proxied.apply(ROLLED, endpoint_slice("rolled", *ends, ports=ROLLED_PORTS))

    serve(*old.values())
    connections = [node.connect("a2", "10.96.0.7:81") for _ in range(LONG_LIVED)]
    for connection in connections:
        node.becomes_offloaded(connection)
    now = [*old.values(), spare]
    with load(network.namespace("a1"), NEW_PER_SECOND, ["10.96.0.7:80"]) as result:
        serve(*now)
        for pod in old.values():
            now.remove(pod)
            serve(*now, ending=pod)
            for connection in connections:
                exchange(connection)
            for connection in [each for each in connections if each.pod_name == pod.name]:
                connection.server.close()
                assert connection.client.recv(1) == b""
                connection.client.close()
                connections.remove(connection)
            serve(*now)
            has_none = partial(has_no_connection, network, pod.name)
            until(has_none, "its connections have ended")
            node.stop_listening(pod.name)
            network.remove_pod(pod.name)
            # A network plugin announces the new pod's hardware address.
            network.namespace(pod.site).ip([f"neigh flush to {pod.addresses.ipv4}"])
            new = msgspec.structs.replace(pod, name=f"new-{pod.name}")
            network.add_pod(new)
            node.listen(new.name)
            now.append(new)
            serve(*now)
            connections += [node.connect("a2", "10.96.0.7:81") for _ in range(LONG_LIVED // 2)]
            for connection in connections:
                node.becomes_offloaded(connection)
    assert (result.failed, result.retransmitted) == ({}, 0)
    assert result.answered > NEW_PER_SECOND
    # A packet of a connection that a pod does not know is answered with a reset.
    assert [resets_sent(network, pod.name) for pod in now] == [0, 0, 0]


def at(pod: Pod, **conditions: bool) -> Object:
    """Return a pod that is not of the lab's topology as an endpoint."""
    conditions = {"ready": True, "serving": True, "terminating": False} | conditions
    node_name = numbered_site(1 if pod.site == "na" else 2).node
    return {"addresses": [pod.addresses.ipv4], "conditions": conditions, "nodeName": node_name}


def has_no_connection(network: Network, pod: str) -> bool:
    """Return whether a pod has no TCP connection that is established or half-closed."""
    lines = network.namespace(pod).run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout
    # In the order of include/net/tcp_states.h, TIME_WAIT and LISTEN are 06 and 0A.
    return not any(line.split()[3] in ("01", "04", "05", "08") for line in lines.splitlines())


def resets_sent(network: Network, pod: str) -> int:
    """Count the TCP resets that a pod has sent."""
    lines = network.namespace(pod).run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("OutRsts")])


def generation(network: Network) -> int:
    netlink = network.namespace("na").call(Nfnetlink)
    try:
        return read_generation(netlink.get(get_generation()))
    finally:
        netlink.close()


@with_flowtables
def test_connections_stay_fast_without_an_agent_and_leave_without_the_option(
    node: OffloadNode, network: Network, tmp_path: Path
) -> None:
    connections = [node.connect("a2", to) for to in (WEB, WEB6)]
    flow = node.udp_flow("a2", DNS)
    node.udp_becomes_offloaded(flow)
    for connection in connections:
        node.becomes_offloaded(connection)
    node.forwarded()
    written = generation(network)

    def still_fast() -> None:
        for connection in connections:
            exchange(connection)
            assert node.is_offloaded(connection)
        assert node.ask(flow) == "b1"
        assert node.is_offloaded(flow)
        assert node.forwarded() == 0
        assert generation(network) == written

    agent = node.proxied.agent
    os.killpg(agent.pid, signal.SIGKILL)
    until(lambda: not agent.running, "the agent is gone")
    still_fast()
    agent.start()
    node.proxied.programmed()
    still_fast()
    agent.stop()
    with proxied(NFTABLES, network, tmp_path / "x", CLUSTER_CIDR, objects=OBJECTS) as plain:
        plain.logs("flow offload is off: removed flowtable")
        assert "fast-path" not in plain.listing()
        for connection in connections:
            transfer(connection.client, connection.server, MEGABYTE)
            transfer(connection.server, connection.client, MEGABYTE)
            assert not node.is_offloaded(connection)
        assert node.ask(flow) == "b1"
        assert node.forwarded() > 0
    agent.start()
    node.proxied.programmed()
