"""Routings compiled to elements, and slots read back from them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.nft.listing import lines
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.compile import add_service, shared_rows, slots_of
from pyproxy.dataplane.nftables.readback import kernel_slots
from pyproxy.dataplane.nftables.schema import BY_NAME
from pyproxy.model.address import (
    Backend,
    Family,
    Port,
    Protocol,
    backend,
    parse_address,
    parse_network,
)
from pyproxy.model.objects import ObjectName
from pyproxy.netlink.elements import COMMENT_LIMIT, Tag
from pyproxy.policy.routing import Frontend, PortRouting, Scope, ServiceRouting, Use
from tests.dataplane.nftables.scenes import Scene, scenes
from tests.examples import examples

POD_A, POD_B = "10.244.1.1", "10.244.2.1"


def ends(*addresses: str) -> tuple[Backend, ...]:
    return tuple(backend(parse_address(address), Port(8080)) for address in addresses)


def service(
    scope: Scope,
    use: Use,
    *,
    cluster: Iterable[str] = (),
    local: Iterable[str] = (),
    ranges: Iterable[str] = (),
    affinity: int = 0,
) -> ServiceRouting:
    frontend = Frontend(scope, parse_address("192.0.2.1"), Port(80), use)
    port = PortRouting(
        "http", Family.IPV4, Protocol.TCP, (frontend,), ends(*cluster), ends(*local), ends(*local)
    )
    networks = tuple(map(parse_network, ranges))
    return ServiceRouting(ObjectName("shop", "web"), (port,), networks, affinity)


def rows(routing: ServiceRouting) -> Table:
    table: Table = {}
    add_service(routing, table)
    return table


def listed(table: Table) -> set[str]:
    return set(lines(table, BY_NAME))


KEY = '192.0.2.1 . tcp . 80 comment "shop/web:http"'


@pytest.mark.parametrize(
    ("routing", "wanted"),
    [
        (service(Scope.CLUSTER_IP, Use.REJECT), {f"no-endpoint-services4 {{ {KEY} }}"}),
        (service(Scope.CLUSTER_IP, Use.DROP), {f"services4 {{ {KEY} : drop }}"}),
        (
            service(Scope.CLUSTER_IP, Use.CLUSTER, cluster=[POD_A]),
            {
                f"services4 {{ {KEY} : goto cluster4-1 }}",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 0 : 10.244.1.1 . 8080 }",
            },
        ),
        (
            service(Scope.NODE_PORT, Use.CLUSTER, cluster=[POD_A], affinity=60),
            {
                f"services4 {{ {KEY} : goto masq-affinity-cluster4-1 }}",
                f"affinity-frontends4 {{ {KEY} : goto learn4-60-4096 }}",
                "affinity-endpoints4 { 192.0.2.1 . tcp . 80 . 10.244.1.1 . 8080 }",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 0 : 10.244.1.1 . 8080 }",
            },
        ),
        (
            service(Scope.CLUSTER_IP, Use.LOCAL, local=[POD_A]),
            {
                f"services4 {{ {KEY} : goto cluster4-1 }}",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 0 : 10.244.1.1 . 8080 }",
            },
        ),
        (
            service(Scope.EXTERNAL_IP, Use.SPLIT, cluster=[POD_A, POD_B], local=[POD_A]),
            {
                f"services4 {{ {KEY} : goto split4 }}",
                f"internal-services4 {{ {KEY} : goto cluster4-2 }}",
                f"external-services4 {{ {KEY} : goto local4-1 }}",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 0 : 10.244.1.1 . 8080 }",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 1 : 10.244.2.1 . 8080 }",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 16777216 : 10.244.1.1 . 8080 }",
            },
        ),
        (
            service(Scope.EXTERNAL_IP, Use.SPLIT, cluster=[POD_B]),
            {
                f"services4 {{ {KEY} : goto split4 }}",
                f"internal-services4 {{ {KEY} : goto cluster4-1 }}",
                f"external-services4 {{ {KEY} : drop }}",
                "endpoints4 { 192.0.2.1 . tcp . 80 . 0 : 10.244.2.1 . 8080 }",
            },
        ),
        (
            service(Scope.LOAD_BALANCER, Use.REJECT, ranges=["10.0.0.0/8", "10.1.0.0/16"]),
            {
                f"no-endpoint-services4 {{ {KEY} }}",
                f"source-range-frontends4 {{ {KEY} }}",
                "sources4 { 192.0.2.1 . tcp . 80 . 10.0.0.0-10.255.255.255 }",
            },
        ),
        (
            service(Scope.LOAD_BALANCER, Use.DROP, ranges=["fd00::/8"]),
            {f"services4 {{ {KEY} : drop }}", f"source-range-frontends4 {{ {KEY} }}"},
        ),
        (
            service(Scope.EXTERNAL_IP, Use.DROP, ranges=["10.0.0.0/8"]),
            {f"services4 {{ {KEY} : drop }}"},
        ),
    ],
)
def test_elements_of_each_use(routing: ServiceRouting, wanted: set[str]) -> None:
    assert listed(rows(routing)) == wanted


def test_shared_rows_are_yielded_once_per_port() -> None:
    one = service(Scope.CLUSTER_IP, Use.LOCAL, local=[POD_A])
    two = ServiceRouting(one.name, one.ports * 2)
    home, pod = parse_address("192.0.2.1"), parse_address(POD_A)
    assert list(shared_rows(two)) == [("hairpin4", pod + pod), ("cluster-ips4", home)] * 2
    assert not list(shared_rows(service(Scope.EXTERNAL_IP, Use.CLUSTER, cluster=[POD_A])))


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        (ObjectName("shop", "web"), "shop/web:http"),
        (ObjectName("shop", 'a"; drop'), "shop/a???drop:http"),
        (ObjectName("shop", "x" * 200), f"shop/{'x' * 200}"[:COMMENT_LIMIT]),
        (ObjectName("shop", "süß"), "shop/s??:http"),
    ],
)
def test_a_comment_is_short_and_has_safe_characters(name: ObjectName, comment: str) -> None:
    plain = service(Scope.CLUSTER_IP, Use.REJECT)
    (tag,) = rows(ServiceRouting(name, plain.ports))["no-endpoint-services4"].values()
    assert tag == Tag("", comment)


@settings(max_examples=examples(80), deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_slots_are_read_back_as_they_were_written(scene: Scene, random: Random) -> None:
    routings = [shuffled(routing, random) for routing in scene.undivided().values()]
    table: Table = {}
    for routing in routings:
        add_service(routing, table)
    remembered = kernel_slots(table)
    for routing in routings:
        assert rows(remembered.place(shuffled(routing, random))) == rows(routing)


def shuffled(routing: ServiceRouting, random: Random) -> ServiceRouting:
    ports = tuple(
        PortRouting(
            port.name,
            port.family,
            port.protocol,
            port.frontends,
            tuple(random.sample(port.cluster, len(port.cluster))),
            tuple(random.sample(port.local, len(port.local))),
            port.hairpin,
        )
        for port in routing.ports
    )
    return ServiceRouting(routing.name, ports, routing.source_ranges, routing.affinity_timeout)


def test_slots_behind_a_gap_are_ignored() -> None:
    routing = service(Scope.EXTERNAL_IP, Use.SPLIT, cluster=[POD_A, POD_B], local=[POD_A])
    held = rows(routing)["endpoints4"]
    key = frontend_key(parse_address("192.0.2.1"), Protocol.TCP, 80)
    assert slots_of(held, key, chains.CLUSTER, Family.IPV4) == ends(POD_A, POD_B)
    assert slots_of(held, key, chains.LOCAL, Family.IPV4) == ends(POD_A)
    del held[key + struct.pack("=I", 0)]
    assert slots_of(held, key, chains.CLUSTER, Family.IPV4) == ()
    assert slots_of(held, key, chains.LOCAL, Family.IPV4) == ends(POD_A)
