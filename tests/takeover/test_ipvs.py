"""Which virtual services are kube-proxy's, told by its device and its sets."""

from __future__ import annotations

from pyproxy.model.address import Address, Family, Port, parse_address
from pyproxy.netlink.ipvs import Virtual
from pyproxy.takeover.ipvs import choose, identity, of_addresses
from pyproxy.takeover.leftovers import Leftovers, VirtualService

TCP, UDP = 6, 17


def virtual(address: str, port: int, protocol: int = TCP) -> VirtualService:
    return VirtualService(protocol, parse_address(address), port)


def test_others_virtual_services_are_let_be() -> None:
    cluster_ip, cluster_ip6 = virtual("10.96.0.1", 443), virtual("fd00:10:96::1", 443)
    node_port, node_port_udp = virtual("172.30.0.11", 30777), virtual("172.30.0.11", 30053, UDP)
    balancer = virtual("192.0.2.9", 80)
    on_the_node = virtual("172.30.0.11", 80)
    other_protocol = virtual("172.30.0.11", 30777, UDP)
    not_here = virtual("192.0.2.9", 30777)
    running = [
        *(node_port, cluster_ip6, cluster_ip, node_port_udp),
        *(balancer, on_the_node, other_protocol, not_here),
    ]
    chosen = choose(
        running,
        frozenset({cluster_ip.address, cluster_ip6.address}),
        frozenset({node_port.address}),
        frozenset({(TCP, 30777), (UDP, 30053)}),
    )
    assert set(chosen) == {cluster_ip, cluster_ip6, node_port, node_port_udp}
    assert str(Leftovers(services=chosen)) == "4 IPVS virtual services"
    assert str(cluster_ip6) == "[fd00:10:96::1]:443 (protocol 6)"


def test_services_by_firewall_mark_are_let_be() -> None:
    service = virtual("fd00:10:96::1", 53, UDP)
    marked = Virtual(Family.IPV4, 0, Address(b""), Port(0), mark=7)
    assert of_addresses([marked, identity(service)]) == [service]
