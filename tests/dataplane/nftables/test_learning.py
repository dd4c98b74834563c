"""Clients of an endpoint that has left come back to it no more, whatever they send meanwhile."""

from __future__ import annotations

import socket
from functools import partial

import pytest
from pyproxy_lab.network import Network
from pyproxy_lab.probe import probe

from pyproxy.dataplane.interface import Changes, NodeRouting
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.dataplane import NftablesDataplane
from pyproxy.model.address import Family, Port, Protocol, backend, parse_address
from pyproxy.model.destination import Destination
from pyproxy.model.objects import ObjectName
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use

pytestmark = pytest.mark.packets

HOMES = {Family.IPV4: "10.96.0.1", Family.IPV6: "fd00:10:96::1"}
SILENT = {Family.IPV4: "10.244.2.99", Family.IPV6: "fd10:2::99"}
B1 = {Family.IPV4: "10.244.2.11", Family.IPV6: "fd10:2::11"}


def sticky(endpoints: dict[Family, str]) -> ServiceRouting:
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


def test_what_is_sent_again_to_an_endpoint_that_has_left_is_not_learned() -> None:
    with Network() as network:
        node, client = network.namespace("na"), network.namespace("a2")
        dataplane = node.call(lambda: NftablesDataplane(NftablesOptions()))
        flows = {family: client.call(partial(sender, family)) for family in Family}

        def send() -> None:
            for family, flow in flows.items():
                flow.sendto(b"?", (HOMES[family], 53))

        try:
            plan = dataplane.plan_full([sticky(SILENT)], NodeRouting())
            assert node.call(lambda: dataplane.commit(plan)) == ()
            send()
            change = dataplane.plan(Changes({ObjectName("shop", "dns"): sticky(B1)}))
            assert node.call(lambda: dataplane.commit(change)) == ()
            # Nothing has answered, and so conntrack still takes this for a flow's first packet.
            send()
            for family in Family:
                target = Destination(parse_address(HOMES[family]), Port(53), Protocol.UDP)
                assert client.call(partial(probe, target)).reached == {"b1": 1}
        finally:
            dataplane.close()
            for flow in flows.values():
                flow.close()
