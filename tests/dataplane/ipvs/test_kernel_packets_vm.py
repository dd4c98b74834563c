"""Connections through a real IPVS: how they are spread, stay and end."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import probe, request

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.ipvs.dataplane import IpvsDataplane
from pyproxy.dataplane.ipvs.ruleset import Options
from pyproxy.model.address import (
    Port,
    Protocol,
    address_text,
    backend,
    parse_address,
    parse_network,
)
from pyproxy.model.destination import Destination, parse_destination
from pyproxy.policy.routing import Scope, ServiceRouting
from tests.dataplane.ipvs.test_dataplane import WEB, service
from tests.waiting import RESPONSE_TIMEOUT

pytestmark = pytest.mark.vm

T = TypeVar("T")
PODS = NodeRouting((parse_network("10.244.0.0/16"), parse_network("fd10::/16")))
A1, B1, B2 = (
    backend(parse_address(address), Port(8080))
    for address in ("10.244.1.11", "10.244.2.11", "10.244.2.12")
)
WEB_IP = parse_destination("10.96.0.1:80")
WEB_UDP = replace(WEB_IP, protocol=Protocol.UDP)
SETTINGS = ("conntrack", "conn_reuse_mode", "expire_nodest_conn", "expire_quiescent_template")


class Node:
    """Node na of a lab, with a dataplane and without an agent."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._inside = network.namespace("na")
        self.now = 1000.0
        self.dataplane = self.call(self._make)
        self.call(lambda: self.dataplane.commit(self.dataplane.plan_full([], PODS)))

    def _make(self) -> IpvsDataplane:
        made = IpvsDataplane(Options(), lambda: self.now)
        made.prepare()
        for name in SETTINGS:
            Path("/proc/sys/net/ipv4/vs", name).write_text("1")
        return made

    def call(self, function: Callable[[], T]) -> T:
        return self._inside.call(function)

    def serve(self, routing: ServiceRouting | None) -> None:
        changes = Changes({WEB: routing})
        assert not self.call(lambda: self.dataplane.commit(self.dataplane.plan(changes)))

    def tick(self) -> None:
        assert self.call(self.dataplane.tick) is None

    def table(self) -> str:
        return self._inside.run(["cat", "/proc/net/ip_vs"]).stdout

    def from_(self, name: str) -> Namespace:
        return self.network.namespace(name)

    def reached(self, name: str, target: Destination, tries: int) -> Counter[str]:
        seen = self.from_(name).call(lambda: probe(target, tries=tries, timeout=RESPONSE_TIMEOUT))
        assert not seen.refused
        assert not seen.dropped
        return Counter(dict(seen.reached))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Network() as network:
        found = Node(network)
        yield found
        found.call(found.dataplane.close)


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    yield
    node.serve(None)
    # Beyond the drain timeout, so that no server stays for the next test.
    node.now += 7200
    node.tick()


def held(client: socket.socket) -> str:
    """Send on an open connection, and return the name of the pod that responds."""
    client.sendall(b"?")
    return client.recv(100).decode().split()[0]


def opened(source_port: int = 0) -> tuple[socket.socket, str]:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.settimeout(5)
    client.bind(("", source_port))
    client.connect((address_text(WEB_IP.address), WEB_IP.port))
    return client, client.recv(100).decode().split()[0]


def test_round_robin_shares_evenly(node: Node) -> None:
    node.serve(service(A1, B1, B2))
    assert node.reached("a2", WEB_IP, 12) == {"a1": 4, "b1": 4, "b2": 4}


def test_least_connections_counts_open_connections(node: Node) -> None:
    node.serve(service(A1, B1, scheduler="wlc"))

    def connect() -> list[tuple[socket.socket, str]]:
        return [opened() for _ in range(6)]

    clients = node.from_("a2").call(connect)
    assert Counter(name for _, name in clients) == {"a1": 3, "b1": 3}
    for client, name in clients:
        if name == "a1":
            client.close()
    more = node.from_("a2").call(lambda: [opened() for _ in range(3)])
    assert Counter(name for _, name in more)["a1"] >= 2
    for client, _ in [*clients, *more]:
        client.close()


def test_sh_sends_a_client_to_one_and_mh_its_connections_to_several(node: Node) -> None:
    node.serve(service(A1, B1, B2, scheduler="sh"))
    assert len(node.reached("a2", WEB_IP, 12)) == 1
    node.serve(service(A1, B1, B2, scheduler="mh"))
    assert len(node.reached("a2", WEB_IP, 32)) == 3


def asked_once(source_port: int) -> str:
    client, name = opened(source_port)
    # Without a reset the client's own kernel would not give it the port again.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    return name


