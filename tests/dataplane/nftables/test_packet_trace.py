"""Events of live packets assembled to traces: by packet, until it is complete, with its end."""

from __future__ import annotations

import msgspec
import pytest

from pyproxy.dataplane.nftables.packet_trace import (
    Assembly,
    MatchedRule,
    PacketTrace,
    packet_trace,
    rule_texts,
)
from pyproxy.model.address import parse_address
from pyproxy.netlink.tracing import Event, Kind

CLIENT, HOME, END = map(parse_address, ("10.244.1.12", "10.96.0.10", "10.244.2.11"))
OWN = "pyproxy-trace-7"


def event(chain: str, handle: int, verdict: str, packet: int = 1, table: str = "pyproxy") -> Event:
    return Event(packet, Kind.RULE, 1, table, chain, handle, verdict)


def headed(event: Event, destination: bytes, port: int, outgoing: int = 0) -> Event:
    return msgspec.structs.replace(
        event,
        source=CLIENT,
        destination=destination,
        source_port=40000,
        port=port,
        incoming=3,
        outgoing=outgoing,
    )


TOLD = [
    headed(event("prerouting", 2, "continue", table=OWN), HOME, 80),
    headed(event("nat-prerouting", 45, "jump services"), HOME, 80),
    event("services", 54, "goto cluster4-1"),
    event("cluster4-1", 77, "accept"),
    headed(event("filter-forward", 48, "jump no-endpoints", packet=2), END, 8080, 2),
    event("no-endpoints", 0, "continue", packet=2),
]


def put_together(events: list[Event]) -> PacketTrace:
    return packet_trace(
        events,
        OWN,
        lambda family, table, chain, handle: f"{family} {table} {chain} {handle}",
        lambda number: f"eth{number}",
    )


def test_a_packet_with_a_new_number_is_the_same_packet() -> None:
    assembly = Assembly(0.3)
    assembly.take(TOLD, 1.0)
    assert list(assembly.finished(1.2)) == []
    assert list(assembly.finished(1.3)) == [TOLD]
    assert list(assembly.finished(9.0)) == []


def test_interleaved_packets_are_kept_apart() -> None:
    other = headed(event("nat-prerouting", 45, "jump services", packet=9), HOME, 80)
    other = msgspec.structs.replace(other, source_port=40001)
    assembly = Assembly(0.3)
    assembly.take([TOLD[0], other, *TOLD[1:]], 1.0)
    assert sorted(map(len, assembly.finished(2.0))) == [1, len(TOLD)]


@pytest.mark.parametrize("number", [1, 9], ids=["same number", "another one"])
def test_the_next_packets_of_a_connection_are_packets_of_their_own(number: int) -> None:
    """Each is shown while the connection goes on, and none is kept."""
    assembly = Assembly(0.3)
    shown: list[list[Event]] = []
    for count in range(1000):
        later = [
            msgspec.structs.replace(each, packet=each.packet + 1000 * (count % number))
            for each in TOLD
        ]
        assembly.take(later, count / 128)
        shown += assembly.finished(count / 128)
        assert len(shown) >= count - 40
    shown += assembly.finished(60.0)
    assert [[each.chain for each in packet] for packet in shown] == 1000 * [
        [each.chain for each in TOLD]
    ]
    assert not any((assembly._open, assembly._numbers, assembly._senders))


def test_matched_rules_are_in_order_with_new_destinations() -> None:
    assert put_together(TOLD) == PacketTrace(
        "10.244.1.12:40000",
        "10.96.0.10:80",
        "eth3",
        (
            MatchedRule(
                "inet pyproxy", "nat-prerouting", "inet pyproxy nat-prerouting 45", "jump services"
            ),
            MatchedRule("inet pyproxy", "services", "inet pyproxy services 54", "goto cluster4-1"),
            MatchedRule("inet pyproxy", "cluster4-1", "inet pyproxy cluster4-1 77", "accept"),
            MatchedRule(
                "inet pyproxy",
                "filter-forward",
                "inet pyproxy filter-forward 48",
                "jump no-endpoints",
                "10.244.2.11:8080",
            ),
        ),
        "sent to 10.244.2.11:8080 by eth2",
    )


def test_a_dropped_packet_names_the_chain() -> None:
    by_rule = [*TOLD[:2], event("refuse", 9, "drop")]
    assert put_together(by_rule).end == "dropped in inet pyproxy refuse"
    policy = msgspec.structs.replace(
        event("forward", 0, "drop", table="filter"), kind=Kind.POLICY, family=2
    )
    by_policy = put_together([*TOLD[:2], policy])
    assert by_policy.rules[-1] == MatchedRule("ip filter", "forward", "its policy", "drop")
    assert by_policy.end == "dropped in ip filter forward"


def test_rule_texts_are_those_of_nft() -> None:
    listing = """table inet pyproxy { # handle 12
\tmap services4 { # handle 3
\t\ttypeof ip daddr . meta l4proto . th dport : verdict
\t}
\tchain services { # handle 30
\t\tip daddr . meta l4proto . th dport vmap @services4 # handle 54
\t}

\tchain refuse { # handle 31
\t\tmeta l4proto tcp reject with tcp reset # handle 9
\t\tdrop comment "a\u2028b\x0cc" # handle 10
\t}
}
"""
    assert rule_texts(listing) == {
        ("services", 54): "ip daddr . meta l4proto . th dport vmap @services4",
        ("refuse", 9): "meta l4proto tcp reject with tcp reset",
        ("refuse", 10): 'drop comment "a\u2028b\x0cc"',
    }
