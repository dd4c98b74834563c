"""Learned affinities that a change makes stale, and packets that must not teach any."""

from __future__ import annotations

import socket
from functools import partial

import msgspec
import pytest
from pyproxy_lab.namespace import Namespace
from pyproxy_lab.network import Network
from pyproxy_lab.probe import probe

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Rows
from pyproxy.dataplane.nftables.affinity import (
    expectations,
    loosened,
    refused_clients,
    stale,
)
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.dataplane.nftables.schema import TABLE
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, backend, parse_address
from pyproxy.model.destination import Destination
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.waiting import RESPONSE_TIMEOUT

HOME = parse_address("10.96.0.1")
WEB, OTHER = ObjectName("shop", "web"), ObjectName("shop", "other")
KEY = frontend_key(HOME, Protocol.TCP, 80)


def end(number: int) -> Backend:
    return backend(parse_address(f"10.244.1.{number}"), Port(8080))


def web(
    *cluster: int, local: tuple[int, ...] = (), use: Use = Use.CLUSTER, timeout: int = 60
) -> ServiceRouting:
    port = PortRouting(
        "",
        Family.IPV4,
        Protocol.TCP,
        (Frontend(Scope.EXTERNAL_IP, HOME, Port(80), use),),
        tuple(map(end, cluster)),
        tuple(map(end, local)),
    )
    return ServiceRouting(WEB, (port,), (), timeout)


def learned(**clients: int) -> Rows:
    """Elements by client, a letter for the last byte of its address."""
    return {
        bytes((10, 9, 9, ord(client))) + KEY: end(number) + b"\0\0"
        for client, number in clients.items()
    }


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        (web(1, 2), web(1, 2), ""),
        (web(1, 2), web(1, 2, 3), ""),
        (web(1, 2), web(2), "a"),
        (web(1, 2), web(3), "ab"),
        (web(1, 2), web(use=Use.REJECT), "ab"),
        (web(1, 2), None, "ab"),
        (web(1, 2), web(1, 2, timeout=0), "ab"),
        (web(1, 2), web(1, 2, timeout=90), "ab"),
        (web(1, 2, timeout=61), web(1, 2, timeout=70), ""),
        (web(1, 2, timeout=0), web(2, timeout=0), ""),
        (web(1, 2, timeout=0), web(1, 2), ""),
        (web(1, 2), web(1, 2, local=(1, 2), use=Use.SPLIT), "ab"),
        (web(1, local=(2,), use=Use.SPLIT), web(1, local=(2,), use=Use.SPLIT), ""),
        (web(1, local=(2,), use=Use.SPLIT), web(2, local=(1,), use=Use.SPLIT), ""),
        (web(1, local=(2,), use=Use.SPLIT), web(1, use=Use.SPLIT), "b"),
        (web(local=(1, 2), use=Use.LOCAL), web(local=(1,), use=Use.LOCAL), "b"),
        (web(local=(1, 2), use=Use.LOCAL), web(use=Use.DROP), "ab"),
    ],
)
def test_a_change_deletes_the_affinities_that_it_makes_stale(
    before: ServiceRouting, after: ServiceRouting | None, gone: str
) -> None:
    held = learned(a=1, b=2)
    found = stale(held, Family.IPV4, loosened({WEB: before}, {WEB: after}), (), all_known=False)
    letters = "".join(chr(key[3]) for key in found.get("affinity4", {}))
    assert letters == gone
    assert found.keys() <= {"affinity4"}


def test_a_frontend_keeps_affinities_that_its_new_service_allows() -> None:
    taker = ServiceRouting(OTHER, web(2).ports, (), 60)
    allowed = loosened({WEB: web(1, 2)}, {WEB: None, OTHER: taker})
    found = stale(learned(a=1, b=2), Family.IPV4, allowed, (), all_known=False)
    assert list(found["affinity4"]) == list(learned(a=1))


def test_a_restart_deletes_affinities_of_unknown_frontends() -> None:
    held = learned(a=1, b=2)
    assert stale(held, Family.IPV4, {}, (), all_known=False) == {}
    assert stale(held, Family.IPV4, {}, (), all_known=True) == {"affinity4": held}
    only = expectations([web(1)])
    assert stale(held, Family.IPV4, only, (), all_known=True) == {"affinity4": learned(b=2)}
    assert stale(learned(a=1), Family.IPV4, only, (), all_known=True) == {}


