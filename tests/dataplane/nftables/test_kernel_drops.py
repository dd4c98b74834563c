"""Alerts assigned to connections: before and after translation, replies, late ones, others."""

from __future__ import annotations

import msgspec

from pyproxy.dataplane.nftables.kernel_drops import REMEMBERED, DropMatcher, KernelDrop, LooseDrop
from pyproxy.dataplane.nftables.packet_trace import PacketTrace, with_drops
from pyproxy.model.address import Backend, Port, Protocol, backend, backend_text, parse_address
from pyproxy.netlink.drop_alerts import Alert
from pyproxy.netlink.flows import CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, Flow, tuple_attribute
from pyproxy.netlink.nfnetlink import HEADER_SIZE
from pyproxy.netlink.tracing import Event, Kind, Match

TCP, UDP = 6, 17


def end(address: str, port: int) -> Backend:
    return backend(parse_address(address), Port(port))


CLIENT, OTHER = end("10.244.1.12", 40000), end("10.244.1.12", 40001)
FRONTEND, ENDPOINT = end("10.96.0.10", 80), end("10.244.2.11", 8080)
NODE, STRANGER = end("192.0.2.7", 33333), end("192.0.2.7", 44444)
MATCH = Match(parse_address("10.96.0.10"), TCP, 80)


def alert(source: Backend, destination: Backend, protocol: int = TCP) -> Alert:
    return Alert(protocol, source, destination, "ip_error", "IP_INNOROUTES")


def drop(source: Backend, destination: Backend, *, reply: bool = False) -> KernelDrop:
    meaning = "no route to the destination, or forwarding is off"
    ends = backend_text(source), backend_text(destination)
    return KernelDrop(*ends, "ip_error", "IP_INNOROUTES", meaning, reply)


def event(source: Backend, destination: Backend) -> Event:
    return Event(
        1, Kind.RULE, 1, "pyproxy", "services", 1, "accept",
        parse_address(backend_text(source).rsplit(":", 1)[0]),
        parse_address(backend_text(destination).rsplit(":", 1)[0]),
        int.from_bytes(source[-2:], "big"),
        int.from_bytes(destination[-2:], "big"),
    )  # fmt: skip


def entry(client: Backend, frontend: Backend) -> Flow | None:
    """A conntrack that masquerades the client's connection."""
    if (client, frontend) != (CLIENT, FRONTEND):
        return None
    message = (
        bytes(HEADER_SIZE)
        + tuple_attribute(CTA_TUPLE_ORIG, Protocol.TCP, CLIENT, FRONTEND)
        + tuple_attribute(CTA_TUPLE_REPLY, Protocol.TCP, ENDPOINT, NODE)
    )
    return Flow(Protocol.TCP, CLIENT, FRONTEND, ENDPOINT, message)


def traced(*, masqueraded: bool = True, match: Match = MATCH) -> DropMatcher:
    matcher = DropMatcher(match, entry if masqueraded else lambda *_: None)
    matcher.note([event(CLIENT, FRONTEND), event(CLIENT, ENDPOINT)], 1.0)
    return matcher


def test_drops_of_an_open_trace_belong_to_it() -> None:
    matcher = traced()
    alerts = [
        alert(CLIENT, FRONTEND),
        alert(CLIENT, ENDPOINT),
        alert(NODE, ENDPOINT),
        alert(ENDPOINT, NODE),
        alert(ENDPOINT, CLIENT),
        alert(FRONTEND, CLIENT),
    ]
    assert list(matcher.take(alerts, 1.1)) == []
    assert matcher.finish(CLIENT) == (
        drop(CLIENT, FRONTEND),
        drop(CLIENT, ENDPOINT),
        drop(NODE, ENDPOINT),
        drop(ENDPOINT, NODE, reply=True),
        drop(ENDPOINT, CLIENT, reply=True),
        drop(FRONTEND, CLIENT, reply=True),
    )
    assert matcher.finish(CLIENT) == ()


