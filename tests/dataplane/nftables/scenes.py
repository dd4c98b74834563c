"""Random clusters as this node sees them, the rows that they compile to, and packets to send.

Addresses are few, so that Services, endpoints and clients meet often. No endpoint is a frontend
itself and no cluster IP is an external IP, because no document defines a second translation. A node
keeps its endpoints from scene to scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
from hypothesis import strategies as st

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.dataplane.nft.rows import SharedRow
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.compile import add_service, node_table, shared_rows
from pyproxy.dataplane.nftables.tracer import NftablesView
from pyproxy.dataplane.packets import Packet
from pyproxy.model.address import (
    Address,
    Family,
    Port,
    Protocol,
    family_of,
    parse_address,
    parse_network,
)
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
from pyproxy.policy.endpoints import route_service
from pyproxy.policy.frontend_conflicts import FrontendOwners
from pyproxy.policy.routing import ServiceRouting, expand_node_ports

HOST = "node-a"


def both(*texts: str) -> tuple[Address, ...]:
    return tuple(map(parse_address, texts))


PODS_HERE = both("10.244.1.1", "10.244.1.2", "10.244.1.3", "fd10:1::1", "fd10:1::2", "fd10:1::3")
PODS_THERE = both("10.244.2.1", "10.244.2.2", "10.244.2.3", "fd10:2::1", "fd10:2::2", "fd10:2::3")
OWN = both("172.30.0.11", "fd30::11")
OTHER_NODE = both("172.30.0.12", "fd30::12")
NOWHERE = both("10.9.9.9", "fd99::9")
BRIDGE = both("10.244.1.254", "fd10:1::ff")
OUTSIDE = both("203.0.113.5", "203.0.113.200", "198.51.100.7", "fd40::5", "fd40::8005", "fd50::7")
CLUSTER_IPS = both("10.96.0.1", "10.96.0.2", "10.96.0.3", "fd96::1", "fd96::2", "fd96::3")
EXTERNAL = both("192.0.2.1", "192.0.2.2", "fd98::1", "fd98::2") + OWN
LOCAL = frozenset(OWN + BRIDGE)

NODE_OF = (
    dict.fromkeys(PODS_HERE + OWN, HOST)
    | dict.fromkeys(PODS_THERE + OTHER_NODE, "node-b")
    | dict.fromkeys(NOWHERE, "")
)
NODE = NodeRouting()
RANGES = tuple(
    map(
        parse_network,
        (
            "203.0.113.0/25",
            "203.0.113.128/25",
            "203.0.113.0/24",
            "0.0.0.0/0",
            "10.244.0.0/16",
            "172.30.0.11/32",
            "fd40::/113",
            "fd40::8000/113",
            "fd40::/64",
            "::/0",
            "fd10::/16",
        ),
    )
)
POD_NETWORKS = tuple(
    map(parse_network, ("10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24", "fd10::/16"))
)


class Scene(msgspec.Struct, frozen=True):
    """The whole input: what the API says, and how the agent was configured."""

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    node: Node
    node_port_addresses: tuple[Address, ...]
    pod_interface: str = ""
    masquerade_all: bool = False

    @property
    def options(self) -> NftablesOptions:
        families = frozenset(network.family for network in self.node.pod_networks)
        return NftablesOptions(
            masquerade_all=self.masquerade_all,
            pod_interface=self.pod_interface,
            pod_families=families,
        )

    @property
    def rules(self) -> NodeRouting:
        """The node's part in the rules."""
        return NodeRouting(self.node.pod_networks, self.node_port_addresses)

    def routings(self) -> dict[ObjectName, ServiceRouting]:
        """Policy's word on every Service, with a frontend for each address of a node port."""
        return {
            name: expand_node_ports(routing, self.node_port_addresses)
            for name, routing in self.undivided().items()
        }

    def undivided(self) -> dict[ObjectName, ServiceRouting]:
        """Policy's word on every Service, each frontend assigned to one."""
        claims = FrontendOwners()
        asked = {}
        found: dict[ObjectName, ServiceRouting] = {}
        for _ in range(2):
            for service in self.services:
                if service not in asked:
                    slices = [each for each in self.slices if each.service == service.name]
                    asked[service] = route_service(service, slices, self.node, HOST)
                assigned = claims.assign(
                    service, asked[service], node_addresses=frozenset(self.node_port_addresses)
                )
                found[service.name] = assigned.routing
        return found


def compiled(routings: Sequence[ServiceRouting], node: NodeRouting = NODE) -> Table:
    """The rows for these answers, made from nothing."""
    table = node_table(node)
    shared: Counter[SharedRow] = Counter()
    for each in routings:
        add_service(each, table)
        shared.update(shared_rows(each))
    for name, key in shared:
        table.setdefault(name, {})[key] = b""
    return {name: rows for name, rows in table.items() if rows}


def machine(scene: Scene, learned: Table | None = None) -> NftablesView:
    table = compiled(tuple(scene.undivided().values()), scene.rules)
    return NftablesView(table, scene.options, LOCAL, learned or {})


