"""From answers to elements and back, and what nft would call them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.dataplane.nft.listing import elements, lines
from pyproxy.dataplane.nft.rows import frontend_key, node_rows
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains, schema
from pyproxy.dataplane.nftables.compile import add_service, shared_rows, slots_of
from pyproxy.dataplane.nftables.readback import kernel_slots
from pyproxy.dataplane.nftables.schema import BY_NAME
from pyproxy.model.address import (
    Address,
    Backend,
    Family,
    Network,
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
                f"affinity-frontends4 {{ {KEY} : goto learn4-60 }}",
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
def test_each_use_has_its_elements(routing: ServiceRouting, wanted: set[str]) -> None:
    assert listed(rows(routing)) == wanted


def test_shared_rows_come_once_for_each_port_that_wants_them() -> None:
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
def test_a_comment_is_short_and_harmless(name: ObjectName, comment: str) -> None:
    plain = service(Scope.CLUSTER_IP, Use.REJECT)
    (tag,) = rows(ServiceRouting(name, plain.ports))["no-endpoint-services4"].values()
    assert tag == Tag("", comment)


def test_a_frontend_key_pads_each_field_to_four_bytes() -> None:
    key = frontend_key(parse_address("10.96.0.1"), Protocol.UDP, 53)
    assert key == b"\x0a\x60\x00\x01" + b"\x11\0\0\0" + b"\x00\x35\0\0"
    assert len(frontend_key(parse_address("fd00::1"), Protocol.SCTP, 65535)) == 24


def test_networks_that_overlap_or_touch_are_one_range() -> None:
    four = ("10.1.0.0/17", "10.1.128.0/17", "10.0.0.0/24", "10.1.2.0/24", "10.0.0.0/24")
    table = node_rows(map(parse_network, (*four, "fd00::/8")))
    assert set(elements("pods4", table["pods4"], BY_NAME)) == {
        "10.0.0.0-10.0.0.255",
        "10.1.0.0-10.1.255.255",
    }
    (six,) = elements("pods6", table["pods6"], BY_NAME)
    assert six == "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    assert node_rows(()) == {}


NETWORKS = st.builds(
    lambda number, prefix: Network(
        Address((number >> (32 - prefix) << (32 - prefix)).to_bytes(4, "big")), prefix
    ),
    st.integers(0, 31).map(lambda number: number << 27),
    st.integers(0, 8),
)


@given(st.lists(NETWORKS, max_size=6), st.integers(0, (1 << 32) - 1))
def test_ranges_hold_who_is_in_a_network_and_do_not_meet(
    networks: list[Network], number: int
) -> None:
    ranges = [(key[:4], key[4:]) for key in node_rows(networks).get("pods4", {})]
    address = Address(number.to_bytes(4, "big"))
    assert any(low <= address <= high for low, high in ranges) == any(
        address in network for network in networks
    )
    bounds = [int.from_bytes(bound, "big") for pair in sorted(ranges) for bound in pair]
    assert all(high + 1 < low for high, low in zip(bounds[1::2], bounds[2::2], strict=False))


@settings(max_examples=80, deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_slots_are_read_back_as_they_were_written(scene: Scene, random: Random) -> None:
    routings = [shuffled(routing, random) for routing in scene.routings().values()]
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


def test_slots_behind_a_gap_are_nobodys() -> None:
    routing = service(Scope.EXTERNAL_IP, Use.SPLIT, cluster=[POD_A, POD_B], local=[POD_A])
    held = rows(routing)["endpoints4"]
    key = frontend_key(parse_address("192.0.2.1"), Protocol.TCP, 80)
    assert slots_of(held, key, chains.CLUSTER) == ends(POD_A, POD_B)
    assert slots_of(held, key, chains.LOCAL) == ends(POD_A)
    del held[key + struct.pack("=I", 0)]
    assert slots_of(held, key, chains.CLUSTER) == ()
    assert slots_of(held, key, chains.LOCAL) == ends(POD_A)


def test_every_kind_of_element_can_be_listed() -> None:
    home, client = parse_address("fd96::1"), parse_address("fd40::5")
    key = frontend_key(home, Protocol.SCTP, 9)
    table: Table = {
        "hairpin6": {client + client: b""},
        "affinity6": {client + key: ends("fd10::1")[0] + b"\0\0"},
        "pods6": {client + client: b""},
        "no-endpoint-services6": {home + b"\x01\0\0\0" + b"\0\x50\0\0": b""},
    }
    assert listed(table) == {
        "hairpin6 { fd40::5 . fd40::5 }",
        "affinity6 { fd40::5 . fd96::1 . sctp . 9 : fd10::1 . 8080 }",
        "pods6 { fd40::5 }",
        "no-endpoint-services6 { fd96::1 . 1 . 80 }",
    }
    assert all(schema.BY_NAME[name][1] is Family.IPV6 for name in table)