def test_mh_sends_a_port_where_it_was_and_few_elsewhere_when_one_leaves(node: Node) -> None:
    ports = range(45000, 45030)

    def all_asked() -> list[str]:
        return node.from_("a2").call(lambda: [asked_once(port) for port in ports])

    node.serve(service(A1, B1, B2, scheduler="mh"))
    first = all_asked()
    assert min(Counter(first).values()) >= 4
    assert all_asked() == first
    node.serve(service(A1, B1, scheduler="mh"))
    stayed = [was == now for was, now in zip(first, all_asked(), strict=True) if was != "b2"]
    assert sum(stayed) >= 0.8 * len(stayed)


@pytest.mark.parametrize("scheduler", ["rr", "sh", "mh"])
def test_a_held_connection_outlives_its_endpoint_and_new_ones_go_elsewhere(
    node: Node, scheduler: str
) -> None:
    node.serve(service(B1, scheduler=scheduler))
    client, name = node.from_("a2").call(opened)
    with closing(client):
        assert name == "b1"
        node.serve(service(B2, scheduler=scheduler))
        node.tick()
        assert node.reached("a2", WEB_IP, 6) == {"b2": 6}
        assert held(client) == "b1"
        node.serve(None)
        node.tick()
        assert held(client) == "b1"
        ask = partial(probe, WEB_IP, tries=3, timeout=RESPONSE_TIMEOUT)
        assert node.from_("a2").call(ask).refused == 3


def test_a_client_that_takes_its_port_again_reaches_no_removed_endpoint(node: Node) -> None:
    def ask_again() -> str:
        return asked_once(45678)

    node.serve(service(B1))
    assert node.from_("a2").call(ask_again) == "b1"
    node.serve(service(B2))
    assert node.from_("a2").call(ask_again) == "b2"
    node.serve(service(B1))
    assert node.from_("a2").call(ask_again) in ("b1", "b2")


def test_affinity_does_not_hold_clients_at_a_draining_endpoint(node: Node) -> None:
    node.serve(service(B1, affinity_timeout=600))
    assert node.reached("a2", WEB_IP, 3) == {"b1": 3}
    node.serve(service(B1, B2, A1, affinity_timeout=600))
    assert node.reached("a2", WEB_IP, 6) == {"b1": 6}
    node.serve(service(B2, affinity_timeout=600))
    assert node.reached("a2", WEB_IP, 6) == {"b2": 6}


def test_a_udp_program_of_the_node_sees_a_source_that_it_can_reply_to(
    node: Node,
) -> None:
    """The program listens on all addresses, and the kernel chooses the source of its reply."""
    here, port = next(iter(node.network.topology.site("na").addresses)), Port(9999)

    def bind() -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.settimeout(5)
        server.bind(("", port))
        return server

    def routing(server: socket.socket) -> None:
        _, peer = server.recvfrom(100)
        server.sendto(peer[0].encode(), peer)

    node.serve(service(backend(parse_address(here), port), protocol=Protocol.UDP))
    with closing(node.from_("na").call(bind)) as server:
        answering = threading.Thread(target=routing, args=(server,))
        answering.start()
        assert node.from_("na").call(lambda: request(WEB_UDP, timeout=3)) == here
        answering.join()


def test_a_flow_goes_on_with_another_endpoint_at_once(node: Node) -> None:
    node.serve(service(B1, protocol=Protocol.UDP))

    def routings(number: int) -> list[str]:
        found = []
        for _ in range(number):
            try:
                found.append(request(WEB_UDP, timeout=2, source_port=45679).split()[0])
            except TimeoutError:
                found.append("")
        return found

    assert node.from_("a2").call(lambda: routings(2)) == ["b1", "b1"]
    node.serve(service(B2, protocol=Protocol.UDP))
    # The kernel may drop the one packet by which it finds out.
    assert node.from_("a2").call(lambda: routings(3))[1:] == ["b2", "b2"]
    node.serve(None)
    refused = node.from_("a2").call(
        lambda: probe(parse_destination("10.96.0.1:80/udp"), tries=2, timeout=2, source_port=45679)
    )
    assert not refused.reached


@pytest.mark.parametrize("check", [32000, 0])
def test_a_health_check_port_responds_at_the_load_balancers_address(node: Node, check: int) -> None:
    address = parse_address("198.51.100.7")
    node.serve(
        service(B1, scope=Scope.LOAD_BALANCER, address=address, health_check_port=Port(check))
    )
    with closing(node.call(lambda: socket.create_server(("", 32000)))):

        def connects() -> bool:
            try:
                socket.create_connection((address_text(address), 32000), timeout=5).close()
            except ConnectionRefusedError:
                return False
            return True

        for client in ("ext", "a2", "na"):
            assert node.from_(client).call(connects) == bool(check)
