"""The tracer and the kernel agree: real packets through rows that the dataplane committed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle

import msgspec
import pytest
from pyproxy_lab.conformance.tracing import agrees, servers_by_address
from pyproxy_lab.network import Network
from pyproxy_lab.probe import Outcome, probe
from pyproxy_lab.topology import OUTSIDE, TWO_NODES
from pyproxy_lab.wiring import POD_BRIDGE

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nftables import schema
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.readback import read_learned, read_table
from pyproxy.dataplane.nftables.tracer import NftablesView, Trace, trace
from pyproxy.dataplane.packets import Delivered, Packet, Rejected
from pyproxy.model.address import (
    Address,
    Family,
    Port,
    Protocol,
    parse_address,
    parse_network,
)
from pyproxy.model.destination import Destination
from pyproxy.model.objects import (
    Endpoint,
    EndpointSlice,
    Node,
    ObjectName,
    Service,
    ServicePort,
    SlicePort,
    TrafficPolicy,
)
from pyproxy.netlink.nfnetlink import Nfnetlink
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.routing import ServiceRouting
from tests.waiting import RESPONSE_TIMEOUT

pytestmark = pytest.mark.packets

LOCAL = TrafficPolicy.LOCAL
ENDPOINTS = {
    "a1": ("10.244.1.11", "fd10:1::11", "node-a"),
    "a2": ("10.244.1.12", "fd10:1::12", "node-a"),
    "b1": ("10.244.2.11", "fd10:2::11", "node-b"),
    "b2": ("10.244.2.12", "fd10:2::12", "node-b"),
    "ha": ("172.30.0.11", "fd30::11", "node-a"),
}
ANSWERING = servers_by_address(TWO_NODES)
CLIENTS = {
    "a1": ("10.244.1.11", "fd10:1::11", POD_BRIDGE),
    OUTSIDE: ("172.30.0.100", "fd30::100", "eth0"),
    "na": ("172.30.0.11", "fd30::11", ""),
}
NODE_ADDRESSES = ("172.30.0.11", "fd30::11")
NODE_PORT_ADDRESSES = tuple(map(parse_address, NODE_ADDRESSES))
LOCAL_ADDRESSES = frozenset(
    map(parse_address, (*NODE_ADDRESSES, "10.244.1.1", "fd10:1::1", "127.0.0.1", "::1"))
)
POD_NETWORKS = tuple(map(parse_network, ("10.244.1.0/24", "fd10:1::/64")))
PLAIN = tuple((family, protocol) for protocol in (Protocol.TCP, Protocol.UDP) for family in Family)


class Case(msgspec.Struct, frozen=True):
    """A Service by what is special about it; `number` is the end of all its addresses."""

    number: int
    about: str
    endpoints: tuple[str, ...]
    internal: TrafficPolicy = TrafficPolicy.CLUSTER
    external: TrafficPolicy = TrafficPolicy.CLUSTER
    ranges: tuple[str, ...] = ()
    affinity: int = 0

    @property
    def name(self) -> ObjectName:
        return ObjectName("shop", f"s{self.number}")

    def addresses(self, family: Family) -> tuple[Address, Address, Address]:
        """Its cluster IP, its load balancer's address and its external IP."""
        home, balancer, outer = ("10.96.0.{}", "192.0.2.{}", "198.51.100.{}")
        if family is Family.IPV6:
            home, balancer, outer = ("fd00:10:96::{}", "2001:db8::1:{}", "2001:db8::2:{}")
        return (
            parse_address(home.format(self.number)),
            parse_address(balancer.format(self.number)),
            parse_address(outer.format(self.number)),
        )

    def routing(self) -> ServiceRouting:
        port = 9090 if "ha" in self.endpoints else 8080
        v4, v6 = self.addresses(Family.IPV4), self.addresses(Family.IPV6)
        protocols = (Protocol.TCP, Protocol.UDP)
        service = Service(
            name=self.name,
            ports=tuple(
                ServicePort(each.name, each, Port(80), Port(30000 + self.number))
                for each in protocols
            ),
            cluster_ips=(v4[0], v6[0]),
            load_balancer_ips=(v4[1], v6[1]),
            external_ips=(v4[2], v6[2]),
            source_ranges=tuple(map(parse_network, self.ranges)),
            internal_policy=self.internal,
            external_policy=self.external,
            affinity_timeout=self.affinity,
            families=tuple(Family),
        )
        slices = [
            EndpointSlice(
                ObjectName("shop", f"s{self.number}-{family}"),
                self.name,
                family,
                tuple(SlicePort(each.name, each, Port(port)) for each in protocols),
                tuple(
                    Endpoint(parse_address(ENDPOINTS[each][column]), node=ENDPOINTS[each][2])
                    for each in self.endpoints
                ),
            )
            for column, family in enumerate(Family)
        ]
        return route_service(service, slices, Node("node-a"), "node-a")


