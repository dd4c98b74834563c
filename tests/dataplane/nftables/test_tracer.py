"""The tracer on tables written by hand: each rule, each verdict, and its text."""

from __future__ import annotations

import struct
from fractions import Fraction

import msgspec
import pytest

from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nft.schema import Table
from pyproxy.dataplane.nftables import chains
from pyproxy.dataplane.nftables.base_rules import NftablesOptions
from pyproxy.dataplane.nftables.offload_tracer import SlowPath
from pyproxy.dataplane.nftables.tracer import Action, NftablesView, trace
from pyproxy.dataplane.packets import (
    Delivered,
    Dropped,
    DropReason,
    Masquerade,
    Packet,
    Rejected,
    RejectWith,
    Untouched,
)
from pyproxy.model.address import Address, Backend, Family, Port, Protocol, backend, parse_address
from pyproxy.netlink.elements import DROP, Tag, Value

HOME = "10.96.0.1"
POD, NODE, OUTSIDE = "10.244.1.11", "172.30.0.11", "203.0.113.5"
CERTAIN = Fraction(1)
OPTIONS = NftablesOptions(pod_interface="cbr0")
V4_ALONE, V6_ALONE = frozenset([Family.IPV4]), frozenset([Family.IPV6])


def ip(text: str) -> Address:
    return parse_address(text)


def frontend(address: str = HOME, port: int = 80, protocol: Protocol = Protocol.TCP) -> bytes:
    return frontend_key(ip(address), protocol, port)


def at(index: int, address: str = HOME) -> bytes:
    return frontend(address) + struct.pack("=I", index)


def end(number: int) -> Backend:
    return backend(ip(f"10.244.2.{number}"), Port(8080))


def slots(*numbers: int, first: int = 0) -> dict[bytes, Value]:
    return {at(first + index): end(number) + b"\0\0" for index, number in enumerate(numbers)}


def to(target: str) -> dict[bytes, Value]:
    return {frontend(): Tag(target)}


def packet(
    source: str = POD,
    destination: str = HOME,
    interface: str = "cbr0",
    *,
    protocol: Protocol = Protocol.TCP,
    port: int = 80,
    new: bool = True,
) -> Packet:
    return Packet(ip(source), ip(destination), protocol, Port(port), interface, new)


def machine(
    table: Table, learned: Table | None = None, options: NftablesOptions = OPTIONS
) -> NftablesView:
    return NftablesView(
        table,
        options,
        frozenset([ip(NODE), ip("fd30::11")]),
        learned or {},
    )


SERVED: Table = {
    "services4": to("cluster4-1"),
    "endpoints4": slots(1),
    "cluster-ips4": {ip(HOME): b""},
}
OUTER: Table = {"services4": to("masq-cluster4-1"), "endpoints4": slots(1)}
SPLIT: Table = {
    "services4": to("split4"),
    "internal-services4": to("cluster4-2"),
    "external-services4": to("local4-1"),
    "endpoints4": slots(1, 2) | slots(1, first=chains.LOCAL_OFFSET),
}
SOURCE_RANGE_FRONTENDS: Table = OUTER | {
    "source-range-frontends4": {frontend(): b""},
    "sources4": {frontend() + ip("203.0.113.0") + frontend() + ip("203.0.113.127"): b""},
}
NO_ENDPOINT_SERVICES: Table = {
    "no-endpoint-services4": {frontend(): b"", frontend(protocol=Protocol.UDP): b""}
}
ALONE = Delivered(end(1))
MARKED = Delivered(end(1), Masquerade.MARK)