# Hypothesis examines each new strategy, so strategies are reused.
@cache
def one(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@cache
def several(values: tuple[Any, ...], low: int, high: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=low, max_size=high, unique=True)


@cache
def of(families: tuple[Family, ...], addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    return tuple(address for address in addresses if family_of(address) in families)


HINTS = one((), (), (), ("zone-1",), ("zone-2",), ("zone-1", "zone-2"))
NODE_HINTS = one((), (), (), (HOST,), ("node-b",))
CONDITIONS = one(
    *[(True, True, False)] * 8,
    (False, True, True),
    (False, True, True),
    (False, False, True),
    (False, False, False),
)
POLICIES = one(*TrafficPolicy)
PROTOCOLS = one(*Protocol)
FAMILIES = one(
    (Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6), (Family.IPV6, Family.IPV4)
)
NODE_PORTS = one(0, 30080, 30081)
AFFINITIES = one(0, 0, 60, 10800)
TIMES = one("", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


@st.composite
def services(draw: st.DrawFn, name: ObjectName) -> Service:
    families = draw(FAMILIES)
    ports = tuple(
        ServicePort(f"p{number}", draw(PROTOCOLS), Port(80 + number), Port(draw(NODE_PORTS)))
        for number in range(draw(one(1, 2)))
    )
    return Service(
        name=name,
        ports=ports,
        cluster_ips=tuple(draw(one(*of((family,), CLUSTER_IPS))) for family in families),
        external_ips=tuple(draw(several(of(families, EXTERNAL), 0, 2))),
        load_balancer_ips=tuple(draw(several(of(families, EXTERNAL), 0, 2))),
        source_ranges=tuple(draw(several(RANGES, 0, 2))),
        internal_policy=draw(POLICIES),
        external_policy=draw(POLICIES),
        affinity_timeout=draw(AFFINITIES),
        families=families,
        created=draw(TIMES),
    )


@st.composite
def slices(draw: st.DrawFn, service: Service) -> tuple[EndpointSlice, ...]:
    found = []
    for number in range(draw(one(2, 1, 2, 3, 0))):
        family = service.families[number % len(service.families)]
        ports = tuple(
            SlicePort(port.name, port.protocol, Port(draw(one(8080, 8081))))
            for port in service.ports
            if draw(one(*[True] * 6, False))
        )
        size = draw(one(3, 1, 6, 0))
        members = draw(several(of((family,), tuple(NODE_OF)), size, size))
        hinted = draw(one(False, False, False, True))
        name = ObjectName(service.name.namespace, f"{service.name.name}-{number}")
        ends = tuple(_endpoint(draw, address, hinted=hinted) for address in members)
        found.append(EndpointSlice(name, service.name, family, ports, ends))
    return tuple(found)


def _endpoint(draw: st.DrawFn, address: Address, *, hinted: bool) -> Endpoint:
    ready, serving, terminating = draw(CONDITIONS)
    return Endpoint(
        address=address,
        ready=ready,
        serving=serving,
        terminating=terminating,
        node=NODE_OF[address],
        hint_zones=draw(HINTS) if hinted else (),
        hint_nodes=draw(NODE_HINTS) if hinted else (),
    )


NAMES = (ObjectName("shop", "a"), ObjectName("shop", "b"))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    found = tuple(draw(service) for service in SERVICES[: draw(one(1, 2))])
    networks = tuple(draw(several(POD_NETWORKS, 0, 3)))
    return Scene(
        services=found,
        slices=tuple(each for service in found for each in draw(slices(service))),
        node=Node(HOST, OWN, networks, draw(one("zone-1", ""))),
        node_port_addresses=draw(one(OWN, OWN + BRIDGE, OWN[:1], ())),
        pod_interface=draw(one("", "", "cbr0", "veth*")),
        masquerade_all=draw(one(*[False] * 5, True)),
    )


SERVICES = tuple(map(services, NAMES))


@st.composite
def packets(draw: st.DrawFn, routings: Sequence[ServiceRouting]) -> Packet:
    """A packet to a frontend, or just beside one."""
    frontends = [
        (frontend.address, port.protocol, frontend.port)
        for each in routings
        for port in each.ports
        for frontend in port.frontends
    ]
    address, protocol, number = draw(
        st.sampled_from(frontends or [(CLUSTER_IPS[0], Protocol.TCP, Port(80))])
    )
    match draw(st.integers(0, 16)):
        case 0:
            number = Port(draw(one(80, 81, 8080, 30080)))
        case 1:
            protocol = draw(PROTOCOLS)
        case 2:
            address = draw(one(*PODS_HERE, *CLUSTER_IPS, *EXTERNAL, *OUTSIDE))
    family = (family_of(address),)
    sources, interfaces = draw(
        one(
            (of(family, PODS_HERE), ("cbr0", "veth7")),
            (of(family, OUTSIDE + OTHER_NODE + PODS_THERE), ("eth0",)),
            (of(family, OWN + BRIDGE), ("",)),
        )
    )
    is_new = draw(one(*[True] * 20, False))
    return Packet(draw(one(*sources)), address, protocol, number, draw(one(*interfaces)), is_new)


@st.composite
def encounters(draw: st.DrawFn) -> tuple[Scene, Packet]:
    scene = draw(scenes())
    return scene, draw(packets(tuple(scene.routings().values())))
