"""Builders of Services, EndpointSlices and endpoints, and hypothesis strategies for them.

Pods a1 and a2 run on node-a in zone-1, which is the node under test; b1 and b2 on node-b in zone-2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Port,
    Protocol,
    backend,
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

HOST = "node-a"
NODE = Node(HOST, zone="zone-1")
LOCAL = TrafficPolicy.LOCAL
CLUSTER = TrafficPolicy.CLUSTER
WEB = ObjectName("shop", "web")

PODS = {
    "a1": ("10.244.1.1", "fd10:1::1", "node-a"),
    "a2": ("10.244.1.2", "fd10:1::2", "node-a"),
    "b1": ("10.244.2.1", "fd10:2::1", "node-b"),
    "b2": ("10.244.2.2", "fd10:2::2", "node-b"),
}
ZONES = {"node-a": "zone-1", "node-b": "zone-2"}


def ip(text: str) -> Address:
    return parse_address(text)


def pod(name: str, family: Family = Family.IPV4, **fields: Any) -> Endpoint:
    """Return the endpoint of a pod by its name; `zones` and `nodes` are its hints."""
    v4, v6, node = PODS[name]
    fields.setdefault("node", node)
    return Endpoint(
        address=ip(v4 if family is Family.IPV4 else v6),
        zone=ZONES.get(fields["node"], ""),
        hint_zones=tuple(fields.pop("zones", ())),
        hint_nodes=tuple(fields.pop("nodes", ())),
        **fields,
    )


def unready(name: str, **fields: Any) -> Endpoint:
    return pod(name, ready=False, serving=False, **fields)


def draining(name: str, **fields: Any) -> Endpoint:
    """Return an endpoint that is terminating and serving."""
    return pod(name, ready=False, serving=True, terminating=True, **fields)


def terminated(name: str, **fields: Any) -> Endpoint:
    """Return an endpoint that is terminating and not serving."""
    return pod(name, ready=False, serving=False, terminating=True, **fields)


def slice_of(
    *endpoints: Endpoint,
    ports: tuple[SlicePort, ...] = (SlicePort("", Protocol.TCP, Port(8080)),),
    family: Family = Family.IPV4,
    name: str = "web-1",
    service: ObjectName = WEB,
) -> EndpointSlice:
    return EndpointSlice(ObjectName("shop", name), service, family, ports, endpoints)


def web(**fields: Any) -> Service:
    """Return a Service with port 80/TCP and cluster IP 10.96.0.1 unless given otherwise."""
    fields.setdefault("name", WEB)
    fields.setdefault("ports", (ServicePort("", Protocol.TCP, Port(80)),))
    fields.setdefault("families", (Family.IPV4,))
    fields.setdefault("cluster_ips", ("10.96.0.1",))
    for key in ("cluster_ips", "external_ips", "load_balancer_ips"):
        fields[key] = tuple(map(ip, fields.get(key, ())))
    fields["source_ranges"] = tuple(map(parse_network, fields.get("source_ranges", ())))
    return Service(**fields)


def name(text: str) -> ObjectName:
    return ObjectName("shop", text)


def service(text: str, number: int, *, node_port: int = 0, created: str = "") -> Service:
    """Return a Service with port http, 80/TCP, and the cluster IP 10.96.0.NUMBER."""
    return Service(
        name(text),
        (ServicePort("http", Protocol.TCP, Port(80), Port(node_port)),),
        (ip(f"10.96.0.{number}"),),
        families=(Family.IPV4,),
        created=created,
    )


def endpoint_slice(
    of: str, addresses: Iterable[str], *, number: int = 0, triggered: float = 0.0
) -> EndpointSlice:
    """Return slice NUMBER of `service(of, …)`, with ready endpoints on port 8080."""
    return EndpointSlice(
        name(f"{of}-{number}"),
        name(of),
        Family.IPV4,
        (SlicePort("http", Protocol.TCP, Port(8080)),),
        tuple(Endpoint(ip(address)) for address in addresses),
        triggered,
    )


def with_node_port(number: int = 30080) -> tuple[ServicePort, ...]:
    return (ServicePort("", Protocol.TCP, Port(80), Port(number)),)


def backends(*names: str, port: int = 8080, family: Family = Family.IPV4) -> tuple[Backend, ...]:
    """Return the addresses and ports of pods, sorted."""
    column = 0 if family is Family.IPV4 else 1
    return tuple(sorted(backend(ip(PODS[name][column]), Port(port)) for name in names))


NODES = st.sampled_from(["node-a", "node-b", ""])
HINTS = st.sampled_from([(), ("zone-1",), ("zone-2",), ("zone-1", "zone-2")])
NODE_HINTS = st.sampled_from([(), ("node-a",), ("node-b",)])
POLICIES = st.sampled_from(list(TrafficPolicy))
PROTOCOLS = st.sampled_from(list(Protocol))
PORT_NAMES = st.sampled_from(["", "http", "dns"])


def addresses(family: Family, network: int, count: int) -> st.SearchStrategy[Address]:
    """Draw one of a few addresses, so that they repeat."""
    head = bytes([network]) if family is Family.IPV4 else bytes([0xFD, network])
    size = family.bits // 8
    return st.integers(1, count).map(lambda i: Address(head + i.to_bytes(size - len(head), "big")))


def endpoints(family: Family) -> st.SearchStrategy[Endpoint]:
    return st.builds(
        Endpoint,
        address=addresses(family, 10, 6),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node=NODES,
        hint_zones=HINTS,
        hint_nodes=NODE_HINTS,
    )


SLICE_PORTS = st.lists(
    st.builds(SlicePort, PORT_NAMES, PROTOCOLS, st.sampled_from([Port(8080), Port(8081)])),
    max_size=3,
    unique=True,
).map(tuple)


@st.composite
def slices(draw: st.DrawFn, service: ObjectName = WEB) -> tuple[EndpointSlice, ...]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        family = draw(st.sampled_from(list(Family)))
        ports = draw(SLICE_PORTS)
        members = draw(st.lists(endpoints(family), max_size=5))
        name = ObjectName(service.namespace, f"{service.name}-{number}")
        found.append(EndpointSlice(name, service, family, ports, tuple(members)))
    return tuple(found)


@st.composite
def service_ports(draw: st.DrawFn) -> tuple[ServicePort, ...]:
    joins = draw(
        st.lists(st.tuples(PORT_NAMES, PROTOCOLS), min_size=1, max_size=3, unique_by=lambda j: j[0])
    )
    return tuple(
        ServicePort(name, protocol, Port(80 + i), Port(draw(st.sampled_from([0, 30080 + i]))))
        for i, (name, protocol) in enumerate(joins)
    )


@st.composite
def services(draw: st.DrawFn, name: ObjectName = WEB) -> Service:
    families = draw(
        st.sampled_from(
            [(Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6), (Family.IPV6, Family.IPV4)]
        )
    )

    def some(network: int) -> tuple[Address, ...]:
        found: list[Address] = []
        for family in families:
            found += draw(st.lists(addresses(family, network, 3), max_size=2, unique=True))
        return tuple(found)

    return Service(
        name=name,
        ports=draw(service_ports()),
        cluster_ips=tuple(draw(addresses(family, 96, 3)) for family in families),
        external_ips=some(98),
        load_balancer_ips=some(98),
        source_ranges=draw(st.sampled_from([(), (parse_network("192.0.2.0/24"),)])),
        internal_policy=draw(POLICIES),
        external_policy=draw(POLICIES),
        affinity_timeout=draw(st.sampled_from([0, 10800])),
        families=families,
        created=draw(st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
    )


EXTERNAL: dict[str, Any] = {
    "ports": with_node_port(),
    "external_ips": ["192.0.2.1"],
    "load_balancer_ips": ["198.51.100.1"],
}