@pytest.mark.parametrize(
    ("table", "sent", "verdict"),
    [
        ({}, packet(), Untouched()),
        (SERVED, packet(), ALONE),
        (SERVED, packet(OUTSIDE, interface="eth0"), MARKED),
        (SERVED, packet(NODE, interface=""), MARKED),
        (SERVED, packet(new=False), Untouched()),
        (SERVED, packet(port=81), Rejected(RejectWith.TCP_RESET)),
        (SERVED, packet(protocol=Protocol.UDP), Rejected(RejectWith.ICMP)),
        (SERVED, packet("fd10::1", "fd96::1"), Untouched()),
        (OUTER, packet(), MARKED),
        (OUTER, packet(port=81), Untouched()),
        (SPLIT, packet(OUTSIDE, interface="eth0"), ALONE),
        (
            SPLIT | {"external-services4": to(DROP)},
            packet(OUTSIDE, interface="eth0"),
            Dropped(DropReason.POLICY),
        ),
        (SPLIT | {"internal-services4": to("cluster4-1")}, packet(NODE, interface=""), MARKED),
        (SPLIT | {"internal-services4": to("cluster4-1")}, packet(), ALONE),
        (SPLIT | {"internal-services4": {}}, packet(), ALONE),
        (SPLIT | {"internal-services4": {}}, packet(NODE, interface=""), MARKED),
        (SPLIT | {"internal-services4": {}, "external-services4": {}}, packet(), Untouched()),
        ({"services4": to(DROP)}, packet(), Dropped(DropReason.POLICY)),
        ({"services4": to("cluster6-1")}, packet(), Untouched()),
        ({"services4": to("cluster4-1")}, packet(), Untouched()),
        (SOURCE_RANGE_FRONTENDS, packet(OUTSIDE, interface="eth0"), MARKED),
        (
            SOURCE_RANGE_FRONTENDS,
            packet("203.0.113.128", interface="eth0"),
            Dropped(DropReason.SOURCE_RANGES),
        ),
        (SOURCE_RANGE_FRONTENDS, packet(NODE, interface=""), Dropped(DropReason.SOURCE_RANGES)),
        (SOURCE_RANGE_FRONTENDS, packet("203.0.113.128", interface="eth0", new=False), Untouched()),
        (SOURCE_RANGE_FRONTENDS, packet("203.0.113.128", interface="eth0", port=81), Untouched()),
        (NO_ENDPOINT_SERVICES, packet(), Rejected(RejectWith.TCP_RESET)),
        (NO_ENDPOINT_SERVICES, packet(protocol=Protocol.UDP), Rejected(RejectWith.ICMP)),
        (NO_ENDPOINT_SERVICES, packet(NODE, interface=""), Rejected(RejectWith.TCP_RESET)),
        (NO_ENDPOINT_SERVICES, packet(protocol=Protocol.SCTP), Untouched()),
    ],
)
def test_a_packet_has_one_verdict(table: Table, sent: Packet, verdict: object) -> None:
    assert trace(sent, machine(table)).verdicts() == {verdict: CERTAIN}


@pytest.mark.parametrize(
    ("options", "sent", "masqueraded"),
    [
        (NftablesOptions(pod_interface="cbr0", masquerade_all=True), packet(), True),
        (NftablesOptions(pod_interface="cb*"), packet(), False),
        (NftablesOptions(pod_interface="cb*"), packet(interface="eth0"), True),
        (NftablesOptions(pod_interface="cb"), packet(), True),
        (NftablesOptions(), packet(interface="eth0"), False),
        (NftablesOptions(pod_families=V6_ALONE), packet(), False),
        (NftablesOptions(pod_families=V4_ALONE), packet(), False),
        (NftablesOptions(pod_families=V4_ALONE), packet(OUTSIDE), True),
    ],
)
def test_the_options_decide_which_packets_are_from_pods(
    options: NftablesOptions, sent: Packet, masqueraded: bool
) -> None:
    table = SERVED | {"pods4": {ip("10.244.0.0") + ip("10.244.255.255"): b""}}
    assert trace(sent, machine(table, options=options)).verdicts() == {
        MARKED if masqueraded else ALONE: CERTAIN
    }