def test_a_packet_translated_without_an_event_is_known_by_its_client() -> None:
    matcher = DropMatcher(MATCH, lambda *_: None)
    matcher.note([event(CLIENT, FRONTEND)], 1.0)
    assert list(matcher.take([alert(CLIENT, end("10.9.9.9", 8080))], 1.1)) == []
    assert matcher.finish(CLIENT) == (drop(CLIENT, end("10.9.9.9", 8080)),)


def test_packets_of_other_connections_are_left_out() -> None:
    matcher = traced()
    alerts = [
        alert(CLIENT, FRONTEND, UDP),
        alert(OTHER, ENDPOINT),
        alert(STRANGER, ENDPOINT),
        alert(ENDPOINT, STRANGER),
        alert(end("10.9.9.9", 1), CLIENT),
    ]
    assert list(matcher.take(alerts, 1.1)) == []
    assert matcher.finish(CLIENT) == ()
    # Without an entry nothing says whose the node's packet is.
    assert list(traced(masqueraded=False).take([alert(NODE, ENDPOINT)], 1.1)) == []


def test_a_drop_after_the_trace_comes_alone() -> None:
    matcher = traced()
    matcher.finish(CLIENT)
    ends = backend_text(CLIENT), backend_text(FRONTEND)
    (late,) = matcher.take([alert(NODE, ENDPOINT)], 4.0)
    assert late == LooseDrop(*ends, drop(NODE, ENDPOINT))
    matcher.note([], 1.0 + REMEMBERED)
    assert list(matcher.take([alert(NODE, ENDPOINT)], 11.0)) == []


def test_a_packet_that_met_no_rule_comes_alone_if_it_matches() -> None:
    matcher = DropMatcher(MATCH, entry)
    found = list(matcher.take([alert(OTHER, FRONTEND), alert(FRONTEND, OTHER)], 1.0))
    ends = backend_text(OTHER), backend_text(FRONTEND)
    assert found == [
        LooseDrop(*ends, drop(OTHER, FRONTEND)),
        LooseDrop(*ends, drop(FRONTEND, OTHER, reply=True)),
    ]
    of_another = msgspec.structs.replace(MATCH, source=parse_address("10.244.9.9"))
    assert list(DropMatcher(of_another, entry).take([alert(OTHER, FRONTEND)], 1.0)) == []


def test_work_and_memory_are_bounded_in_an_attack() -> None:
    matcher = DropMatcher(MATCH, entry)
    senders = [end("198.51.100.1", port) for port in range(1, 5001)]
    found = list(matcher.take([alert(each, FRONTEND) for each in senders], 1.0))
    assert len(found) == 100
    assert len(list(matcher.take([alert(each, FRONTEND) for each in senders], 2.0))) == 100
    for each in senders:
        matcher.note([event(each, FRONTEND), event(each, ENDPOINT)], 3.0)
        assert list(matcher.take([alert(each, ENDPOINT)] * 20, 3.0)) == []
    assert [bool(matcher.finish(each)) for each in senders].count(True) == 1024
    # The newest connections are still known by their endpoint.
    matcher.note([event(CLIENT, FRONTEND), event(CLIENT, ENDPOINT)], 3.0)
    assert list(matcher.take([alert(NODE, ENDPOINT)], 3.0)) == []
    assert matcher.finish(CLIENT) == (drop(NODE, ENDPOINT),)


def test_the_end_of_a_trace_is_the_kernels_drop() -> None:
    sent = PacketTrace("a", "b", "", (), "sent to b")
    there, back = drop(CLIENT, ENDPOINT), drop(ENDPOINT, CLIENT, reply=True)
    assert with_drops(sent, ()) == sent
    assert with_drops(sent, (there,)).end == (
        "dropped by the kernel in ip_error: IP_INNOROUTES "
        "(no route to the destination, or forwarding is off)"
    )
    assert with_drops(sent, (back,)).end == "sent to b"
    by_rule = msgspec.structs.replace(sent, end="dropped in ip filter forward")
    assert with_drops(by_rule, (there,)).end == "dropped in ip filter forward"
    assert KernelDrop("a", "b", "").cause == "without a reason"
    assert KernelDrop("a", "b", "tcp_v4_rcv").cause == "in tcp_v4_rcv"
