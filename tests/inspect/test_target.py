"""Targets of explain: destinations that a Service serves, and those that it almost has."""

from __future__ import annotations

import msgspec
import pytest

from pyproxy.dataplane.interface import NodeRouting
from pyproxy.inspect.snapshot import Snapshot
from pyproxy.inspect.target import resolve
from pyproxy.model.address import Family, Port, Protocol, parse_address
from pyproxy.model.objects import ObjectName, ServicePort
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.ui import snapshots

WEB = ObjectName("shop", "web")
ADDRESS = parse_address("10.96.0.1")


@pytest.fixture
def snapshot() -> Snapshot:
    """A Service with the cluster IP 10.96.0.1, of which port 80 is programmed and 443 is not."""
    ports = (
        ServicePort("http", Protocol.TCP, Port(80), Port(30080)),
        ServicePort("https", Protocol.TCP, Port(443)),
    )
    service = msgspec.structs.replace(snapshots.service("web"), ports=ports)
    frontend = Frontend(Scope.CLUSTER_IP, ADDRESS, Port(80), Use.CLUSTER)
    port = PortRouting("http", Family.IPV4, Protocol.TCP, (frontend,), (), ())
    return msgspec.structs.replace(
        snapshots.snapshot(service),
        routings={WEB: ServiceRouting(WEB, (port,))},
        node_routing=NodeRouting(node_port_addresses=(parse_address("172.30.0.11"),)),
    )


def test_a_served_destination_has_its_scope(snapshot: Snapshot) -> None:
    target = resolve(snapshot, "10.96.0.1:80")
    assert (target.name, target.served, target.scope) == (WEB, True, "clusterIP")


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("10.96.0.1:443", WEB, "shop/web has it, but this node does not serve it"),
        (
            "10.96.0.1:81",
            WEB,
            "shop/web has the address, but only the ports 80/tcp, 443/tcp",
        ),
        ("10.96.0.1:80/udp", WEB, "shop/web has the address, but only the ports 80/tcp, 443/tcp"),
        (
            "127.0.0.1:30080",
            WEB,
            "it is the node port of shop/web, which this node serves on 172.30.0.11 only",
        ),
        ("10.96.0.9:80", None, ""),
    ],
)
def test_an_unserved_destination_names_the_likeliest_service(
    snapshot: Snapshot, text: str, name: ObjectName | None, reason: str
) -> None:
    target = resolve(snapshot, text)
    assert (target.served, target.name, target.reason) == (False, name, reason)


def test_a_name_is_a_target_whether_or_not_the_service_exists(snapshot: Snapshot) -> None:
    assert resolve(snapshot, "shop/none").name == ObjectName("shop", "none")