@pytest.mark.parametrize(
    ("numbers", "chain", "lower", "upper"),
    [
        ((1,), "cluster4-1", CERTAIN, None),
        ((1, 2), "cluster4-2", Fraction(1, 2), Fraction(1, 2)),
        (
            (1, 2, 3),
            "cluster4-4",
            (1 - Fraction(1, 4) ** 8) / 3 + Fraction(1, 4) ** 8 / 2,
            (1 - Fraction(1, 4) ** 8) / 3,
        ),
        ((1, 2, 3, 4), "cluster4-4", Fraction(1, 4), Fraction(1, 4)),
    ],
)
def test_probabilities_are_exact(
    numbers: tuple[int, ...], chain: str, lower: Fraction, upper: Fraction | None
) -> None:
    table = {"services4": to(chain), "endpoints4": slots(*numbers)}
    shares = trace(packet(), machine(table)).verdicts()
    assert sum(shares.values()) == 1
    assert shares[Delivered(end(1))] == lower
    if upper is not None:
        assert shares[Delivered(end(numbers[-1]))] == upper


def test_a_lower_half_that_is_not_full_loses_packets() -> None:
    table: Table = {"services4": to("cluster4-4"), "endpoints4": {at(3): end(4) + b"\0\0"}}
    missed = Fraction(3, 4) ** 8
    traced = trace(packet(), machine(table))
    assert traced.verdicts() == {Delivered(end(4)): 1 - missed, Untouched(): missed}
    assert traced.paths[-1].steps[-1].action is Action.MISSED


def test_a_hairpin_is_masqueraded_only_where_it_meets_itself() -> None:
    hairpins: Table = {"hairpin4": {end(1)[:4] * 2: b"", end(2)[:4] * 2: b""}}
    table = {"services4": to("cluster4-2"), "endpoints4": slots(1, 2)} | hairpins
    verdicts = trace(packet("10.244.2.1"), machine(table)).verdicts()
    assert verdicts.keys() == {Delivered(end(1), Masquerade.HAIRPIN), Delivered(end(2))}
    unserved = trace(packet("10.244.2.1", "10.244.2.1"), machine(table))
    assert unserved.verdicts() == {Untouched(): CERTAIN}


OFFLOADED: Table = SERVED | {"offload-services4": {frontend(): b""}}
AT_NODE: Table = {
    "node-port-addresses4": {ip("172.30.0.12"): b""},
    "node-ports4": {frontend_key(Address(b""), Protocol.TCP, 30080): Tag("node-cluster4-1")},
    "node-port-endpoints4": {
        frontend_key(Address(b""), Protocol.TCP, 30080) + struct.pack("=I", 0): end(1) + b"\0\0"
    },
    "offload-node-ports4": {frontend_key(Address(b""), Protocol.TCP, 30080): b""},
}
HERE = backend(ip(NODE), Port(8080)) + b"\0\0"


@pytest.mark.parametrize(
    ("table", "sent", "expected"),
    [
        (OFFLOADED, packet(), "offloaded after 3 packets of both directions together"),
        (
            {
                "services4": {frontend(protocol=Protocol.UDP): Tag("cluster4-1")},
                "endpoints4": {
                    frontend(protocol=Protocol.UDP) + struct.pack("=I", 0): end(1) + b"\0\0"
                },
                "offload-services4": {frontend(protocol=Protocol.UDP): b""},
            },
            packet(protocol=Protocol.UDP),
            "offloaded after 3 packets of both directions together, and 2 s",
        ),
        (
            AT_NODE,
            packet(destination="172.30.0.12", port=30080),
            "offloaded after 3 packets of both directions together",
        ),
        (SERVED, packet(), SlowPath.FRONTEND),
        (
            SERVED | {"affinity-frontends4": {frontend(): Tag("affinity-learn")}},
            packet(),
            SlowPath.AFFINITY,
        ),
        (
            AT_NODE
            | {
                "offload-node-ports4": {},
                "node-port-affinity4": AT_NODE["offload-node-ports4"],
            },
            packet(destination="172.30.0.12", port=30080),
            SlowPath.AFFINITY,
        ),
        (
            {
                "services4": {frontend(protocol=Protocol.SCTP): Tag("cluster4-1")},
                "endpoints4": {
                    frontend(protocol=Protocol.SCTP) + struct.pack("=I", 0): end(1) + b"\0\0"
                },
            },
            packet(protocol=Protocol.SCTP),
            SlowPath.PROTOCOL,
        ),
        (
            OFFLOADED | {"draining-endpoints4": {frontend() + end(1) + b"\0\0": b""}},
            packet(),
            SlowPath.DRAINING,
        ),
        (
            AT_NODE
            | {
                "node-port-draining-endpoints4": {
                    next(iter(AT_NODE["offload-node-ports4"])) + end(1) + b"\0\0": b""
                }
            },
            packet(destination="172.30.0.12", port=30080),
            SlowPath.DRAINING,
        ),
        (
            OFFLOADED | {"hairpin4": {end(1)[:4] * 2: b""}},
            packet("10.244.2.1"),
            SlowPath.HAIRPIN,
        ),
        (OFFLOADED, packet(NODE, interface=""), SlowPath.SENT_HERE),
        (OFFLOADED | {"endpoints4": {at(0): HERE}}, packet(), SlowPath.RECEIVED_HERE),
    ],
)
def test_a_path_states_whether_its_connection_is_offloaded(
    table: Table, sent: Packet, expected: str | SlowPath
) -> None:
    view = msgspec.structs.replace(machine(table), offloads=True)
    (path,) = trace(sent, view).result().paths
    assert isinstance(path.verdict, Delivered)
    if isinstance(expected, SlowPath):
        expected = f"not offloaded: {expected.value}"
    assert str(path.offload) == expected
    # Without the rules of the fast path nothing is said, whatever the sets hold.
    (silent,) = trace(sent, machine(table)).paths
    assert silent.offload is None


