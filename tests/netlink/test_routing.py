"""Routes, policy rules, neighbours and devices of a real network namespace."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproxy_lab.namespace import Namespace

from pyproxy.errors import TransientKernelError
from pyproxy.model.address import Family, Mark, Port, Protocol, parse_address, parse_network
from pyproxy.netlink import routing
from pyproxy.netlink.conntrack_statistics import ConntrackCounters, read_counters
from pyproxy.netlink.links import Link, get_link, read_links
from pyproxy.netlink.requests import Requests
from pyproxy.netlink.routing import (
    NUD_FAILED,
    RTN_BLACKHOLE,
    RTN_LOCAL,
    RTN_PROHIBIT,
    RTN_UNREACHABLE,
    RULE_GOTO,
    NextHop,
    RefusingRoute,
    RouteQuery,
    RouteReply,
    Routing,
    Rule,
)
from pyproxy.netlink.sockets import NETLINK_ROUTE
from tests.namespaces import empty_namespace

pytestmark = pytest.mark.kernel

POD = parse_address("10.244.1.5")
T = TypeVar("T")


@pytest.fixture(scope="module")
def here() -> Iterator[Namespace]:
    with empty_namespace("routing") as made:
        made.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
        made.ip(
            [
                "link set lo up",
                "link add e0 type veth peer name e1",
                "link add b0 type bridge",
                "link set e1 master b0",
                "addr add 172.30.0.11/24 dev e0",
                "addr add fd30::11/64 dev e0 nodad",
                "addr add 10.244.1.1/24 dev b0",
                "link set e0 mtu 1400 up",
                "link set e1 up",
                "link set b0 up",
                "link add vx0 type vxlan id 7 dstport 8472 dev e0",
                "route add default via 172.30.0.1",
                "route add 10.244.2.0/24 via 172.30.0.12 mtu 1300",
                "route add blackhole 10.244.6.0/24",
                "route add unreachable 10.244.7.0/24",
                "route add prohibit default table 100",
                "route add fd10:2::/64 via fd30::12",
                "route add unreachable fd10:7::/64",
                "rule add fwmark 0x10/0x30 lookup 100 pref 10",
                "rule add from 10.244.9.0/24 iif b0 prohibit pref 20",
                "rule add not to 10.244.9.0/24 ipproto tcp sport 7 dport 80-90 uidrange 1-9 "
                "pref 30 goto 50",
                "rule add lookup 100 pref 50 fwmark 0x40",
                "nexthop add id 7 blackhole",
                "nexthop add id 8 group 7",
                "nexthop add id 9 via 172.30.0.12 dev e0",
                "route add 10.244.8.0/24 nhid 8",
                "route add 10.244.11.0/24 nexthop via 172.30.0.12 nexthop dev b0",
                "route add fd10:11::/64 nexthop via fd30::12 nexthop via fd30::13",
                "route add 10.244.10.0/24 nhid 9",
                "neigh add 172.30.0.12 lladdr 02:00:00:00:00:02 dev e0 nud failed",
                "neigh add 172.30.0.13 lladdr 02:00:00:00:00:03 dev e0 nud permanent",
            ]
        )
        yield made


def index(here: Namespace, name: str) -> int:
    return {link.name: link.index for link in links(here)}[name]


def links(here: Namespace) -> list[Link]:
    def read() -> list[Link]:
        with closing(Requests(NETLINK_ROUTE)) as kernel:
            return list(read_links(kernel.dump(get_link(0))))

    return here.call(read)


def route(here: Namespace, query: RouteQuery, *, match: bool = False) -> RouteReply:
    def ask() -> RouteReply:
        with closing(Routing()) as kernel:
            return kernel.route(query, match=match)

    return here.call(ask)


def to(address: str) -> RouteQuery:
    return RouteQuery(parse_address(address))


def test_a_route_has_its_device_next_hop_and_mtu(here: Namespace) -> None:
    found = route(here, to("10.244.2.9"))
    assert (found.error, found.device, found.table) == (0, index(here, "e0"), 254)
    assert found.gateway == parse_address("172.30.0.12")
    assert (found.source, found.mtu) == (parse_address("172.30.0.11"), 1300)
    assert route(here, to("10.244.2.9"), match=True).prefix == 24
    assert route(here, to("203.0.113.1"), match=True).prefix == 0
    six = route(here, to("fd10:2::9"))
    assert (six.error, six.gateway) == (0, parse_address("fd30::12"))
    assert route(here, to("fd10:2::9"), match=True).prefix == 64


def test_a_route_has_all_its_next_hops(here: Namespace) -> None:
    e0, b0 = index(here, "e0"), index(here, "b0")
    assert set(route(here, to("10.244.11.1"), match=True).hops) == {
        NextHop(e0, parse_address("172.30.0.12")),
        NextHop(b0),
    }
    assert set(route(here, to("fd10:11::1"), match=True).hops) == {
        NextHop(e0, parse_address("fd30::12")),
        NextHop(e0, parse_address("fd30::13")),
    }
    assert route(here, to("10.244.2.9"), match=True).hops == ()


def test_an_own_address_is_local(here: Namespace) -> None:
    assert route(here, to("172.30.0.11")).kind == RTN_LOCAL
    assert route(here, to("fd30::11")).kind == RTN_LOCAL


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("10.244.6.9", errno.EINVAL),
        ("10.244.7.9", errno.EHOSTUNREACH),
        ("fd10:7::9", errno.EHOSTUNREACH),
        ("fd99::1", errno.ENETUNREACH),
    ],
)
def test_a_refused_packet_has_the_errno(here: Namespace, address: str, error: int) -> None:
    assert route(here, to(address)).error == error


def test_a_received_packet_is_routed_with_its_mark_and_device(here: Namespace) -> None:
    bridge = index(here, "b0")
    far = parse_address("10.244.2.9")
    packet = RouteQuery(far, POD, bridge, Mark(0), Protocol.TCP, Port(80))
    assert route(here, packet).gateway == parse_address("172.30.0.12")
    marked = RouteQuery(far, POD, bridge, Mark(0x10), Protocol.SCTP, Port(80))
    assert route(here, marked).error == errno.EACCES
    other_bits = RouteQuery(far, POD, bridge, Mark(0x20))
    assert route(here, other_bits).error == 0
    prohibited = RouteQuery(far, parse_address("10.244.9.1"), bridge)
    assert route(here, prohibited).error == errno.EACCES


def test_routes_that_refuse_are_listed(here: Namespace) -> None:
    def read() -> tuple[list[RefusingRoute], list[RefusingRoute]]:
        with closing(Routing()) as kernel:
            return kernel.refusing_routes(Family.IPV4), kernel.refusing_routes(Family.IPV6)

    four, six = here.call(read)
    assert four == [
        RefusingRoute(RTN_BLACKHOLE, 254, parse_network("10.244.6.0/24")),
        RefusingRoute(RTN_UNREACHABLE, 254, parse_network("10.244.7.0/24")),
        RefusingRoute(RTN_PROHIBIT, 100, parse_network("0.0.0.0/0")),
        RefusingRoute(RTN_BLACKHOLE, 254, parse_network("10.244.8.0/24"), 8),
    ]
    assert RefusingRoute(RTN_UNREACHABLE, 254, parse_network("fd10:7::/64")) in six


def test_policy_rules_are_listed_in_order(here: Namespace) -> None:
    def read() -> list[Rule]:
        with closing(Routing()) as kernel:
            return kernel.rules(Family.IPV4)

    rules = here.call(read)
    assert [rule.priority for rule in rules] == [0, 10, 20, 30, 50, 32766, 32767]
    assert rules[1] == Rule(Family.IPV4, 10, 1, 100, mark=0x10, mask=0x30)
    assert rules[2] == Rule(
        Family.IPV4, 20, RTN_PROHIBIT, 0, source=parse_network("10.244.9.0/24"), in_device="b0"
    )
    assert rules[3] == Rule(
        Family.IPV4,
        30,
        RULE_GOTO,
        0,
        destination=parse_network("10.244.9.0/24"),
        inverted=True,
        protocol=Protocol.TCP,
        source_ports=(7, 7),
        ports=(80, 90),
        uids=(1, 9),
        goto=50,
    )


def test_pod_routes_are_those_with_a_next_hop(here: Namespace) -> None:
    networks = [parse_network("10.244.0.0/16"), parse_network("fd10::/16")]

    def read() -> set[str]:
        with closing(Routing()) as kernel:
            return set(map(str, kernel.pod_routes(networks)))

    # Those of the bridge and those that refuse have none.
    assert here.call(read) == {"10.244.2.0/24", "10.244.10.0/24", "fd10:2::/64"}


def test_a_neighbour_has_its_state_and_age(here: Namespace) -> None:
    device = index(here, "e0")

    def read() -> tuple[routing.Neighbour | None, routing.Neighbour | None, int]:
        with closing(Routing()) as kernel:
            return (
                kernel.neighbour(device, parse_address("172.30.0.12")),
                kernel.neighbour(device, parse_address("172.30.0.99")),
                kernel.count_neighbours(Family.IPV4),
            )

    failed, unknown, count = here.call(read)
    assert failed is not None
    assert failed.state == NUD_FAILED
    assert 0 <= failed.age < 600
    assert unknown is None
    # A permanent entry does not count for the table's limit.
    assert count == 1


def test_devices_have_their_kind_and_state(here: Namespace) -> None:
    found = {link.name: link for link in links(here)}
    assert found["lo"].up
    assert (found["e0"].kind, found["e0"].mtu, found["e0"].carrier) == ("veth", 1400, True)
    assert found["e1"].master == found["b0"].index
    assert found["b0"].kind == "bridge"
    vxlan = found["vx0"]
    assert (vxlan.kind, vxlan.lower, vxlan.up) == ("vxlan", found["e0"].index, False)


def test_a_new_namespace_has_dropped_nothing(here: Namespace) -> None:
    assert here.call(read_counters) == ConntrackCounters()


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_no_reply_raises(replies: list[bytes]) -> None:
    views = [memoryview(reply) for reply in replies]
    for family in Family:
        list(routing._read_rules(views, family))
        list(routing._read_refusing(views, family))
        list(routing._read_nexthop_routes(views, family, frozenset({0})))
    routing._read_refusing_nexthops(views)
    routing._read_route(views)
    for view in views:
        list(routing._read_hops(view))
    list(read_links(views))


def test_an_error_that_passes_is_no_refusal_of_a_packet(
    here: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> list[memoryview]:
        raise TransientKernelError("ENOBUFS: a test", errno.ENOBUFS)

    with closing(here.call(Routing)) as opened:
        monkeypatch.setattr(Requests, "get", busy)
        with pytest.raises(TransientKernelError):
            opened.route(RouteQuery(POD))
