"""Flows on the fast path, summed up by the Service of their frontend."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pyproxy.dataplane.connections import Counted
from pyproxy.dataplane.nft.lookup import Lookups
from pyproxy.dataplane.nft.rows import frontend_key
from pyproxy.dataplane.nftables.offloaded_flows import OTHER, FlowMeter, Load, Loads, service_of
from pyproxy.model.address import Address, Backend, Protocol, parse_address
from pyproxy.netlink.elements import Tag
from pyproxy.netlink.flows import Flow
from tests.netlink.conntrack_entries import Entry, offloaded, place

NODE, NODE6 = parse_address("172.30.0.11"), parse_address("fd30::11")
ANY = Address(b"")
TCP, UDP = Protocol.TCP, Protocol.UDP


def tag(service: str) -> Tag:
    return Tag("cluster4-2", service)


TABLE: Lookups = {
    "services4": {
        frontend_key(parse_address("10.96.0.1"), TCP, 80): tag("shop/web:http"),
        frontend_key(parse_address("10.96.0.1"), UDP, 80): tag("shop/web:quic"),
        frontend_key(NODE, TCP, 30080): tag("shop/external"),
        frontend_key(NODE, TCP, 443): tag("shop/external:https"),
        frontend_key(parse_address("10.96.0.9"), TCP, 80): b"",
    },
    "services6": {frontend_key(parse_address("fd96::1"), TCP, 80): tag("shop/web:http")},
    "node-port-addresses4": {NODE: b""},
    "node-port-addresses6": {NODE6: b""},
    "node-ports4": {frontend_key(ANY, TCP, 30080): tag("shop/web:http")},
    "node-ports6": {frontend_key(ANY, UDP, 30080): tag("shop/web:quic")},
}

POD, POD6 = place("10.244.1.5", 8080), place("fd10::5", 8080)


def sent(address: str, port: int, protocol: Protocol = TCP, by: Backend | None = None) -> Entry:
    """Return a flow to a frontend, which a pod answers unless `by` says otherwise."""
    pod = POD6 if ":" in address else POD
    client = place("fd30::100" if ":" in address else "172.30.0.100", 40000)
    return Entry(client, place(address, port), pod if by is None else by, protocol)


UNTRANSLATED = Backend(b"")


@pytest.mark.parametrize(
    ("entry", "service"),
    [
        (sent("10.96.0.1", 80), "shop/web:http"),
        (sent("10.96.0.1", 80, UDP), "shop/web:quic"),
        (sent("fd96::1", 80), "shop/web:http"),
        (sent("10.96.0.1", 81), OTHER),
        (sent("fd96::1", 80, UDP), OTHER),
        (sent("172.30.0.11", 30080), "shop/web:http"),
        (sent("172.30.0.11", 30080, UDP), OTHER),
        (sent("fd30::11", 30080, UDP), "shop/web:quic"),
        (sent("172.30.0.11", 443), "shop/external:https"),
        (sent("172.30.0.12", 30080), OTHER),
        (sent("10.96.0.1", 80, by=UNTRANSLATED), OTHER),
        (sent("10.96.0.9", 80), OTHER),
    ],
)
def test_the_service_is_that_of_the_original_destination(entry: Entry, service: str) -> None:
    assert service_of(TABLE, offloaded(entry)) == service


WEB, DNS = sent("10.96.0.1", 80), sent("10.96.0.2", 53)
A, B = Counted("a"), Counted("b")


def owner_of(flow: Flow) -> Counted | None:
    return {WEB.to: A, DNS.to: B}.get(Backend(flow.destination))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param([], [], Loads({}, 0), id="none"),
        pytest.param(
            [],
            [offloaded(WEB, 1, 20, 2000), offloaded(DNS, 2, 40, 4000)],
            Loads({A: Load(1, 30, 3000), B: Load(1, 60, 6000)}, 2),
            id="new flows have no rate",
        ),
        pytest.param(
            [offloaded(WEB, 1, 20, 2000), offloaded(WEB, 2, 20, 2000)],
            [offloaded(WEB, 1, 120, 12000), offloaded(WEB, 2, 22, 2200)],
            Loads({A: Load(2, 213, 21300, 153, 15300)}, 0),
            id="two flows",
        ),
        pytest.param(
            [offloaded(WEB, 1, 1000, 10**12), offloaded(WEB, 2, 20, 2000)],
            [offloaded(WEB, 2, 20, 2000)],
            Loads({A: Load(1, 30, 3000)}, 0),
            id="a flow that ended lowers no rate",
        ),
        pytest.param(
            [offloaded(WEB, 1, 1000, 100000)],
            [offloaded(WEB, 9, 20, 2000)],
            Loads({A: Load(1, 30, 3000)}, 1),
            id="a new connection from the same port",
        ),
        pytest.param(
            [offloaded(WEB, 1, 1000, 100000)],
            [offloaded(WEB, 1, 20, 2000)],
            Loads({A: Load(1, 30, 3000, 30, 3000)}, 0),
            id="counters were set to 0",
        ),
        pytest.param(
            [],
            [offloaded(WEB, 1, 20, 2000), offloaded(WEB, 1, 22, 2200)],
            Loads({A: Load(1, 30, 3000)}, 1),
            id="an entry that came twice",
        ),
        pytest.param(
            [], [offloaded(sent("10.96.0.3", 80), 1, 20, 2000)], Loads({}, 0), id="no owner"
        ),
    ],
)
def test_flows_are_summed_up(before: Sequence[Flow], now: Sequence[Flow], expected: Loads) -> None:
    meter = FlowMeter()
    meter.sum_up(before, owner_of)
    assert meter.sum_up(now, owner_of) == expected


def test_more_flows_than_are_remembered_count_without_a_rate() -> None:
    flow = offloaded(WEB, 1, 20, 2000)
    ports = [place("172.30.0.100", port) for port in range(1, 50_001)]
    ports += [place("172.30.0.101", port) for port in range(1, 50_003)]
    many = [
        Flow(flow.protocol, client, flow.destination, flow.reply_source, flow.message)
        for client in ports
    ]
    meter = FlowMeter()
    assert meter.sum_up(many, owner_of).unmeasured == 100_002
    second = meter.sum_up(many, owner_of)
    assert second.unmeasured == 2
    assert second.by_owner[A].flows == 100_002