@pytest.mark.parametrize("sent", [packet(port=81), packet("fd10::1", "fd96::1"), packet(new=False)])
def test_only_a_connection_to_an_endpoint_may_be_offloaded(sent: Packet) -> None:
    view = msgspec.structs.replace(machine(OFFLOADED), offloads=True)
    assert [path.offload for path in trace(sent, view).paths] == [None]


def test_only_sent_packets_are_masqueraded() -> None:
    here = backend(ip(NODE), Port(8080))
    table = OUTER | {"endpoints4": {at(0): here + b"\0\0"}}
    assert trace(packet(OUTSIDE, interface="eth0"), machine(table)).verdicts() == {
        Delivered(here): CERTAIN
    }
    own = trace(packet(NODE, interface=""), machine(table))
    assert own.verdicts() == {Delivered(here, Masquerade.MARK): CERTAIN}


def test_an_endpoint_that_is_a_frontend_without_endpoints_is_rejected() -> None:
    table = OUTER | {"no-endpoint-services4": {frontend("10.244.2.1", 8080): b""}}
    assert trace(packet(), machine(table)).verdicts() == {Rejected(RejectWith.TCP_RESET): CERTAIN}


def test_an_endpoint_at_a_cluster_ip_is_rejected_where_it_would_be_forwarded() -> None:
    table = OUTER | {"cluster-ips4": {ip("10.244.2.1"): b""}}
    assert trace(packet(), machine(table)).verdicts() == {Rejected(RejectWith.TCP_RESET): CERTAIN}


def test_a_packet_of_the_node_to_itself_meets_the_source_ranges_again() -> None:
    here = frontend(NODE, 8080)
    table = OUTER | {
        "endpoints4": {at(0): ip(NODE) + struct.pack(">HH", 8080, 0)},
        "source-range-frontends4": {here: b""},
    }
    sent = packet(NODE, interface="")
    assert trace(sent, machine(table)).verdicts() == {Dropped(DropReason.SOURCE_RANGES): CERTAIN}


AFFINITY_FRONTENDS: Table = {
    "services4": to("masq-affinity-cluster4-2"),
    "endpoints4": slots(1, 2),
    "affinity-frontends4": to("learn4-60-4096"),
    "affinity-endpoints4": {frontend() + end(number) + b"\0\0": b"" for number in (1, 2)},
}


def test_a_frontend_with_affinity_learns_and_returns() -> None:
    first = trace(packet(), machine(AFFINITY_FRONTENDS))
    assert {path.verdict for path in first.paths} == {
        Delivered(end(1), Masquerade.MARK),
        Delivered(end(2), Masquerade.MARK),
    }
    for path in first.paths:
        assert path.learned is not None
        learned = {path.learned.set_name: {path.learned.key: path.learned.value}}
        again = trace(packet(), machine(AFFINITY_FRONTENDS, learned))
        assert again.verdicts() == {path.verdict: CERTAIN}
        assert again.paths[0].learned == path.learned
        assert len(trace(packet(OUTSIDE), machine(AFFINITY_FRONTENDS, learned)).paths) == 2


