"""kube-proxy's virtual services are recognised by its device and its sets."""

from __future__ import annotations

import socket
import struct

import pytest
from pyroute2.netlink.generic.ipvs import ipvsmsg

from pyproxy.model.address import parse_address
from pyproxy.netlink.attributes import attribute, nested
from pyproxy.takeover.ipvs import choose, decode, identity
from pyproxy.takeover.leftovers import Leftovers, VirtualService

TCP, UDP = 6, 17


def virtual(address: str, port: int, protocol: int = TCP) -> VirtualService:
    return VirtualService(protocol, parse_address(address), port)


def test_virtual_services_of_other_programs_stay() -> None:
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


def reply(*attributes: bytes) -> ipvsmsg:
    """A message of IPVS's, as the kernel writes them: include/uapi/linux/ip_vs.h."""
    rest = [
        attribute(6, b"rr\0"),
        attribute(7, struct.pack("=II", 2, 0xFFFFFFFF)),
        attribute(8, struct.pack("=I", 0)),
        attribute(9, b"\xff\xff\xff\xff"),
    ]
    body = struct.pack("=BBH", 1, 1, 0) + nested(1, *attributes, *rest)
    message = ipvsmsg(struct.pack("=IHHII", 16 + len(body), 30, 2, 1, 1) + body)
    message.decode()
    return message


def of_family(family: int) -> bytes:
    return attribute(1, struct.pack("=H", family))


@pytest.mark.parametrize("service", [virtual("10.96.0.1", 443), virtual("fd00:10:96::1", 53, UDP)])
def test_the_kernels_messages_are_read_and_written(service: VirtualService) -> None:
    family = socket.AF_INET if len(service.address) == 4 else socket.AF_INET6
    found = decode(
        reply(
            of_family(family),
            attribute(2, struct.pack("=H", service.protocol)),
            attribute(3, service.address.ljust(16, b"\0")),  # 16 bytes in either family
            attribute(4, struct.pack(">H", service.port)),
        )
    )
    assert found == service
    written = ipvsmsg()
    written["attrs"] = [("IPVS_CMD_ATTR_SERVICE", identity(service).dump_nla())]
    written.encode()
    sent = bytes(written.data)
    for part in (
        of_family(family),
        attribute(2, struct.pack("=H", service.protocol)),
        attribute(3, service.address),
        attribute(4, struct.pack(">H", service.port)),
    ):
        assert part in sent


def test_virtual_services_by_firewall_mark_stay() -> None:
    assert decode(reply(of_family(socket.AF_INET), attribute(5, struct.pack("=I", 7)))) is None