def node_port(*cluster: int) -> ServiceRouting:
    """Return Service `other` with the node port that has the number of `web`'s port."""
    (port,) = web(*cluster).ports
    frontends = (Frontend(Scope.NODE_PORT, Address(b""), Port(80), Use.CLUSTER),)
    return ServiceRouting(OTHER, (msgspec.structs.replace(port, frontends=frontends),), (), 60)


@pytest.mark.parametrize(("addresses", "gone"), [((), ""), ((HOME,), "a")])
def test_a_node_port_has_the_affinities_at_the_node_s_addresses_alone(
    addresses: tuple[Address, ...], gone: str
) -> None:
    held = learned(a=1, b=2)
    allowed = loosened({OTHER: node_port(1, 2)}, {OTHER: node_port(2)})
    found = stale(held, Family.IPV4, allowed, addresses, all_known=False)
    assert "".join(chr(key[3]) for key in found.get("affinity4", {})) == gone
    counted = refused_clients({KEY: 3}, node_port(1), addresses)
    assert counted == ({KEY: 3} if addresses else {})
    assert refused_clients({KEY: 3}, web(1), addresses) == {KEY: 3}


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("services", "keeps"), [({}, True), ({OTHER: None}, False)], ids=["kept", "removed too"]
)
def test_an_address_that_leaves_the_node_takes_its_affinities_along(
    namespace: Namespace, services: dict[ObjectName, None], keeps: bool
) -> None:
    here, leaving = parse_address("172.30.0.11"), parse_address("172.30.0.12")
    dataplane = namespace.call(lambda: NftablesDataplane(NftablesOptions()))
    try:
        plan = dataplane.plan_full([node_port(1)], NodeRouting((), (here, leaving)))
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        for address in ("172.30.0.11", "172.30.0.12"):
            element = f"10.9.9.9 . {address} . tcp . 80 timeout 1h : 10.244.1.1 . 8080"
            namespace.run(["nft", f"add element inet {TABLE} affinity4 {{ {element} }}"])
        plan = dataplane.plan(Changes(services, NodeRouting((), (here,))))
        assert namespace.call(lambda: dataplane.commit(plan)) == ()
        listed = namespace.run(["nft", "list", "map", "inet", TABLE, "affinity4"]).stdout
        assert ("10.9.9.9 . 172.30.0.11 . tcp . 80" in listed) is keeps
        assert "172.30.0.12" not in listed
    finally:
        namespace.call(dataplane.cleanup)
        dataplane.close()


HOMES = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd00:10:96::1"}
SILENT = {Family.IPV4: "10.244.2.99", Family.IPV6: "fd10:2::99"}
B1 = {Family.IPV4: "10.244.2.11", Family.IPV6: "fd10:2::11"}


def with_affinity(endpoints: dict[Family, str]) -> ServiceRouting:
    ports = tuple(
        PortRouting(
            "dns",
            family,
            Protocol.UDP,
            (Frontend(Scope.CLUSTER_IP, parse_address(HOMES[family]), Port(53), Use.CLUSTER),),
            (backend(parse_address(endpoints[family]), Port(8080)),),
            (),
        )
        for family in Family
    )
    return ServiceRouting(ObjectName("shop", "dns"), ports, affinity_timeout=600)


def sender(family: Family) -> socket.socket:
    return socket.socket(
        socket.AF_INET if family is Family.IPV4 else socket.AF_INET6, socket.SOCK_DGRAM
    )


@pytest.mark.packets
def test_a_resent_packet_to_a_removed_endpoint_is_not_learned() -> None:
    with Network() as network:
        node, client = network.namespace("na"), network.namespace("a2")
        dataplane = node.call(lambda: NftablesDataplane(NftablesOptions()))
        flows = {family: client.call(partial(sender, family)) for family in Family}

        def send() -> None:
            for family, flow in flows.items():
                flow.sendto(b"?", (HOMES[family], 53))

        try:
            plan = dataplane.plan_full([with_affinity(SILENT)], NodeRouting())
            assert node.call(lambda: dataplane.commit(plan)) == ()
            send()
            change = dataplane.plan(Changes({ObjectName("shop", "dns"): with_affinity(B1)}))
            assert node.call(lambda: dataplane.commit(change)) == ()
            # No endpoint has responded, so conntrack still takes this for a flow's first packet.
            send()
            for family in Family:
                target = Destination(parse_address(HOMES[family]), Port(53), Protocol.UDP)
                ask = partial(probe, target, timeout=RESPONSE_TIMEOUT)
                assert client.call(ask).reached == {"b1": 1}
        finally:
            dataplane.close()
            for flow in flows.values():
                flow.close()