def test_an_endpoint_on_the_node_is_learned_on_input() -> None:
    here = ip(NODE) + struct.pack(">HH", 8080, 0)
    table = AFFINITY_FRONTENDS | {
        "endpoints4": {at(0): here},
        "affinity-endpoints4": {frontend() + here: b""},
    }
    (path,) = trace(packet(), machine(table)).paths
    assert path.steps[-1].chain == "learn-input"


def test_an_endpoint_without_return_is_not_learned() -> None:
    table = AFFINITY_FRONTENDS | {"affinity-endpoints4": {frontend() + end(1) + b"\0\0": b""}}
    learned = {path.verdict: path.learned for path in trace(packet(), machine(table)).paths}
    assert learned[Delivered(end(1), Masquerade.MARK)] is not None
    assert learned[Delivered(end(2), Masquerade.MARK)] is None


@pytest.mark.parametrize("interface", ["eth0", "lo", ""])
def test_loopback_addresses_are_shielded_from_other_machines(interface: str) -> None:
    sent = packet(OUTSIDE, "127.0.0.1", interface=interface)
    verdict = Dropped(DropReason.LOOPBACK) if interface == "eth0" else Untouched()
    assert trace(sent, machine({}, options=NftablesOptions(shield_loopback=True))).verdicts() == {
        verdict: CERTAIN
    }
    assert trace(sent, machine({})).verdicts() == {Untouched(): CERTAIN}


@pytest.mark.parametrize("target", ["elsewhere", "cluster4-x", "cluster4", "learn4-60", ""])
def test_a_foreign_verdict_is_an_error(target: str) -> None:
    with pytest.raises(ValueError, match="pyproxy makes no chain"):
        trace(packet(), machine({"services4": to(target)}))


def test_the_text_of_a_trace() -> None:
    table = AFFINITY_FRONTENDS | {"services4": {frontend(): Tag("affinity-cluster4-2", "shop/web")}}
    assert str(trace(packet(), machine(table))).splitlines() == [
        "10.244.1.11 -> 10.96.0.1:80/tcp, came in by cbr0",
        "  services: continues in the frontend's chain:"
        ' services4 { 10.96.0.1 . tcp . 80 comment "shop/web" : goto affinity-cluster4-2 }',
        "  cluster4-2: translated to a random endpoint:"
        " endpoints4 { 10.96.0.1 . tcp . 80 . 0 : 10.244.2.1 . 8080 }",
        "  learn-postrouting: the client comes back to this endpoint:"
        " affinity4 { 10.244.1.11 . 10.96.0.1 . tcp . 80 : 10.244.2.1 . 8080 }",
        "  50.0000% delivered to 10.244.2.1:8080, source kept",
        "  cluster4-2: translated to a random endpoint:"
        " endpoints4 { 10.96.0.1 . tcp . 80 . 1 : 10.244.2.2 . 8080 }",
        "  learn-postrouting: the client comes back to this endpoint:"
        " affinity4 { 10.244.1.11 . 10.96.0.1 . tcp . 80 : 10.244.2.2 . 8080 }",
        "  50.0000% delivered to 10.244.2.2:8080, source kept",
    ]


@pytest.mark.parametrize(
    ("sent", "table", "last"),
    [
        (packet(), NO_ENDPOINT_SERVICES, "  100.0000% rejected with a TCP reset"),
        (
            packet(protocol=Protocol.UDP),
            NO_ENDPOINT_SERVICES,
            "  100.0000% rejected with an ICMP error",
        ),
        (packet(), {"services4": to(DROP)}, f"  100.0000% dropped: {DropReason.POLICY.value}"),
        (packet(new=False), {}, "  100.0000% destination unchanged, source kept"),
    ],
)
def test_the_text_of_a_verdict(sent: Packet, table: Table, last: str) -> None:
    assert str(trace(sent, machine(table))).splitlines()[-1] == last