CASES = (
    Case(1, "endpoints everywhere", ("a1", "a2", "b1")),
    Case(2, "no endpoint", ()),
    Case(3, "one that reaches itself", ("a1",)),
    Case(4, "internal Local, endpoints here and there", ("a1", "a2", "b1"), internal=LOCAL),
    Case(5, "internal Local, endpoints only there", ("b1",), internal=LOCAL),
    Case(6, "external Local, endpoints here and there", ("a2", "b1", "b2"), external=LOCAL),
    Case(7, "external Local, endpoints only there", ("b1", "b2"), external=LOCAL),
    Case(8, "ranges for outside", ("a2", "b1"), ranges=("172.30.0.64/26", "fd30::100/128")),
    Case(
        9,
        "ranges for pods and node",
        ("b1",),
        ranges=("10.244.0.0/16", "172.30.0.11/32", "fd10::/16", "fd30::11/128"),
    ),
    Case(10, "the node itself", ("ha",)),
    Case(11, "the node itself, external Local", ("ha",), external=LOCAL),
    Case(12, "session affinity", ("a1", "a2", "b1"), affinity=600),
    Case(13, "session affinity, external Local", ("a2", "b1", "b2"), external=LOCAL, affinity=600),
)


class Lab(msgspec.Struct, frozen=True):
    """The network with the rows in node-a, and what is needed to trace through them."""

    network: Network
    options: NftablesOptions
    netlink: Nfnetlink

    def machine(self) -> NftablesView:
        learned = {
            schema.AFFINITY.of(family): read_learned(self.netlink, family) for family in Family
        }
        return NftablesView(read_table(self.netlink), self.options, LOCAL_ADDRESSES, learned)


@pytest.fixture(scope="module", params=["pods by interface", "pods by network"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    by_network = request.param == "pods by network"
    asked = NftablesOptions(pod_interface="" if by_network else POD_BRIDGE)
    node = NodeRouting(POD_NETWORKS if by_network else (), NODE_PORT_ADDRESSES)
    # A network of its own: conntrack entries of other probes would translate UDP clients wrongly.
    with Network() as network:
        namespace = network.namespace("na")
        dataplane = namespace.call(lambda: NftablesDataplane(asked))
        netlink = namespace.call(Nfnetlink)
        try:
            plan = dataplane.plan_full([case.routing() for case in CASES], node)
            assert namespace.call(lambda: dataplane.commit(plan)) == ()
            yield Lab(network, plan.options, netlink)
        finally:
            netlink.close()
            dataplane.close()


def sent(client: str, address: Address, protocol: Protocol, port: int) -> Packet:
    v4, v6, interface = CLIENTS[client]
    source = parse_address(v4 if len(address) == 4 else v6)
    return Packet(source, address, protocol, Port(port), interface)


def ask(lab: Lab, client: str, packet: Packet, timeout: float) -> Outcome:
    target = Destination(packet.destination, packet.port, packet.protocol)
    return lab.network.namespace(client).call(partial(probe, target, tries=48, timeout=timeout))


def patience(expected: Trace) -> float:
    """How long to wait for an answer, in seconds: where there is to be one it is only late."""
    answered = any(isinstance(verdict, Delivered | Rejected) for verdict in expected.verdicts())
    return RESPONSE_TIMEOUT if answered else 0.3


def probes() -> Iterator[tuple[str, tuple[Case, str, str, Family, Protocol]]]:
    """Every client to every kind of address of every Service, families and protocols in turn."""
    turns = cycle(PLAIN)
    for case in CASES:
        for kind in ("cluster IP", "load balancer", "external IP", "node port", "other port"):
            for client in CLIENTS:
                family, protocol = next(turns)
                yield f"{case.number}-{client}-{kind}", (case, kind, client, family, protocol)
        next(turns)


PROBES = dict(probes())


@pytest.mark.parametrize(
    ("case", "kind", "client", "family", "protocol"), PROBES.values(), ids=PROBES
)
def test_the_kernel_does_what_the_tracer_predicts(
    lab: Lab, case: Case, kind: str, client: str, family: Family, protocol: Protocol
) -> None:
    home, balancer, outer = case.addresses(family)
    address, port = {
        "cluster IP": (home, 80),
        "load balancer": (balancer, 80),
        "external IP": (outer, 80),
        "node port": (parse_address(NODE_ADDRESSES[family is Family.IPV6]), 30000 + case.number),
        "other port": (home, 81),
    }[kind]
    packet = sent(client, address, protocol, port)
    before = trace(packet, lab.machine())
    seen = ask(lab, client, packet, patience(before))
    after = trace(packet, lab.machine())
    client_addresses, node = lab.network.addresses(client), lab.network.addresses("na")
    assert agrees(after.result(), seen, client_addresses, node, ANSWERING), f"{seen}\n{after}"
    assert after.backends() <= before.backends()
    if case.affinity and after.backends():
        assert len(after.backends()) == 1
